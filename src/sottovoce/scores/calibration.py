"""Score → natural log-likelihood ratio (llr): affine, with or without side information; isotonic; or between the two.

`splines` has the way that is the default.

A calibration is fitted on scored trials, kept as plain values in the model's file, and belongs to that file alone:
rounding weights to other widths moves the scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sottovoce.errors import BadInput
from sottovoce.scores.curves import checked
from sottovoce.scores.isotonic import pool_adjacent

RIDGE = 1e-3  # weight of the squared weights in the loss where the trials are separable
AFFINE_SPEAKERS = 20.0  # that the affine calibration counts as in a shrunk one
CELLS = 256  # equal steps of score that a shrunk calibration and a spline look at
_STEPS = 100  # of Newton's method; a handful is usual
_CLOSE = 1e-10  # gradient at which the minimum is reached
TURNED = "calibration: scores do not rise from nontargets to targets; are the labels the right way round?"
_STEEP = 50.0  # a weight per standard deviation that no overlapping scores ask for

Real = NDArray[np.float64]
Marks = NDArray[np.bool_]
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Calibration:
    """How scores become llrs: `scale * score + offset + Σ weight * measure`, or points joined by lines (the others)."""

    method: str  # 'affine', 'isotonic' (also a shrunk one) or 'spline'
    targets: int  # trials it was fitted on
    nontargets: int
    prior: float = 0.5  # weight of the targets in the fit
    scale: float = 0.0
    offset: float = 0.0
    weights: Mapping[str, float] = field(default_factory=dict)  # name of a measure → its weight
    ridge: float = 0.0  # above 0: the trials were separable, the slope is held by a ridge and not by the trials
    knots: tuple[tuple[float, float], ...] = ()  # (score, llr), both rising; not affine
    affine_speakers: float = 0.0  # isotonic only: as so many speakers counts the affine calibration it is drawn to
    stiffness: float = 0.0  # spline only: see `splines.spline`

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and largest llr that so many trials can speak for, nats: ln of one more than their number.

        With n nontargets, none of them this high, nobody knows whether fewer than one in n + 1 is (rule of succession).
        """
        return -math.log(self.targets + 1), math.log(self.nontargets + 1)

    def __call__(self, scores: ArrayLike, measures: Mapping[str, ArrayLike] | None = None) -> Real:
        """The llr of each trial: (trials,) float64, nats, within `bounds`.

        scores: (trials,) or one number   measures: for each name in `weights`, of the same shape. Raises BadInput for
        a measure that is missing.
        """
        values = np.asarray(scores, dtype=np.float64)
        if self.knots:
            llrs = np.interp(values, *np.transpose(self.knots))
        else:
            llrs = self.scale * values + self.offset + self.side(measures or {})
        return np.asarray(np.clip(llrs, *self.bounds), dtype=np.float64)

    def side(self, measures: Mapping[str, ArrayLike]) -> Real:
        """What side information adds to the llr, nats. Raises BadInput for a measure that is missing."""
        missing = [name for name in self.weights if name not in measures]
        if missing:
            raise BadInput(f"calibration: {missing[0]!r} is not measured; this calibration needs {list(self.weights)}")
        total = np.zeros(())
        for name, weight in self.weights.items():
            total = total + weight * np.asarray(measures[name], dtype=np.float64)
        return total

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "weights": dict(self.weights), "knots": [list(knot) for knot in self.knots]}


