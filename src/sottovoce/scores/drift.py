"""Two systems on the same trials: how far scores move, which decisions flip, and where over bits it begins to cost.

The definitions are those of arXiv 2606.08078: drift is the other system's score minus the reference's; the margin of a
trial is the distance of its reference score from the reference's EER threshold; a flip is harmful where the reference
decides rightly and the other wrongly at that same threshold (that the threshold is the same is our reading), and
beneficial where it is the other way round. The paper's bin edges are not public: EDGES are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sottovoce.errors import BadInput
from sottovoce.scores.resampling import speaker_numbers

EDGES = (0.05, 0.15)  # of the margin, in units of the cosine: near below the first, far from the last on
BIN_NAMES = {1: ("all",), 2: ("near", "far"), 3: ("near", "middle", "far")}

Real = NDArray[np.float64]
Marks = NDArray[np.bool_]
Sums = Mapping[str, Any]  # name → weighted sum over trials: a number, or one for each draw


def flips(reference: ArrayLike, other: ArrayLike, labels: ArrayLike, threshold: float) -> tuple[Marks, Marks]:
    """Which trials flip for the worse and which for the better at one threshold: (trials,) each.

    A trial is accepted when its score is at least the threshold. Raises BadInput for rows that do not fit or NaN.
    """
    first, second, target = _checked(reference, other, labels)
    right, still = (first >= threshold) == target, (second >= threshold) == target
    return right & ~still, ~right & still


def margin_bins(margins: ArrayLike, edges: Sequence[float] = EDGES) -> NDArray[np.int64]:
    """The bin of each margin, from 0: bin i holds edges[i-1] <= margin < edges[i]. Raises BadInput for bad edges."""
    check_edges(edges)
    return np.searchsorted(np.asarray(edges, dtype=np.float64), np.asarray(margins), side="right")


def check_edges(edges: Sequence[float]) -> None:
    """Raises BadInput unless the edges of margin bins are positive and rise."""
    if any(not low < high for low, high in zip((0.0, *edges), (*edges, np.inf), strict=True)):
        raise BadInput(f"margin edges {', '.join(map(str, edges))}: give positive numbers that rise, as in 0.05,0.15")


def compare_scores(
    reference: ArrayLike,
    other: ArrayLike,
    labels: ArrayLike,
    threshold: float,
    enrol_speaker: ArrayLike,
    test_speaker: ArrayLike,
    *,
    edges: Sequence[float] = EDGES,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Drift, correlation and flips of one system against the reference, with 95 % intervals, as plain values for JSON.

    reference, other, labels: (trials,)   threshold: the reference's EER threshold on these trials.
    returns: mean_abs, mean, target_mean, nontarget_mean (of the drift), correlation (Pearson), each beside
    `<name>_interval`; `flips`: harmful, beneficial (counts), their rates over all trials, and `bins`, where rates are
    over the trials of the bin (arXiv 2606.08078; that all trials of a bin count is our reading). Intervals are by
    bootstrap over speakers, the draws of `metrics.intervals`; None where `draws` is 0, speakers are fewer than two or
    the figure is not known. Raises BadInput as `flips`.
    """
    first, second, target = _checked(reference, other, labels)
    bins = margin_bins(np.abs(first - threshold), edges)
    rows = _rows(first, second, target, threshold, bins, len(edges) + 1)
    total = {name: row.sum() for name, row in rows.items()}
    names, numbers = list(rows), _figures(total, len(edges) + 1)
    bounds: dict[str, list[float] | None] = dict.fromkeys(numbers)
    if draws and len(np.union1d(enrol_speaker, test_speaker)) > 1:
        drawn = redrawn_sums(np.stack([rows[name] for name in names]), enrol_speaker, test_speaker, draws, seed)
        found = _figures(dict(zip(names, drawn.T, strict=True)), len(edges) + 1)
        bounds = {name: _percentiles(values) for name, values in found.items()}
    return _described(total, numbers, bounds, edges)


