"""Tensors of a foreign checkpoint, read as bytes: torch's zip and safetensors. Nothing in a file is ever run.

`listing` checks a file before it reads a single value, and imports no torch. What a pickle may name is the table
`_Reader.find_class` knows: tensors, their storages, dictionaries, and a few classes of toolkits that are replaced by a
husk. All else is refused by its name. A pickle can then only build what those few make.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import BadCheckpoint, UnsafeCheckpoint
from sottovoce.lab.pickle_steps import check_pickle

LONGEST_PICKLE = 2 << 20  # bytes; the names and shapes of a few thousand tensors take a quarter
LONGEST_HEADER = 2 << 20  # bytes, of safetensors
MOST_ENTRIES = MOST_TENSORS = 20_000  # of a zip, of a network
LONGEST_DIRECTORY = 4 << 20  # bytes, of a zip
ZIP_TAIL = (1 << 16) + 22 + 20 + 56  # bytes in which the end of a zip's directory lies
AT_A_TIME = 1 << 20  # values looked through for NaN

STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
SAFETENSORS = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": "bfloat16", "I64": "<i8", "I32": "<i4", "U8": "|u1"}
WRAPPERS = ("state_dict", "model_state_dict", "model")  # entries that hold the tensors of a network
HUSKS = {  # module: classes of toolkits that only describe; none of them is needed
    "pyannote.audio.core.task": ("Specifications", "Problem", "Resolution"),
    "pyannote.audio.core.model": ("Introspection", "Output"),
    "torch.torch_version": ("TorchVersion",),
    "lightning_fabric.utilities.data": ("AttributeDict",),
    "lightning.fabric.utilities.data": ("AttributeDict",),
    "pytorch_lightning.utilities.parsing": ("AttributeDict",),
    "argparse": ("Namespace",),
}


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: what it is and where its values lie; `strides` and `offset` as numpy's, in bytes."""

    path: Path
    dtype: str  # numpy's, or "bfloat16"
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def floating(self) -> bool:
        """Whether its values are floating-point numbers."""
        return self.dtype == "bfloat16" or self.dtype[1] == "f"

    def read(self) -> NDArray[Any]:
        """Its values, (shape); float32 for bfloat16 and half precision."""
        raw = "<u2" if self.dtype == "bfloat16" else self.dtype
        if not math.prod(self.shape):
            return np.zeros(self.shape, raw)
        there = np.memmap(self.path, np.uint8, "r", self.offset, (_span(self),))
        values = np.ndarray(self.shape, np.dtype(raw), there, 0, self.strides)
        if self.dtype == "bfloat16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return np.array(values, dtype=np.float32 if self.dtype == "<f2" else None)

    def finite(self) -> bool:
        """Whether all values are finite, looked at a piece at a time."""
        if not self.floating or not self.shape:
            return bool(np.isfinite(self.read()).all())
        rows = max(1, AT_A_TIME // max(1, math.prod(self.shape[1:])))
        pieces = (self._rows(start, min(rows, self.shape[0] - start)) for start in range(0, self.shape[0], rows))
        return all(bool(np.isfinite(piece.read()).all()) for piece in pieces)

    def _rows(self, start: int, count: int) -> Stored:
        offset = self.offset + start * self.strides[0]
        return Stored(self.path, self.dtype, (count, *self.shape[1:]), self.strides, offset)


def listing(path: str | Path) -> dict[str, Stored]:
    """The tensors of a checkpoint by name, of a dictionary or of its entry in WRAPPERS.

    Raises UnsafeCheckpoint for a file that asks for code or for more than it holds, BadCheckpoint for one that is
    damaged or holds no tensors. Reads names and shapes, no values.
    """
    path = Path(path)
    if not path.is_file():
        raise BadCheckpoint(f"{path}: no such checkpoint")
    with open(path, "rb") as file:
        start = file.read(9)
    try:
        if start[:4] == b"PK\x03\x04":
            return _few(path, _zipped(path))
        if start[8:9] == b"{":
            return _few(path, _safetensors(path))
        if start[:1] == b"\x80":
            _refuse_bare(path)
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, IndexError) as error:
        raise BadCheckpoint(f"{path}: damaged ({type(error).__name__}: {str(error)[:200]})") from None
    except (AttributeError, OverflowError, MemoryError, NotImplementedError, RecursionError, OSError) as error:
        raise BadCheckpoint(f"{path}: cannot be read ({type(error).__name__}: {str(error)[:200]})") from None
    raise BadCheckpoint(f"{path}: neither a zip of torch nor safetensors (it is cut off, or something else)")


