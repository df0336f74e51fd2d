"""Checkpoints with random weights in the layouts of other toolkits, the same wherever they are made."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.audio.talker import talker

Shapes = Mapping[str, tuple[int, ...]]
SECONDS, TALKER_SEED = 2.0, 11
GOLDEN = Path(__file__).with_name("golden.json.gz")


def golden() -> dict[str, dict[str, Any]]:
    """By case: names and shapes in the original definition, and the unit embedding it gives for `wave`.

    Written by scripts/oracles.py with the original code of each toolkit.
    """
    return json.loads(gzip.decompress(GOLDEN.read_bytes()))


def wave() -> np.ndarray:
    """What golden embeddings are of: (32000,) float32."""
    return talker(SECONDS, seed=TALKER_SEED)


def weights(shapes: Shapes, seed: int = 0) -> dict[str, np.ndarray]:
    """float32 arrays by name, each from its own name and the seed; batch norms away from their defaults."""
    return {
        name: _array(name, shape, np.random.default_rng([seed, zlib.crc32(name.encode())]))
        for name, shape in shapes.items()
    }


def _array(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if name.endswith("num_batches_tracked"):
        return np.asarray(7, dtype=np.int64)
    if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.endswith("weight"):
        return (rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
    return (0.1 * rng.normal(size=shape)).astype(np.float32)
