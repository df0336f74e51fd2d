"""Do two recordings hold the same voice? Score, llr and probability, judged at an operating point, or not judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sottovoce.audio import wav
from sottovoce.audio.quality import SIDES, Quality, measures, of_file
from sottovoce.errors import BadInput, BadModel
from sottovoce.runtime.cascade import Cascade
from sottovoce.scores.calibration import Calibration, from_dict, probability

ACCEPT, REJECT, INCONCLUSIVE = "accept", "reject", "inconclusive"
BAYES = "bayes"  # the point that needs no trials of its own: accept what is likelier than not at the prior
PRIOR = 0.5
PSEUDO = (
    "the calibration and the operating points come from pseudo-trials (crops of {recordings} unlabelled recordings), "
    "which are easier than life: llr, probability and rates are rough; use sotto calibrate with trials of yours"
)
NO_CALIBRATION = "the model has no calibration: llr and probability are not known; make one with sotto calibrate"


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
class Gate:
    """Limits on one measure of a recording: beyond `refused` nothing is decided, beyond `warned` it is only said."""

    measure: str  # a field of Quality
    refused: float | None
    warned: float
    below: bool  # whether low values are the bad ones
    advice: str


GATES = (
    Gate("net_speech_s", 0.5, 1.5, True, "speak longer"),
    Gate("clipped", 0.05, 0.01, False, "lower the microphone's gain"),
    Gate("snr_db", 2.0, 5.0, True, "record nearer to the microphone or in a quieter place"),
    Gate("level_dbfs", None, -50.0, True, "raise the microphone's gain"),
    Gate("bandwidth_hz", None, 4500.0, True, "use recordings of 16 kHz or more that never went through a telephone"),
)
_SHOWN: Mapping[str, Callable[[float], str]] = {
    "net_speech_s": lambda value: f"{value:.2f} s of net speech",
    "clipped": lambda value: f"{100 * value:.1f} % of its samples clipped",
    "snr_db": lambda value: f"a signal-to-noise ratio of {value:.1f} dB",
    "level_dbfs": lambda value: f"a level of {value:.1f} dBFS",
    "bandwidth_hz": lambda value: f"nothing above {value:.0f} Hz",
}


@dataclass(frozen=True)
class Decision:
    """The answer for one pair. Recordings played back and cloned voices are not detected."""

    score: float  # cosine of the two embeddings, -1..1; of a cascade, on its last stage's scale
    decision: str  # 'accept', 'reject', or 'inconclusive' where a recording cannot be judged
    threshold: float  # score from which this pair is accepted
    point: Mapping[str, Any]  # name, and what it was measured on
    model: str
    a: str
    b: str
    llr: float | None = None  # natural log-likelihood ratio; None without calibration and where inconclusive
    probability: float | None = None  # that one speaker is heard, at `prior`; None as llr
    prior: float = PRIOR
    reason: str | None = None  # why inconclusive
    quality: Mapping[str, Quality] = field(default_factory=dict)  # 'a', 'b'
    warnings: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether the decision is to accept."""
        return self.decision == ACCEPT

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "score": self.score,
            "decision": self.decision,
            "reason": self.reason,
            "llr": self.llr,
            "probability": self.probability,
            "prior": self.prior,
            "threshold": self.threshold,
            "point": self.point["name"],
            "expected_false_accepts": self.point.get("false_accepts"),
            "expected_misses": self.point.get("misses"),
            "measured_on": self.point.get("measured_on"),
            "quality": {side: found.as_dict() for side, found in self.quality.items()},
            "warnings": list(self.warnings),
            "model": self.model,
            "a": self.a,
            "b": self.b,
            "antispoofing": False,
        }


def verify(
    model: Embedder | Cascade,
    a: str | Path,
    b: str | Path,
    point: str = "balanced",
    threshold: float | None = None,
    prior: float = PRIOR,
) -> Decision:
    """Compare the voices in two files at a named operating point of the model, or at a threshold of one's own.

    point: a name stored in the model, or `bayes`: accept what is likelier than not at the prior.   threshold: a score.
    prior: of one speaker, for the probability. A recording beyond a limit of GATES is not judged: the decision is
    `inconclusive`, with its reason, and llr and probability are None. Raises BadModel when the model has no operating
    points and no threshold is given, or a damaged calibration; BadInput for an unknown or refused point, a prior
    outside (0, 1) and a threshold that is not finite; BadAudio for a recording that cannot be used.
    """
    probability(0.0, prior)  # refuses a prior before anything is read
    calibration = stored_calibration(model)
    used = _own(threshold) if threshold is not None else _point(model, point, prior, calibration)
    waves = {side: wav.read(path, model.rate, model.min_samples) for side, path in (("a", a), ("b", b))}
    quality = {side: of_file(path, waves[side], model.rate) for side, path in (("a", a), ("b", b))}
    score = _score(model, waves, f"{a} and {b}")
    llr = side = None
    if calibration is not None:
        beside = measures(quality["a"], quality["b"], list(calibration.weights))
        llr, side = float(calibration(score, beside)), float(calibration.side(beside))
    from_score = _from_score(used, calibration, side)
    reasons, warnings = _judged(quality, {"a": a, "b": b})
    decision = INCONCLUSIVE if reasons else ACCEPT if _reached(used, score, llr, from_score) else REJECT
    known = llr is not None and not reasons
    return Decision(
        score=score,
        decision=decision,
        threshold=from_score,
        point=used,
        model=model.id,
        a=str(a),
        b=str(b),
        llr=llr if known else None,
        probability=probability(float(llr or 0.0), prior) if known else None,
        prior=prior,
        reason="; ".join(reasons) or None,
        quality=quality,
        warnings=(*warnings, *_provisos(model, calibration)),
    )


