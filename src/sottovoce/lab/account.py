"""What a compression did, beside its bytes: estimated damage, layers that stayed wide and why, speed here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.audio.talker import talker
from sottovoce.bits.formats import Coded
from sottovoce.bits.plan import Plan, Spec
from sottovoce.lab.bench import interleave
from sottovoce.lab.scored import Scored
from sottovoce.runtime.engine import Model
from sottovoce.scores.metrics import eer

WIDE = 8  # bits
SPEED_S = 3.0  # of audio
SPEED_BUDGET_S = 0.2  # of processor time for each of the two files
OURS, FLOAT = "this file", "float"

Shapes = Mapping[str, tuple[int, ...]]
Weights = Mapping[str, NDArray[np.float32]]


def weight_error(coded: Mapping[str, Coded], weights: Weights) -> float:
    """Squared error of all coded weights over their squares: 0 is exact.

    weights: the float ones by layer; between the two may lie a stage that moved them for the better, so this is a
    measure of change, not of harm.
    """
    error = math.fsum(float(np.square(one.decode() - weights[name]).sum()) for name, one in coded.items())
    return error / max(math.fsum(float(np.square(weights[name]).sum()) for name in coded), 1e-30)


def score_damage(file: Scored, reference: Scored) -> dict[str, Any]:
    """Pseudo-trials by the file and by the float network: EER of both (fractions), mean |change of a score|."""
    moved = np.abs(file.scores.astype(np.float64) - reference.scores)
    rates = {name: float(eer(one.scores, one.labels)[0]) for name, one in (("eer", file), ("float_eer", reference))}
    counts = {"targets": int(file.labels.sum()), "nontargets": int((1 - file.labels).sum())}
    return {**rates, "score_change": float(moved.mean()), **counts}


def speed(file: Model, reference: Model) -> dict[str, float]:
    """Least processor time of one thread for 3 s of audio, wave in, embedding out, the two in turn: ms, float_ms."""
    turns = interleave({OURS: file.embed, FLOAT: reference.embed}, talker(SPEED_S, seed=1), SPEED_BUDGET_S)
    least = {name: 1e3 * min(processor for _, processor in one) for name, one in turns.items()}
    return {"seconds": SPEED_S, "ms": least[OURS], "float_ms": least[FLOAT]}


def kept_wide(plan: Plan, shapes: Shapes, why: str) -> list[dict[str, Any]]:
    """Layers of 8 bits or in float in a plan that has narrower ones: [{layer, spec, weights, why}].

    why: who chose the plan: `bits` (a standard plan) or `plan` (the user's).
    """
    specs = plan.resolve(shapes)
    if not any(_narrow(spec) for spec in specs.values()):
        return []
    return [
        {
            "layer": name,
            "spec": "float" if spec is None else str(spec),
            "weights": math.prod(shapes[name]),
            "why": _why(plan, name, why),
        }
        for name, spec in specs.items()
        if not _narrow(spec)
    ]


def because_of_damage(wide: list[dict[str, Any]], damage: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """The same of a plan that a budget chose: what the next narrower format would do.

    damage: layer → text of a spec → damage, as it was measured.
    """
    return [{**one, "why": f"the best use of the budget: {_next(one['spec'], damage[one['layer']])}"} for one in wide]


def _narrow(spec: Spec | None) -> bool:
    return spec is not None and spec.bits < WIDE


def _why(plan: Plan, name: str, why: str) -> str:
    if why == "bits":
        return "the first layer, with less than 0.5 % of the weights: a narrower one would save next to nothing"
    pattern = next(pattern for pattern, _ in plan.entries if fnmatchcase(name, pattern))
    return f"asked for by {pattern!r} of the plan"


def _next(spec: str, damage: Mapping[str, float]) -> str:
    """What the widest of the narrower formats would do."""
    widths = {other: Spec.parse(other).bits for other in damage}
    narrower = [other for other in damage if widths[other] < widths[spec]]
    if not narrower:
        return f"damage {damage[spec]:.1e}"
    near = max(narrower, key=lambda other: widths[other])
    return f"damage {damage[spec]:.1e}, with {widths[near]} bits {damage[near]:.1e}"
