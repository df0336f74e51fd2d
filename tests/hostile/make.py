"""Writes checkpoints that mean harm or are broken: python tests/hostile/make.py FOLDER

They are made anew wherever they are needed; none is kept. `FILES` says which error each must give.
"""

from __future__ import annotations

import json
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sottovoce.lab.tensors import shapes_of

ZEROS = 1 << 28  # bytes that a bomb unfolds to
GLOBALS = {
    "tensor": b"ctorch._utils\n_rebuild_tensor_v2\n",
    "storage": b"ctorch\nFloatStorage\n",
}


def tensor(key: str, shape: tuple[int, ...], strides: tuple[int, ...], held: int) -> bytes:
    """Pickle opcodes of one float tensor, as torch.save writes it."""
    reference = b"(" + text("storage") + GLOBALS["storage"] + text(key) + text("cpu") + integer(held) + b"tQ"
    rest = integer(0) + numbers(shape) + numbers(strides) + b"\x89" + b"ccollections\nOrderedDict\n)R"
    return GLOBALS["tensor"] + b"(" + reference + rest + b"tR"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def dictionary(entries: dict[str, bytes]) -> bytes:
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in entries.items()) + b"u."


def archive(path: Path, content: bytes, data: dict[str, bytes], compressed: bool = False) -> None:
    """A zip as torch.save writes it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as made:
        made.writestr("archive/data.pkl", content)
        for key, values in data.items():
            made.writestr(f"archive/data/{key}", values)


class Calls:
    """Asks whoever unpickles it to call a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.how = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.how


def code(path: Path) -> None:
    archive(path, pickle.dumps({"conv1.weight": Calls(exec, f"open({str(path.with_suffix('.ran'))!r}, 'w')")}, 2), {})


def code_new_protocol(path: Path) -> None:
    archive(path, pickle.dumps({"x": Calls(eval, "1")}, 4), {})


def code_without_zip(path: Path) -> None:
    path.write_bytes(pickle.dumps(Calls(print, "ran"), 2))


def code_by_getattr(path: Path) -> None:
    archive(path, b"\x80\x02cbuiltins\ngetattr\n(cos\nsystem\nX\x01\x00\x00\x00xtR.", {})


def zip_bomb(path: Path) -> None:
    content = dictionary({"conv1.weight": tensor("0", (ZEROS // 4,), (1,), ZEROS // 4)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/data.pkl", content)
        with made.open("archive/data/0", "w", force_zip64=True) as entry:
            for _ in range(ZEROS >> 24):
                entry.write(bytes(1 << 24))


def repeated_storage(path: Path) -> None:
    content = dictionary({"conv1.weight": tensor("0", (1 << 20, 1 << 12), (0, 0), 1)})
    archive(path, content, {"0": bytes(4)})


def larger_than_its_storage(path: Path) -> None:
    archive(path, dictionary({"conv1.weight": tensor("0", (64, 64), (64, 1), 4096)}), {"0": bytes(64)})


def missing_storage(path: Path) -> None:
    archive(path, dictionary({"conv1.weight": tensor("9", (4,), (1,), 4)}), {})


def memo(path: Path) -> None:
    archive(path, b"\x80\x02}r\xff\xff\xff\x7f.", {})


def doubled_key(path: Path) -> None:
    """A key that is a tuple of two of the tuple before, thirty times: hashing it looks at a billion."""
    archive(path, b"\x80\x02}" + text("a") + b"2\x86" * 30 + text("b") + b"s.", {})


def doubled_reference(path: Path) -> None:
    """The same in the place of a storage, out of the memo."""
    doubled = b"".join(b"q%ch%c\x86" % (index, index) for index in range(30))
    archive(path, b"\x80\x02}" + text("w") + text("a") + doubled + b"Qs.", {})


def long_directory(path: Path) -> None:
    """A zip of a hundred thousand entries, by its list of them alone."""
    entry = b"PK\x01\x02" + bytes(42)
    listed = entry * 100_000
    end = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 0xFFFF, 0xFFFF, len(listed), 4, 0)
    path.write_bytes(b"PK\x03\x04" + listed + end)


def long_directory_of_zip64(path: Path) -> None:
    """The same, claimed where zips of more than 4 GB claim it."""
    entry = b"PK\x01\x02" + bytes(42)
    listed = entry * 100_000
    record = b"PK\x06\x06" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, 100_000, 100_000, len(listed), 4)
    locator = b"PK\x06\x07" + struct.pack("<LQL", 0, 4 + len(listed), 1)
    end = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    path.write_bytes(b"PK\x03\x04" + listed + record + locator + end)


def truncated(path: Path) -> None:
    archive(path, dictionary({"conv1.weight": tensor("0", (64,), (1,), 64)}), {"0": bytes(256)})
    path.write_bytes(path.read_bytes()[:300])


def truncated_pickle(path: Path) -> None:
    archive(path, dictionary({"conv1.weight": tensor("0", (64,), (1,), 64)})[:40], {"0": bytes(256)})


def torchscript(path: Path) -> None:
    archive(path, b"\x80\x02}.", {})
    with zipfile.ZipFile(path, "a") as made:
        made.writestr("archive/code/__torch__.py", "class Net(Module): ...")


def long_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2 << 30) + b"{" + bytes(64))


