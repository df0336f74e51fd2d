"""Weights and features made from seeds alone, so that a network elsewhere can be given the same ones."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

FRAMES = (37, 230)  # of the inputs that embeddings are compared on


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """A value for every tensor by its name: weights that keep variances, batch norms away from their defaults."""
    return {name: _tensor(name, shape) for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}


def features(rows: int, frames: int) -> NDArray[np.float32]:
    """(1, rows, frames), normal, with another mean and deviation in every row."""
    rng = np.random.default_rng([rows, frames])
    drawn = rng.normal(size=(1, rows, frames)) * rng.uniform(0.5, 2, size=(1, rows, 1))
    return (drawn + rng.normal(size=(1, rows, 1))).astype(np.float32)


def digest(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """SHA-256 of the sorted names and shapes of a network's tensors."""
    lines = sorted(f"{name} {tuple(shape)}" for name, shape in shapes)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _tensor(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var") or (len(shape) < 2 and name.endswith("weight")):
        values = rng.uniform(0.5, 1.5, size=shape)
    elif len(shape) < 2:
        values = rng.normal(scale=0.2, size=shape)
    else:
        values = rng.normal(size=shape) * np.sqrt(1 / max(np.prod(shape[1:]), 1))
    return values.astype(np.float32)