def redrawn_sums(
    values: Real, enrol_speaker: ArrayLike, test_speaker: ArrayLike, draws: int = 1000, seed: int = 0
) -> Real:
    """Weighted sums over trials under draws of speakers: (rows, trials) → (draws, rows).

    A trial weighs as often as its speaker was drawn, a trial of two speakers the product, as in `metrics.redrawn`, and
    one seed gives the draws that it gives there. Trials between the same two speakers are summed once, so that a draw
    costs one pass over pairs of speakers. Raises BadInput for fewer than two speakers.
    """
    first, second, speakers = speaker_numbers(enrol_speaker, test_speaker, values.shape[1])
    pairs, of = np.unique(first * speakers + second, return_inverse=True)
    summed = np.stack([np.bincount(of, weights=row, minlength=len(pairs)) for row in values])
    left, right = pairs // speakers, pairs % speakers
    rng = np.random.default_rng(seed)
    found = np.empty((draws, len(values)))
    for draw in range(draws):
        times = np.bincount(rng.integers(speakers, size=speakers), minlength=speakers).astype(np.float64)
        found[draw] = summed @ (times[left] * np.where(left == right, 1.0, times[right]))
    return found


def mean_of_sets(in_domain: Sequence[float], out_of_domain: Sequence[float] = ()) -> dict[str, float | None]:
    """Plain means of one figure over test sets: `in_domain`, `out_of_domain` and `all` of them (arXiv 2606.08078).

    Every set counts alike in `all`, so that three sets in and two out of domain give (3·ID + 2·OOD) / 5. Raises
    BadInput when there is no set.
    """
    if not in_domain and not out_of_domain:
        raise BadInput("mean over test sets: there is none")
    parts = {"in_domain": in_domain, "out_of_domain": out_of_domain, "all": [*in_domain, *out_of_domain]}
    return {name: float(np.mean(values)) if values else None for name, values in parts.items()}


def knee(costs: Sequence[float], losses: Sequence[float]) -> int | None:
    """Where a falling curve bends most: the point farthest below the line between its ends, both axes scaled to 0..1.

    costs: for example bits a weight   losses: for example mean absolute drift. Of several points of one cost only the
    one of least loss counts.   returns: its place in the sequences, or None for fewer than three costs or a curve that
    nowhere lies below the line. Satopää 2011 (Kneedle), without smoothing; what arXiv 2606.08078 calls a knee is not
    public: our reading.
    """
    order = sorted(range(len(costs)), key=lambda i: (costs[i], losses[i]))
    kept = [i for at, i in enumerate(order) if at == 0 or costs[i] != costs[order[at - 1]]]
    if len(kept) < 3:
        return None
    x, y = (np.array([values[i] for i in kept], dtype=np.float64) for values in (costs, losses))
    across, down = (x - x[0]) / (x[-1] - x[0]), y - y[0]
    below = down[-1] * across - down
    best = int(np.argmax(below))
    return kept[best] if down[-1] < 0 and below[best] > 1e-12 * abs(down[-1]) else None


def _checked(reference: ArrayLike, other: ArrayLike, labels: ArrayLike) -> tuple[Real, Real, Marks]:
    first, second = (np.asarray(scores, dtype=np.float64) for scores in (reference, other))
    marks = np.asarray(labels)
    if first.ndim != 1 or first.shape != second.shape or first.shape != marks.shape or not len(first):
        raise BadInput(
            f"drift: {first.shape} and {second.shape} scores and {marks.shape} labels are not rows of one length"
        )
    for scores in (first, second):
        bad = np.flatnonzero(~np.isfinite(scores))
        if bad.size:
            raise BadInput(f"drift: score {bad[0]} of {len(scores)} is {scores[bad[0]]}; scores must be finite")
    if not np.isin(marks, (0, 1)).all():
        raise BadInput("drift: labels must be 1 (target) or 0 (nontarget)")
    return first, second, marks.astype(bool)