def offsets(path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 20], "data_offsets": [0, 4 << 20]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))


def nested(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_995)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(4096))


def no_tensors(path: Path) -> None:
    archive(path, b"\x80\x02}(X\x05\x00\x00\x00epochK\x03u.", {})


def many_steps(path: Path) -> None:
    archive(path, b"\x80\x02}" + b"\x8f0" * 300_000 + b".", {})  # sets, each thrown away


def long_pickle(path: Path) -> None:
    archive(path, dictionary({f"layer{i}": tensor("0", (1,), (1,), 1) for i in range(15_000)}), {"0": bytes(4)})


def many_tensors(path: Path) -> None:
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({f"l{i}": one for i in range(25_000)}, separators=(",", ":")).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


def known_network(path: Path, changed: dict[str, np.ndarray]) -> None:
    """A network that `sotto import` takes, all ones but for the tensors given; well-formed, whatever is in these."""
    ones = shapes_of("simam", blocks=(1, 1, 1, 1), width=2, mels=80, dim=2)
    arrays = {name: np.ones(shape, np.float32) for name, shape in ones.items()} | changed
    entries = {}
    for key, (name, array) in enumerate(arrays.items()):
        strides = tuple(step // array.itemsize for step in array.strides)
        entries[f"module.{name}"] = tensor(str(key), array.shape, strides, array.size)
    archive(path, dictionary(entries), {str(key): array.tobytes() for key, array in enumerate(arrays.values())})


def nan_weights(path: Path) -> None:
    known_network(path, {"front.conv1.weight": np.full((2, 1, 3, 3), np.nan, np.float32)})


def no_values(path: Path) -> None:
    known_network(path, {"bottleneck.weight": np.ones((0, 320), np.float32), "bottleneck.bias": np.ones(0, np.float32)})


def wrong_shape(path: Path) -> None:
    known_network(path, {"front.conv1.weight": np.ones((2, 1, 5, 5), np.float32)})


FILES: dict[str, tuple[Callable[[Path], None], str, str]] = {  # name: maker, error, a part of its message
    "code.pt": (code, "UnsafeCheckpoint", "exec"),
    "code_new_protocol.pt": (code_new_protocol, "UnsafeCheckpoint", "eval"),
    "code_without_zip.pt": (code_without_zip, "UnsafeCheckpoint", "print"),
    "code_by_getattr.pt": (code_by_getattr, "UnsafeCheckpoint", "getattr"),
    "zip_bomb.pt": (zip_bomb, "UnsafeCheckpoint", "compressed"),
    "repeated_storage.pt": (repeated_storage, "UnsafeCheckpoint", "made of only"),
    "larger_than_its_storage.pt": (larger_than_its_storage, "UnsafeCheckpoint", "cut off"),
    "missing_storage.pt": (missing_storage, "BadCheckpoint", "damaged"),
    "memo.pt": (memo, "UnsafeCheckpoint", "memo"),
    "doubled_key.pt": (doubled_key, "UnsafeCheckpoint", "tuples"),
    "doubled_reference.pt": (doubled_reference, "UnsafeCheckpoint", "tuples"),
    "long_directory.pt": (long_directory, "UnsafeCheckpoint", "list of entries"),
    "long_directory_of_zip64.pt": (long_directory_of_zip64, "UnsafeCheckpoint", "list of entries"),
    "truncated.pt": (truncated, "BadCheckpoint", "damaged"),
    "truncated_pickle.pt": (truncated_pickle, "BadCheckpoint", "damaged"),
    "torchscript.zip": (torchscript, "UnsafeCheckpoint", "TorchScript"),
    "long_header.safetensors": (long_header, "UnsafeCheckpoint", "header"),
    "offsets.safetensors": (offsets, "UnsafeCheckpoint", "does not fit"),
    "nested.safetensors": (nested, "BadCheckpoint", "cannot be read|damaged"),
    "empty.pt": (empty, "BadCheckpoint", "neither"),
    "noise.pt": (noise, "BadCheckpoint", "neither"),
    "no_tensors.pt": (no_tensors, "BadCheckpoint", "no tensors"),
    "many_steps.pt": (many_steps, "UnsafeCheckpoint", "steps"),
    "long_pickle.pt": (long_pickle, "UnsafeCheckpoint", "names and shapes"),
    "many_tensors.safetensors": (many_tensors, "BadCheckpoint", "25,000 tensors"),
}
NETWORKS: dict[str, tuple[Callable[[Path], None], str]] = {  # well-formed: what the command says of them
    "nan.pt": (nan_weights, r"tensor front\.conv1\.weight has NaN or infinite values"),
    "no_values.pt": (no_values, r"tensor bottleneck\.weight of shape \[0, 320\] holds no values"),
    "wrong_shape.pt": (
        wrong_shape,
        r"of no known network \(\d+ tensors\)\. The nearest is WeSpeaker SimAM-ResNet, of which 1 tensors differ: "
        r"front\.conv1\.weight is \[2, 1, 5, 5\], not \[2, 1, 3, 3\]",
    ),
}


def make(folder: Path) -> list[Path]:
    """Write all of them; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (maker, _, _) in FILES.items():
        maker(folder / name)
    return [folder / name for name in FILES]


if __name__ == "__main__":
    print("\n".join(map(str, make(Path(sys.argv[1])))))