def _few(path: Path, tensors: dict[str, Stored]) -> dict[str, Stored]:
    if len(tensors) > MOST_TENSORS:
        raise BadCheckpoint(f"{path}: {len(tensors):,} tensors; no known network has more than a tenth of that")
    return tensors


def _refuse_bare(path: Path) -> None:
    """A pickle with no zip around it, refused by what it wants or by what it is."""
    with open(path, "rb") as file:
        content = file.read(LONGEST_PICKLE)
    check_pickle(path, content)
    _Reader(path, content, {}).load()
    raise BadCheckpoint(
        f"{path}: a pickle with no zip around it, as torch wrote before 1.6; where you trust it, load it with torch "
        "and save it again with torch.save"
    )


def _zipped(path: Path) -> dict[str, Stored]:
    _check_directory(path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in _checked(path, archive)}
        folders = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(folders) != 1:
            raise BadCheckpoint(f"{path}: a zip with {len(folders)} data.pkl, not one: not written by torch.save")
        (inside,) = folders
        if any(name.startswith(f"{inside}/code/") for name in entries):
            raise UnsafeCheckpoint(f"{path}: TorchScript, which is code; give the state dict (.pt) it was made of")
        order = f"{inside}/byteorder"
        if order in entries and archive.read(order) != b"little":
            raise BadCheckpoint(f"{path}: written on a big-endian machine; save it again on another")
        content = archive.read(f"{inside}/data.pkl")
    check_pickle(path, content)
    reader = _Reader(path, content, {n.removeprefix(f"{inside}/data/"): e for n, e in entries.items()})
    return _tensors(path, reader.load())


def _check_directory(path: Path) -> None:
    """Refuse a zip whose list of entries, all of which would be read into memory, is far longer than a network's.

    What may be the end of that list is looked for as whoever reads the zip would, and the largest claim counts.
    """
    with open(path, "rb") as file:
        file.seek(-min(os.path.getsize(path), ZIP_TAIL), os.SEEK_END)
        tail = file.read()
        claimed = [int.from_bytes(tail[at + 12 : at + 16], "little") for at in _all(tail, b"PK\x05\x06")]
        claimed = [size for size in claimed if size != 2**32 - 1]  # which means: see the record for large files
        for at in _all(tail, b"PK\x06\x07"):
            file.seek(min(int.from_bytes(tail[at + 8 : at + 16], "little"), os.path.getsize(path)))
            claimed.append(int.from_bytes(file.read(48)[40:], "little"))
    if max(claimed, default=0) > LONGEST_DIRECTORY:
        raise UnsafeCheckpoint(
            f"{path}: a zip whose list of entries takes {max(claimed):,} bytes; no network has so many"
        )


def _all(content: bytes, sign: bytes) -> Iterator[int]:
    """Places of a sign."""
    at = content.find(sign)
    while at >= 0:
        yield at
        at = content.find(sign, at + 1)


def _checked(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The entries of a zip, all of which lie in it uncompressed, as torch writes them, and side by side."""
    entries, size = archive.infolist(), path.stat().st_size
    if len(entries) > MOST_ENTRIES:
        raise UnsafeCheckpoint(f"{path}: a zip of {len(entries)} entries; no network has so many tensors")
    if len({entry.filename for entry in entries}) < len(entries):
        raise UnsafeCheckpoint(f"{path}: two entries of this zip have one name")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise UnsafeCheckpoint(
                f"{path}: {entry.filename} is compressed, which torch never does: {entry.compress_size:,} bytes would "
                f"become {entry.file_size:,}; where you trust it, pack it again uncompressed (zip -0)"
            )
        if entry.filename.endswith("data.pkl") and entry.file_size > LONGEST_PICKLE:
            raise UnsafeCheckpoint(f"{path}: {entry.file_size:,} bytes of names and shapes; a network needs far fewer")
    if sum(entry.file_size for entry in entries) > size:
        raise UnsafeCheckpoint(f"{path}: entries that lie on one another: they hold more bytes than the file")
    return entries


class _Husk:
    """In the place of an object that is not needed: it keeps nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, _: Any, __: Any) -> None: ...

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...

    def update(self, *_: Any) -> None: ...


