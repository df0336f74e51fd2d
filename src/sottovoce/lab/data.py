"""Training audio in memory-mapped form, and batches as a pure function of (seed, epoch, position).

Because nothing depends on what was drawn before, a resumed run sees the same batches, and several processes
together see the batches that one process would.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from sottovoce.audio.wav import read
from sottovoce.errors import BadAudio, BadList
from sottovoce.lab.augment import Augmenter
from sottovoce.lab.lists import Utterance, read_manifest

RATE = 16000


@dataclass(frozen=True)
class Corpus:
    """Decoded recordings in one int16 array, 16 kHz mono."""

    samples: NDArray[np.int16]  # memory-mapped, all recordings one after another
    starts: NDArray[np.int64]  # (recordings + 1,)
    paths: list[str]
    speakers: list[str]  # of each recording; empty strings where not labelled
    excluded: list[dict[str, str]]

    def __len__(self) -> int:
        return len(self.paths)

    def length(self, index: int) -> int:
        """Samples of one recording."""
        return int(self.starts[index + 1] - self.starts[index])

    def piece(self, index: int, start: int, length: int) -> NDArray[np.float32]:
        """`length` samples from `start` on, repeated from its beginning when the recording is too short: (length,)."""
        whole = self.samples[self.starts[index] : self.starts[index + 1]]
        if start + length > len(whole):
            whole = np.resize(whole[min(start, max(0, len(whole) - length)) :], length)
            start = 0
        return whole[start : start + length].astype(np.float32) / np.float32(32768.0)

    def random_piece(self, index: int, length: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """`piece` from a random start on."""
        return self.piece(index, int(rng.integers(max(1, self.length(index) - length + 1))), length)


def decode_corpus(utterances: Sequence[Utterance], root: Path, cache: Path, label: str = "decoding") -> Corpus:
    """Decode recordings once into `cache` and map them; unusable ones are reported on stderr and passed over.

    Raises BadList when none is usable.
    """
    names = "\n".join(f"{u.path}\t{u.speaker}" for u in utterances)
    key = hashlib.sha256(f"{root.resolve()}\n{names}".encode()).hexdigest()[:16]
    raw, index = cache / f"{key}.i16", cache / f"{key}.json"
    if not index.exists():
        _decode(utterances, root, raw, index, label)
    known = json.loads(index.read_text(encoding="utf-8"))
    if not known["paths"]:
        first = known["excluded"][:1]
        raise BadList(f"none of {len(utterances)} recordings under {root} can be used; the first: {first}")
    samples = np.memmap(raw, dtype=np.int16, mode="r")
    starts = np.concatenate([[0], np.cumsum(known["lengths"])]).astype(np.int64)
    return Corpus(samples, starts, known["paths"], known["speakers"], known["excluded"])


def _decode(utterances: Sequence[Utterance], root: Path, raw: Path, index: Path, label: str) -> None:
    raw.parent.mkdir(parents=True, exist_ok=True)
    temporary = raw.with_suffix(f".{os.getpid()}.part")
    kept: list[tuple[Utterance, int]] = []
    excluded: list[dict[str, str]] = []

    def one(utterance: Utterance) -> NDArray[np.int16] | BadAudio:
        try:
            wave = read(root / utterance.path, RATE)
        except BadAudio as error:
            return error
        return np.clip(np.round(wave * 32768.0), -32768, 32767).astype(np.int16)

    with open(temporary, "wb") as file, ThreadPoolExecutor(2) as pool:
        jobs = pool.map(one, utterances)
        with click.progressbar(jobs, length=len(utterances), label=label, file=sys.stderr) as bar:
            for utterance, result in zip(utterances, bar, strict=True):
                if isinstance(result, BadAudio):
                    print(f"passed over: {result}", file=sys.stderr)
                    excluded.append({"path": utterance.path, "error": str(result)})
                    continue
                file.write(result.tobytes())
                kept.append((utterance, len(result)))
    os.replace(temporary, raw)
    content = {
        "paths": [u.path for u, _ in kept],
        "speakers": [u.speaker for u, _ in kept],
        "lengths": [n for _, n in kept],
        "excluded": excluded,
    }
    part = index.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(content), encoding="utf-8")
    os.replace(part, index)


def load_corpus(manifest: str | Path, root: Path, cache: Path, label: str = "decoding", use: str = "") -> Corpus:
    """Manifest → Corpus; `use` keeps the rows whose column of that name has that value."""
    path = root / manifest
    rows = read_manifest(path)
    rows = [row for row in rows if not use or row.fields.get("use", use) == use]
    return decode_corpus(rows, path if path.is_dir() else path.parent, cache, label)


@dataclass(frozen=True)
class Batch:
    """waves: (batch, samples) float32   labels: (batch,) int64: speaker × speeds + speed.

    clean: the same crops without noise, babble and rooms, where they are asked for. A kept batch has features (batch,
    channels, frames) in place of waves, and a teacher's embeddings (batch, dim).
    """

    waves: NDArray[np.float32] | None
    labels: NDArray[np.int64]
    features: NDArray[np.float16] | None = None
    followed: NDArray[np.float32] | None = None
    clean: NDArray[np.float32] | None = None


class Batches:
    """Crops of a corpus, augmented, in batches of a fixed size; all crops of a batch are equally long.

    An epoch draws each recording once for every `longest_repeat_s` begun, in random order. The incomplete last batch
    is dropped. `rank` of `world` processes takes every world-th crop of each batch.
    """

    def __init__(
        self,
        corpus: Corpus,
        augmenter: Augmenter,
        *,
        batch: int,
        crops: Sequence[int],
        longest_repeat_s: float,
        seed: int,
        rank: int = 0,
        world: int = 1,
        clean: bool = False,
    ) -> None:
        if batch % world:
            raise BadList(f"a batch of {batch} cannot be shared evenly by {world} processes")
        self.corpus, self.augmenter = corpus, augmenter
        self.batch, self.crops, self.seed, self.rank, self.world = batch, tuple(crops), seed, rank, world
        self.longest_repeat_s, self.clean = longest_repeat_s, clean
        names, self.speaker = np.unique(np.array(corpus.speakers), return_inverse=True)
        lengths = np.diff(corpus.starts)
        self.draws = np.repeat(np.arange(len(corpus)), np.ceil(lengths / (longest_repeat_s * RATE)).astype(int))
        self.speeds = (1.0, *augmenter.speeds)
        self.classes = len(names) * len(self.speeds)
        self.steps = len(self.draws) // batch
        if not self.steps:
            raise BadList(f"{len(self.draws)} crops are fewer than one batch of {batch}")

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(self.draws)

    def crop(self, epoch: int, step: int) -> int:
        """Length of the crops of a step, in samples."""
        return self.crops[int(np.random.default_rng([self.seed, epoch, step, 2]).integers(len(self.crops)))]

    def _one(
        self, epoch: int, position: int, index: int, crop: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], np.int64]:
        """A crop as it is trained on, the same clean, and its label."""
        rng = np.random.default_rng([self.seed, epoch, position, 1])
        which = int(rng.integers(len(self.speeds)))
        need = int(np.ceil(crop * self.speeds[which])) + 1
        wave = self.augmenter.speed(self.corpus.random_piece(index, need, rng), self.speeds[which], crop)
        label = np.int64(self.speaker[index] * len(self.speeds) + which)
        return self.augmenter(wave, rng, avoid=self.corpus.speakers[index]), wave, label

    def make(self, epoch: int, step: int) -> Batch:
        """The batch of one step of one epoch (this process's share)."""
        order = self._order(epoch)
        positions = range(step * self.batch + self.rank, (step + 1) * self.batch, self.world)
        crop = self.crop(epoch, step)
        made = [self._one(epoch, position, int(order[position]), crop) for position in positions]
        waves, clean, labels = zip(*made, strict=True)
        return Batch(np.stack(waves), np.stack(labels), clean=np.stack(clean) if self.clean else None)

    def run(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from step `first` on, made ahead of time in a thread."""
        return ahead(lambda step: self.make(epoch, step), first, self.steps)


def ahead(make: Callable[[int], Batch], first: int, steps: int, count: int = 3) -> Iterator[Batch]:
    """make(first) … make(steps - 1) in turn, up to `count` of them made ahead of time in a thread."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(make, step) for step in range(first, min(first + count, steps))]
        for step in range(first, steps):
            batch = waiting.pop(0).result()
            if step + count < steps:
                waiting.append(pool.submit(make, step + count))
            yield batch