def from_dict(values: Mapping[str, Any]) -> Calibration:
    """A calibration from plain values; entries that are not known are passed over. Raises BadInput."""
    try:
        found = Calibration(
            method=str(values["method"]),
            targets=int(values["targets"]),
            nontargets=int(values["nontargets"]),
            prior=float(values.get("prior", 0.5)),
            scale=float(values.get("scale", 0.0)),
            offset=float(values.get("offset", 0.0)),
            weights={str(name): float(weight) for name, weight in values.get("weights", {}).items()},
            ridge=float(values.get("ridge", 0.0)),
            knots=tuple((float(score), float(llr)) for score, llr in values.get("knots", ())),
            affine_speakers=float(values.get("affine_speakers", 0.0)),
            stiffness=float(values.get("stiffness", 0.0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadInput(f"calibration: its entries are damaged ({error!r}); calibrate the model again") from None
    _check(found)
    return found


def _check(found: Calibration) -> None:
    numbers = [found.scale, found.offset, *found.weights.values(), *(value for knot in found.knots for value in knot)]
    rising = all(np.all(np.diff(side) >= 0) for side in np.transpose(found.knots)) if found.knots else True
    joined = len(found.knots) > 1 and rising
    usable = {"affine": found.scale > 0 and not found.knots, "isotonic": joined, "spline": joined}
    counted = min(found.targets, found.nontargets) > 0
    if not (counted and np.isfinite(numbers).all() and usable.get(found.method, False)):
        raise BadInput(f"calibration: method {found.method!r} with these numbers does not rise; calibrate again")


def affine(
    scores: ArrayLike, labels: ArrayLike, prior: float = 0.5, measures: Mapping[str, ArrayLike] | None = None
) -> Calibration:
    """Logistic regression of the labels on score and measures, targets weighing `prior` in all.

    scores: (trials,)   labels: (trials,) 1 for target   measures: name → (trials,), side information that is added
    linearly (quality measure functions). Deterministic: Newton's method from 0 on standardised columns. Where score
    and measures separate the classes no finite slope is best: a ridge of 1e-3 then holds it, and `ridge` says so.
    Raises BadInput for scores that are not finite or of one class, a prior outside (0, 1), a measure that never
    differs, and scores that do not rise towards targets. Source: prior-weighted logistic regression, Brümmer and du
    Preez 2006; quality measures as in Thienpondt et al. 2021, "The IDLab VoxSRC-20 submission".
    """
    values, target = checked(scores, labels)
    if not 0.0 < prior < 1.0:
        raise BadInput(f"calibration: a prior of {prior} is not between 0 and 1")
    counts = int(target.sum()), int((~target).sum())
    if not measures:
        distinct, place = np.unique(values, return_inverse=True)
        slope, offset, ridge = line_of(
            distinct, [np.bincount(place[kind], minlength=len(distinct)) for kind in (target, ~target)], prior
        )
        return Calibration("affine", *counts, prior, slope, offset, ridge=ridge)
    columns = {"score": values, **{name: np.asarray(one, np.float64) for name, one in measures.items()}}
    table, centre, spread = _standardised(columns)
    found, ridge = _held(table, target, np.ones(len(target)), prior, _apart(values, target))
    slopes = found[:-1] / spread
    if slopes[0] <= 0:
        raise BadInput(TURNED)
    weights = {name: float(weight) for name, weight in zip(measures, slopes[1:], strict=True)}
    return Calibration("affine", *counts, prior, float(slopes[0]), float(found[-1] - slopes @ centre), weights, ridge)


def line_of(scores: Real, counts: Sequence[Whole], prior: float) -> tuple[float, float, float]:
    """Slope, offset and ridge of the affine calibration of trials counted by score.

    scores: (n,) rising   counts: of targets and of nontargets, (n,) each. Raises BadInput as `affine`.
    """
    rows = [np.flatnonzero(count) for count in counts]
    values = np.concatenate([scores[row] for row in rows])
    target = np.repeat([True, False], [len(row) for row in rows])
    trials = np.concatenate([count[row] for row, count in zip(rows, counts, strict=True)]).astype(np.float64)
    table, centre, spread = _standardised({"score": values}, trials)
    found, ridge = _held(table, target, trials, prior, _apart(values, target))
    slope = float(found[0] / spread[0])
    if slope <= 0:
        raise BadInput(TURNED)
    return slope, float(found[1] - slope * centre[0]), ridge


def _held(table: Real, target: Marks, trials: Real, prior: float, apart: bool) -> tuple[Real, float]:
    """As `minimum`, and the ridge that it needs: 0, or RIDGE where one threshold separates the classes (`apart`)."""
    found = None if apart else minimum(table, target, prior, 0.0, trials)
    if found is not None and np.abs(found[:-1]).max() <= _STEEP and not _apart(table @ found, target):
        return found, 0.0
    found = minimum(table, target, prior, RIDGE, trials)
    assert found is not None, "a ridge makes the loss strictly convex"
    return found, RIDGE


def minimum(
    table: Real, target: Marks, prior: float, ridge: float, trials: Real | None = None, stiff: Real | None = None
) -> Real | None:
    """Weights of the columns that minimise the prior-weighted logistic loss; None where there is no finite minimum.

    table: (rows, columns), the last all ones   ridge: adds ridge / 2 times the squared weights, but the last.
    trials: (rows,) how many trials each row stands for; left out, one.   stiff: (columns, columns) instead of the
    ridge: adds half of weights · stiff · weights, and no column need be ones.
    """
    counts = np.ones(len(target)) if trials is None else trials
    heavy = counts * np.where(target, prior / counts[target].sum(), (1.0 - prior) / counts[~target].sum())
    held = np.diag(np.r_[np.full(table.shape[1] - 1, ridge), 0.0]) if stiff is None else stiff
    weights = np.zeros(table.shape[1])
    shift = math.log(prior) - math.log1p(-prior)

    def loss(at: Real) -> float:
        margin = np.where(target, -1.0, 1.0) * (table @ at + shift)
        return float(heavy @ np.logaddexp(0.0, margin) + 0.5 * at @ held @ at)

    now = loss(weights)
    for _ in range(_STEPS):
        chance = 1.0 / (1.0 + np.exp(-np.clip(table @ weights + shift, -500.0, 500.0)))
        slope = table.T @ (heavy * (chance - target)) + held @ weights
        if np.abs(slope).max() < _CLOSE:
            return weights
        bend = (table * (heavy * chance * (1.0 - chance))[:, None]).T @ table + held
        try:
            step = np.linalg.solve(bend, slope)
        except np.linalg.LinAlgError:
            return None
        size = 1.0
        while (after := loss(weights - size * step)) > now and size > 1e-6:
            size /= 2.0
        if after >= now:  # nothing left to gain in floating point
            return weights if np.abs(slope).max() < 1e-6 else None
        weights, now = weights - size * step, after
    return None


def isotonic(scores: ArrayLike, labels: ArrayLike) -> Calibration:
    """The rising map that fits the labels best (PAV), blocks joined by lines between their mean scores.

    One target below all scores and one nontarget above them are added, so that every llr is finite (in the manner of
    Laplace's rule; our reading). Follows the trials closely: needs many. Raises BadInput as `affine`. Source: Brümmer
    and du Preez 2006; Zadrozny and Elkan 2002.
    """
    values, target = checked(scores, labels)
    edge = [float(values.min()), float(values.max())]
    distinct, place = np.unique(np.concatenate([values, edge]), return_inverse=True)
    hits = np.bincount(place, weights=np.concatenate([target, [1.0, 0.0]]))
    trials = np.bincount(place).astype(np.float64)
    knots = _knots(distinct, hits / trials, trials, float((target.sum() + 1) / (len(target) + 2)))
    return Calibration("isotonic", int(target.sum()), int((~target).sum()), knots=knots)


def shrunk(scores: ArrayLike, labels: ArrayLike, speakers: int, prior: float = 0.5) -> Calibration:
    """Between isotonic and affine: few speakers are given a line, many the shape that their trials have.

    The rising map (PAV) that fits (speakers * label + AFFINE_SPEAKERS * p) / (speakers + AFFINE_SPEAKERS) best, where p
    is what the affine calibration says of the trial. Scores are taken in CELLS equal steps; knots are rounded.
    scores: (trials,)   labels: (trials,) 1 for target   speakers: how many are heard in the trials: they, not trials,
    are what is independent   prior: weight of the targets in all. Ours; the parts are those of `affine` and `isotonic`.
    Raises BadInput as `affine`, and for fewer than one speaker.
    """
    centres, hits, misses = in_cells(scores, labels, speakers)
    slope, offset, ridge = line_of(centres, (hits, misses), prior)
    heavy = hits * prior / hits.sum(), misses * (1.0 - prior) / misses.sum()
    mass = heavy[0] + heavy[1]
    odds = slope * centres + offset + math.log(prior) - math.log1p(-prior)
    believed = 1.0 / (1.0 + np.exp(-np.clip(odds, -500.0, 500.0)))
    mixed = (speakers * heavy[0] / mass + AFFINE_SPEAKERS * believed) / (speakers + AFFINE_SPEAKERS)
    knots = tuple((round(score, 6), round(llr, 5)) for score, llr in _knots(centres, mixed, mass, prior))
    trials = int(hits.sum()), int(misses.sum())
    return Calibration("isotonic", *trials, prior, ridge=ridge, knots=knots, affine_speakers=AFFINE_SPEAKERS)


def in_cells(scores: ArrayLike, labels: ArrayLike, speakers: int) -> tuple[Real, Whole, Whole]:
    """Trials in CELLS equal steps of score: mean score, targets and nontargets of each step that has any.

    Raises BadInput as `affine`, and for fewer than one speaker.
    """
    values, target = checked(scores, labels)
    if speakers < 1:
        raise BadInput(f"calibration: {speakers} speakers cannot have made these trials")
    low, step = values.min(), np.ptp(values) / CELLS or 1.0
    cell = np.minimum((values - low) / step, CELLS - 1).astype(np.int64)
    counts = [np.bincount(cell[kind], minlength=CELLS) for kind in (target, ~target)]
    used = np.flatnonzero(counts[0] + counts[1])
    hits, misses = (count[used] for count in counts)
    return np.bincount(cell, weights=values)[used] / (hits + misses), hits, misses


def _knots(scores: Real, share: Real, mass: Real, prior: float) -> tuple[tuple[float, float], ...]:
    """(score, llr) of each block of the rising map of `share`, the part of targets at rising scores, given `mass`."""
    risen = pool_adjacent(share, mass)
    starts = np.flatnonzero(np.diff(risen, prepend=-1.0))
    if len(starts) < 2:
        raise BadInput(TURNED)
    centres = np.add.reduceat(scores * mass, starts) / np.add.reduceat(mass, starts)
    llrs = np.log(risen[starts] / (1.0 - risen[starts])) - math.log(prior / (1.0 - prior))
    return tuple((float(score), float(llr)) for score, llr in zip(centres, llrs, strict=True))


def probability(llr: float, prior: float) -> float:
    """Probability that one speaker is heard, 0..1, given an llr in nats and the prior of it. Raises BadInput."""
    if not 0.0 < prior < 1.0:
        raise BadInput(f"a prior of {prior} is not between 0 and 1; give the share of pairs that are of one speaker")
    odds = llr + math.log(prior) - math.log1p(-prior)
    return 1.0 / (1.0 + math.exp(-odds)) if odds >= 0 else math.exp(odds) / (1.0 + math.exp(odds))


def _apart(values: Real, target: Marks) -> bool:
    """Whether one threshold separates the classes, also where the two touch: no finite slope is then best."""
    return bool(values[target].min() >= values[~target].max() or values[target].max() <= values[~target].min())


def _standardised(columns: Mapping[str, Real], trials: Real | None = None) -> tuple[Real, Real, Real]:
    """(rows, columns + 1) with mean 0 and deviation 1 and a last column of ones; the means; the deviations.

    trials: (rows,) how many each row stands for; left out, one.
    """
    rows = {len(column) for column in columns.values() if column.ndim == 1}
    if len(rows) != 1 or not all(column.ndim == 1 and np.isfinite(column).all() for column in columns.values()):
        raise BadInput("calibration: measures must be rows of finite numbers, one for each score")
    table = np.stack(list(columns.values()), axis=1)
    centre = np.average(table, axis=0, weights=trials)
    spread = np.sqrt(np.average((table - centre) ** 2, axis=0, weights=trials))
    flat = [
        name for name, least, most in zip(columns, table.min(axis=0), table.max(axis=0), strict=True) if least == most
    ]
    if flat:
        raise BadInput(f"calibration: {flat[0]!r} is the same in all trials and tells nothing; leave it out")
    return np.hstack([(table - centre) / spread, np.ones((len(table), 1))]), centre, spread