class _Reader(pickle.Unpickler):
    """Unpickles names, shapes and places. What `find_class` does not know is refused."""

    def __init__(self, path: Path, content: bytes, entries: Mapping[str, zipfile.ZipInfo]) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self.path, self.entries = path, entries

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return self._tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda tensor, *_: tensor
        if name in HUSKS.get(module, ()):
            return _Husk
        raise UnsafeCheckpoint(
            f"{self.path}: its pickle wants {module}.{name}, which could run code; only tensors are read. Where you "
            "trust it, load it with its toolkit and save the state dict alone with torch.save"
        )

    def persistent_load(self, pid: Any) -> tuple[str, int, int]:
        """A storage: dtype, place of its first byte in the file, bytes."""
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, str):
            raise pickle.UnpicklingError("a reference that is to no storage")
        entry = self.entries[str(key)]
        return dtype, _place(self.path, entry), entry.file_size

    def _tensor(self, storage: Any, first: Any, shape: Any, strides: Any, *_: Any) -> Stored:
        dtype, place, held = storage
        if not all(type(number) is int for number in (first, *shape, *strides)):
            raise pickle.UnpicklingError("a tensor whose shape, strides or offset are no whole numbers")
        width = _width(dtype)
        stored = Stored(self.path, dtype, tuple(shape), tuple(width * step for step in strides), place + width * first)
        if len(shape) != len(strides) or min((first, *shape, *strides), default=0) < 0:
            raise pickle.UnpicklingError(f"a tensor of shape {shape} and strides {strides}")
        if math.prod(shape) and width * first + _span(stored) > held:
            raise UnsafeCheckpoint(f"{self.path}: a tensor of shape {shape} in a storage of {held:,} bytes: cut off")
        if math.prod(shape) * width > max(held, 1):
            raise UnsafeCheckpoint(f"{self.path}: a tensor of shape {shape} made of only {held:,} bytes")
        return stored


def _width(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _span(tensor: Stored) -> int:
    """Bytes from the first value to the end of the last."""
    steps = zip(tensor.shape, tensor.strides, strict=True)
    return sum((count - 1) * stride for count, stride in steps) + _width(tensor.dtype)


def _place(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an entry begin: behind its own header, whose name and extra field have their own lengths."""
    with open(path, "rb") as file:
        file.seek(entry.header_offset)
        header = file.read(30)
    if header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"{entry.filename} is not where the directory says")
    place = entry.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if place + entry.file_size > os.path.getsize(path):
        raise zipfile.BadZipFile(f"{entry.filename} is cut off")
    return place


def _tensors(path: Path, content: Any) -> dict[str, Stored]:
    """The dictionary of tensors in what was unpickled, nested ones with dots between the names."""
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{path}: holds no dictionary of tensors")
    for key in WRAPPERS:
        if isinstance(content.get(key), dict):
            content = content[key]
    found = dict(_walk(content, ""))
    if not found:
        raise BadCheckpoint(f"{path}: holds no tensors")
    return found


def _walk(content: Mapping[Any, Any], prefix: str, depth: int = 0) -> Iterator[tuple[str, Stored]]:
    for key, value in content.items():
        if isinstance(value, Stored):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict) and depth < 4:
            yield from _walk(value, f"{prefix}{key}.", depth + 1)


def _safetensors(path: Path) -> dict[str, Stored]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(LONGEST_HEADER, size - 8):
            raise UnsafeCheckpoint(f"{path}: its header claims {length:,} bytes of {size:,}; a network needs far fewer")
        header = json.loads(file.read(length))
    begin, found = 8 + length, {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape = SAFETENSORS.get(entry["dtype"]), tuple(entry["shape"])
        first, last = entry["data_offsets"]
        if dtype is None:
            raise BadCheckpoint(f"{path}: tensor {name} has type {entry['dtype']}; known: {', '.join(SAFETENSORS)}")
        width = _width(dtype)
        if min((0, *shape)) < 0 or not 0 <= first <= last <= size - begin or last - first != width * math.prod(shape):
            raise UnsafeCheckpoint(f"{path}: tensor {name} of shape {list(shape)} does not fit its place in the file")
        strides = tuple(width * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        found[name] = Stored(path, dtype, shape, strides, begin + first)
    if not found:
        raise BadCheckpoint(f"{path}: holds no tensors")
    return found
