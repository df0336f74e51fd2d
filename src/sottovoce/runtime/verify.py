"""Do two recordings hold the same voice? A score against the threshold of a stated operating point."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sottovoce.audio import wav
from sottovoce.errors import BadInput, BadModel
from sottovoce.runtime.cascade import Cascade


class Embedder(Protocol):
    """What verification needs of a model."""

    @property
    def min_samples(self) -> int: ...
    @property
    def rate(self) -> int: ...
    @property
    def id(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    def embed(self, wave: NDArray[np.float32]) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Decision:
    """The answer for one pair. Recordings played back and cloned voices are not detected."""

    score: float  # cosine of the two embeddings, -1..1; of a cascade, on its last stage's scale
    decision: str  # 'accept' or 'reject'
    threshold: float  # accepted from here on
    point: Mapping[str, Any]  # name, and what it was measured on
    model: str
    a: str
    b: str

    @property
    def accepted(self) -> bool:
        """Whether the decision is to accept."""
        return self.decision == "accept"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "score": self.score,
            "decision": self.decision,
            "threshold": self.threshold,
            "point": self.point["name"],
            "measured_on": self.point.get("measured_on"),
            "model": self.model,
            "a": self.a,
            "b": self.b,
            "antispoofing": False,
        }


def verify(
    model: Embedder | Cascade, a: str | Path, b: str | Path, point: str = "balanced", threshold: float | None = None
) -> Decision:
    """Compare the voices in two files at a named operating point of the model, or at a threshold of one's own.

    Raises BadModel when the model has no operating points and no threshold is given, BadInput for an unknown point or
    a threshold that is not finite, BadAudio for a recording that cannot be used.
    """
    used = _own(threshold) if threshold is not None else _point(model, point)
    left, right = (wav.read(path, model.rate, model.min_samples) for path in (a, b))
    score = model.score(left, right).score if isinstance(model, Cascade) else _cosine(model, left, right)
    if not math.isfinite(score):
        raise BadModel(f"model {model.id}: the score of {a} and {b} is {score}; run its self-test")
    decision = "accept" if score >= used["threshold"] else "reject"
    return Decision(score, decision, float(used["threshold"]), used, model.id, str(a), str(b))


def _cosine(model: Embedder, a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    left, right = (model.embed(wave).astype(np.float64) for wave in (a, b))
    return float(np.dot(left, right))


def _own(threshold: float) -> dict[str, Any]:
    if not math.isfinite(threshold):
        raise BadInput(f"threshold {threshold} is not a number; give a cosine between -1 and 1")
    return {"name": "given", "threshold": float(threshold)}


def _point(model: Embedder | Cascade, name: str) -> dict[str, Any]:
    points = model.metadata.get("operating_points") or {}
    if not points:
        raise BadModel(
            f"model {model.id}: the file has no operating points, so a score cannot be judged; give a threshold,"
            " or compress the model with trials to store one"
        )
    if name not in points:
        raise BadInput(f"operating point {name!r} is unknown to model {model.id}; it has: {', '.join(sorted(points))}")
    return {**points[name], "name": name}