def _rows(
    first: Real, second: Real, target: Marks, threshold: float, bins: NDArray[np.int64], count: int
) -> dict[str, Real]:
    """What is summed over trials, by name: (trials,) each. Scores are centred, so that moments lose no digits."""
    drift, x, y = second - first, first - first.mean(), second - second.mean()
    harmful, beneficial = flips(first, second, target, threshold)
    right = (first >= threshold) == target
    rows = {"trials": np.ones_like(drift), "targets": target, "abs": np.abs(drift), "drift": drift}
    rows |= {"target_drift": drift * target, "x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y}
    rows |= {"harmful": harmful, "beneficial": beneficial}
    for index in range(count):
        inside = bins == index
        rows |= {f"trials {index}": inside, f"right {index}": inside & right}
        rows |= {f"harmful {index}": inside & harmful, f"beneficial {index}": inside & beneficial}
    return {name: row.astype(np.float64) for name, row in rows.items()}


def _figures(sums: Sums, bins: int) -> dict[str, Any]:
    """Figures from sums: numbers from numbers, (draws,) from (draws,); NaN where there is nothing to divide by."""
    trials, targets = sums["trials"], sums["targets"]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            "mean_abs": np.divide(sums["abs"], trials),
            "mean": np.divide(sums["drift"], trials),
            "target_mean": np.divide(sums["target_drift"], targets),
            "nontarget_mean": np.divide(sums["drift"] - sums["target_drift"], trials - targets),
            "correlation": _pearson(sums),
            "harmful": np.divide(sums["harmful"], trials),
            "beneficial": np.divide(sums["beneficial"], trials),
        }
        for index in range(bins):
            for kind in ("harmful", "beneficial"):
                found[f"{kind} {index}"] = np.divide(sums[f"{kind} {index}"], sums[f"trials {index}"])
    return found


def _pearson(sums: Sums) -> Any:
    n = sums["trials"]
    spread = [sums[two] - sums[one] ** 2 / n for one, two in (("x", "xx"), ("y", "yy"))]
    together = sums["xy"] - sums["x"] * sums["y"] / n
    return np.divide(together, np.sqrt(np.maximum(spread[0], 0.0) * np.maximum(spread[1], 0.0)))


def _percentiles(values: Real) -> list[float] | None:
    kept = values[np.isfinite(values)]
    return [float(edge) for edge in np.percentile(kept, [2.5, 97.5])] if len(kept) else None


def _described(
    total: Sums, numbers: Mapping[str, Any], bounds: Mapping[str, list[float] | None], edges: Sequence[float]
) -> dict[str, Any]:
    """The figures in the shape that JSON has them."""

    def rate(kind: str, at: str = "") -> dict[str, Any]:
        name = f"{kind}{at}"
        return {
            kind: int(total[name]),
            f"{kind}_rate": _number(numbers[name]),
            f"{kind}_rate_interval": bounds[name],
        }

    plain = ("mean_abs", "mean", "target_mean", "nontarget_mean", "correlation")
    found: dict[str, Any] = {}
    for name in plain:
        found |= {name: _number(numbers[name]), f"{name}_interval": bounds[name]}
    names = BIN_NAMES.get(len(edges) + 1, tuple(f"bin {index + 1}" for index in range(len(edges) + 1)))
    bins = [
        {
            "bin": name,
            "from": float(low),
            "to": float(high) if np.isfinite(high) else None,
            "trials": int(total[f"trials {index}"]),
            "right": int(total[f"right {index}"]),
            **rate("harmful", f" {index}"),
            **rate("beneficial", f" {index}"),
        }
        for index, (name, low, high) in enumerate(zip(names, (0.0, *edges), (*edges, np.inf), strict=True))
    ]
    return {**found, "flips": {**rate("harmful"), **rate("beneficial"), "bins": bins}}


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
