"""Kept batches: features, labels and a teacher's embeddings of each step, made once and read by every later run.

<folder>/<epoch>.features   float16, (rows, channels, frames) of each step, one after another
<folder>/<epoch>.steps      one record a step: checksum, labels
<folder>/<epoch>.<teacher>  one record a step: checksum, embeddings (rows, dim) in float32

A step counts as kept when its checksum fits. So neither a run that is killed while it writes nor two that write the
same step do harm. A folder belongs to one way of making batches, which `key` names.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sottovoce.audio.features import FrontEndConfig
from sottovoce.errors import BadInput
from sottovoce.lab.data import Batch, Batches, Corpus, ahead
from sottovoce.lab.recipe import MASKS, Augment

VERSION = 1  # of what a step's features depend on; a change of data, augmentation or layout raises it


def key(front_end: FrontEndConfig, augment: Augment, batches: Batches, corpora: list[Corpus | None]) -> str:
    """Name of the folder of all runs that see the same features: hexadecimal, the same on every machine."""
    unmasked = {name: value for name, value in asdict(augment).items() if name not in MASKS}
    drawn = [batches.batch, batches.crops, batches.longest_repeat_s, batches.seed, batches.rank, batches.world]
    heard = [[c.paths, c.speakers, c.starts.tolist()] if c else None for c in corpora]
    text = json.dumps([VERSION, asdict(front_end), unmasked, drawn, heard], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path: str | Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


class Kept:
    """The batches of some epochs, as features where they are kept already, as waves where not.

    shapes: crop in samples → (channels, frames)   epochs: so many are kept; epoch e is that of e modulo this number.
    teacher, dim: name and width of the embeddings that are kept beside; none with an empty name.
    Raises BadInput when the disk has no room for what is missing.
    """

    def __init__(
        self,
        folder: Path,
        batches: Batches,
        shapes: Mapping[int, tuple[int, int]],
        epochs: int,
        teacher: str = "",
        dim: int = 0,
    ) -> None:
        self.folder, self.batches, self.epochs, self.teacher = folder, batches, epochs, teacher
        self._rows = batches.batch // batches.world
        self._shapes = [[shapes[batches.crop(e, s)] for s in range(batches.steps)] for e in range(epochs)]
        self._starts = [_starts([2 * self._rows * c * f for c, f in shape]) for shape in self._shapes]
        self._labelled = np.dtype([("sum", "<u4"), ("labels", "<i8", (self._rows,))])
        self._followed = np.dtype([("sum", "<u4"), ("seen", "<f4", (self._rows, dim))])
        folder.mkdir(parents=True, exist_ok=True)
        self._demand_room()

    @property
    def size_bytes(self) -> int:
        """Bytes of all files once every step is kept."""
        return sum(size for epoch in range(self.epochs) for size in self._files(epoch).values())

    def count(self) -> int:
        """Steps whose features are written."""
        found = [self._map(self._path(epoch, "steps"), self._labelled) for epoch in range(self.epochs)]
        return sum(int(np.count_nonzero(records["sum"])) for records in found if records is not None)

    def run(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from step `first` on, made ahead of time in a thread."""
        return ahead(self._reader(epoch % self.epochs), first, self.batches.steps)

    def add(self, epoch: int, step: int, features: NDArray[np.float16], labels: NDArray[np.int64]) -> None:
        """Keep the features (rows, channels, frames) and labels (rows,) of a step."""
        source = epoch % self.epochs
        data = np.ascontiguousarray(features, dtype="<f2").tobytes()
        record = np.zeros((), self._labelled)
        record["labels"] = labels
        record["sum"] = _checksum(data, record["labels"].tobytes())
        self._write(source, "features", int(self._starts[source][step]), data)
        self._write(source, "steps", step * record.nbytes, record.tobytes())

    def add_followed(self, epoch: int, step: int, seen: NDArray[np.float32]) -> None:
        """Keep the teacher's embeddings (rows, dim) of a step."""
        record = np.zeros((), self._followed)
        record["seen"] = seen
        record["sum"] = _checksum(record["seen"].tobytes())
        self._write(epoch % self.epochs, self.teacher, step * record.nbytes, record.tobytes())

    def _reader(self, epoch: int) -> Callable[[int], Batch]:
        def read(step: int) -> Batch:
            found, seen = self._features(epoch, step), self._seen(epoch, step)
            if found is None or (self.batches.clean and seen is None):
                return self.batches.make(epoch, step)  # what a teacher hears clean is not kept
            features, labels = found
            return Batch(None, labels, features, seen)

        return read

    def _features(self, epoch: int, step: int) -> tuple[NDArray[np.float16], NDArray[np.int64]] | None:
        records = self._map(self._path(epoch, "steps"), self._labelled)
        if records is None or not records[step]["sum"]:
            return None
        start, stop = (int(at) for at in self._starts[epoch][step : step + 2])
        data = np.array(np.memmap(self._path(epoch, "features"), "<f2", "r", start, ((stop - start) // 2,)))
        labels = np.array(records[step]["labels"])
        if records[step]["sum"] != _checksum(data.tobytes(), labels.tobytes()):
            return None
        return data.reshape(self._rows, *self._shapes[epoch][step]), labels

    def _seen(self, epoch: int, step: int) -> NDArray[np.float32] | None:
        records = self._map(self._path(epoch, self.teacher), self._followed) if self.teacher else None
        if records is None:
            return None
        seen = np.array(records[step]["seen"])
        return seen if records[step]["sum"] == _checksum(seen.tobytes()) else None

    def _map(self, path: Path, kind: np.dtype) -> NDArray | None:  # type: ignore[type-arg]
        whole = self.batches.steps * kind.itemsize
        if not path.exists() or path.stat().st_size < whole:
            return None
        return np.memmap(path, kind, "r", 0, (self.batches.steps,))

    def _path(self, epoch: int, what: str) -> Path:
        return self.folder / f"{epoch:03d}.{what}"

    def _files(self, epoch: int) -> dict[str, int]:
        """Bytes of each file of an epoch."""
        sizes = {"features": int(self._starts[epoch][-1]), "steps": self.batches.steps * self._labelled.itemsize}
        return sizes | ({self.teacher: self.batches.steps * self._followed.itemsize} if self.teacher else {})

    def _write(self, epoch: int, what: str, start: int, data: bytes) -> None:
        """Write into a file that has its whole size from the beginning; what is not written yet takes no room."""
        file = os.open(self._path(epoch, what), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if os.fstat(file).st_size < self._files(epoch)[what]:
                os.ftruncate(file, self._files(epoch)[what])
            os.pwrite(file, data, start)
        except OSError as error:
            raise BadInput(f"{self.folder}: cannot keep batches ({error.strerror}); lower [data] keep_epochs") from None
        finally:
            os.close(file)

    def _demand_room(self) -> None:
        taken = sum(path.stat().st_blocks * 512 for path in self.folder.iterdir())
        missing, free = self.size_bytes - taken, shutil.disk_usage(self.folder).free
        if missing > free:
            raise BadInput(
                f"{self.folder}: kept batches need {missing / 1e9:.1f} GB more, the disk has {free / 1e9:.1f} GB; "
                "lower [data] keep_epochs or name another --cache"
            )


def _starts(sizes: list[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _checksum(*parts: bytes) -> int:
    """CRC-32 of all parts; never 0, which stands for a step that was not written."""
    total = 0
    for part in parts:
        total = zlib.crc32(part, total)
    return total or 1