def stored_calibration(model: Embedder | Cascade) -> Calibration | None:
    """The calibration in a model's metadata; None where there is none. Raises BadModel for a damaged one."""
    values = model.metadata.get("calibration")
    if values is None:
        return None
    try:
        found = from_dict(values)
    except BadInput as error:
        raise BadModel(f"model {model.id}: {error}") from None
    unknown = [name for name in found.weights if name not in SIDES]
    if unknown:
        raise BadModel(f"model {model.id}: its calibration needs {unknown[0]!r}, unknown here; update sottovoce")
    return found


def _provisos(model: Embedder | Cascade, calibration: Calibration | None) -> list[str]:
    """What is to be said of the calibration itself."""
    if calibration is None:
        return [NO_CALIBRATION]
    about = (model.metadata.get("calibration") or {}).get("pseudo")
    return [PSEUDO.format(recordings=about.get("recordings", "some"))] if isinstance(about, Mapping) else []


def _score(model: Embedder | Cascade, waves: Mapping[str, NDArray[np.float32]], pair: str) -> float:
    score = model.score(*waves.values()).score if isinstance(model, Cascade) else _cosine(model, *waves.values())
    if not math.isfinite(score):
        raise BadModel(f"model {model.id}: the score of {pair} is {score}; run its self-test")
    return score


def _cosine(model: Embedder, a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    left, right = (model.embed(wave).astype(np.float64) for wave in (a, b))
    return float(np.dot(left, right))


def _judged(quality: Mapping[str, Quality], paths: Mapping[str, str | Path]) -> tuple[list[str], list[str]]:
    """Why nothing can be decided, and what else is to be said: measure, limit, advice."""
    reasons: list[str] = []
    warnings: list[str] = []
    for side, found in quality.items():
        for gate in GATES:
            value = getattr(found, gate.measure)
            if value is None:
                continue
            text = f"{paths[side]}: {_SHOWN[gate.measure](value)}, {'at least' if gate.below else 'at most'} "
            if gate.refused is not None and _beyond(gate, value, gate.refused):
                reasons.append(f"{text}{_limit(gate, gate.refused)} is needed; {gate.advice}")
            elif _beyond(gate, value, gate.warned):
                warnings.append(f"{text}{_limit(gate, gate.warned)} is advised; {gate.advice}")
    return reasons, warnings


def _beyond(gate: Gate, value: float, limit: float) -> bool:
    return value < limit if gate.below else value > limit


def _limit(gate: Gate, limit: float) -> str:
    return f"{100 * limit:g} %" if gate.measure == "clipped" else f"{limit:g}"


def _reached(used: Mapping[str, Any], score: float, llr: float | None, threshold: float) -> bool:
    """Where side information counts, the llr is what the point was measured on; else the score."""
    return llr >= used["llr"] if used.get("llr") is not None and llr is not None else score >= threshold


def _from_score(used: Mapping[str, Any], calibration: Calibration | None, side: float | None) -> float:
    """The score from which this pair is accepted: the point's, or where its llr is reached with this pair's quality."""
    if used.get("llr") is None or calibration is None:
        return float(used["threshold"])
    if calibration.knots:
        scores, llrs = np.transpose(calibration.knots)
        return float(np.interp(used["llr"], llrs, scores))
    return float((used["llr"] - calibration.offset - (side or 0.0)) / calibration.scale)


def _own(threshold: float) -> dict[str, Any]:
    if not math.isfinite(threshold):
        raise BadInput(f"threshold {threshold} is not a number; give a cosine between -1 and 1")
    return {"name": "given", "threshold": float(threshold)}


def _point(model: Embedder | Cascade, name: str, prior: float, calibration: Calibration | None) -> dict[str, Any]:
    points = model.metadata.get("operating_points") or {}
    refused = model.metadata.get("operating_points_refused") or {}
    if name == BAYES and calibration is not None:
        return {"name": BAYES, "llr": math.log1p(-prior) - math.log(prior), "measured_on": _measured(model)}
    if name in refused:
        also = ", ".join([*sorted(points), BAYES])
        raise BadInput(f"operating point {name!r} was refused for model {model.id}: {refused[name]}; it has: {also}")
    if not points:
        raise BadModel(
            f"model {model.id}: the file has no operating points, so a score cannot be judged; give a threshold,"
            " or store some with sotto calibrate"
        )
    if name not in points:
        raise BadInput(f"operating point {name!r} is unknown to model {model.id}; it has: {', '.join(sorted(points))}")
    return {**points[name], "name": name}


def _measured(model: Embedder | Cascade) -> str | None:
    about = model.metadata.get("calibration") or {}
    return about.get("measured_on") if isinstance(about, Mapping) else None
