"""Section of a report on calibration: scores as log-likelihood ratios, and what that costs beside the best possible."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from sottovoce.lab import figures, page
from sottovoce.lab.figures import DIM
from sottovoce.lab.page import Section
from sottovoce.lab.report_rates import scored_lists
from sottovoce.lab.report_words import decimal, filled, percent
from sottovoce.lab.scored import Scored
from sottovoce.lab.sources import Found, Json
from sottovoce.scores.isotonic import pool_adjacent

SHOWN = 30  # rows in a figure
WIDEST = 8.0  # nats shown
NAMING = (
    "cascade",
    "name",
    "model",
    "bits",
    "list",
    "group",
    "calibration",
    "fitted_on",
    "calibrated_by",
    "method",
    "split",
)

Named = tuple[str, Json]


def calibration(found: Found) -> Section | None:
    """Cllr beside its minimum, actDCF beside minDCF, and how scores of each file become llrs."""
    parts: list[str] = []
    rows = [row for source in found.of("calibration", "evaluation") for row in costs(source.content)]
    if rows:
        worst = rows[:SHOWN]
        told = "; ".join(f"{name}: {row['cllr']:.3f}, least {row['min_cllr']:.3f}" for name, row in worst)
        draw = partial(_bars, rows=worst)
        title = "Cost of log-likelihood ratios, and the least possible"
        svg = figures.drawn("cllr", title, told, draw, height=1.2 + 0.24 * len(worst))
        words = "Cllr in bits: 0 is perfect, 1 tells nothing. Diamonds: the same scores calibrated perfectly."
        parts += [page.figure(svg, words), page.table("Cost of calibration", *_table(rows))]
    maps = [row for source in found.of("calibration", "inspection") for row in _maps(source.content)]
    if maps:
        told = "; ".join(f"{name}: {one['method']}" for name, one in maps)
        svg = figures.drawn("maps", "Scores to log-likelihood ratios", told, partial(_map_lines, maps=maps), height=3.8)
        parts.append(page.figure(svg, "How each calibration turns a score into a log-likelihood ratio, in nats."))
    best = _best_maps(found)
    for index, (name, systems) in enumerate(best.items()):
        told = "; ".join(f"{model}: llr 0 at {one['score_at_0']:.3f}" for model, one in systems)
        title = f"Best calibration of each file on {name}"
        svg = figures.drawn(f"best-llr-{index}", title, told, partial(_best_lines, systems=systems), height=3.6)
        words = "By isotonic regression on these trials. Where lines lie apart, files need calibrations of their own."
        parts.append(page.figure(svg, f"{name}. {words}"))
    data = {"costs": [{"what": name, **row} for name, row in rows], "maps": [{"what": n, **one} for n, one in maps]}
    data["best"] = [{"list": name, "model": model, **one} for name, rows_ in best.items() for model, one in rows_]
    return Section("calibration", "Calibration", parts, data) if parts else None


def costs(content: Any, said: tuple[str, ...] = ()) -> Iterator[Named]:
    """Every Cllr beside its minimum inside a result, with the names that stand around it."""
    yield from _inside(content, ("cllr", "min_cllr"), said)


def _maps(content: Any) -> Iterator[Named]:
    yield from _inside(content, ("method", "scale", "offset"), ())


def _inside(value: Any, wanted: Sequence[str], said: tuple[str, ...]) -> Iterator[Named]:
    if isinstance(value, Mapping):
        here = [str(value[key]) for key in NAMING if isinstance(value.get(key), (str, int)) and key not in wanted]
        said = tuple(dict.fromkeys([*said, *here]))
        if all(value.get(key) is not None for key in wanted):
            yield ", ".join(said) or "model", value
            return
        for key, one in value.items():
            if isinstance(one, (Mapping, list)):
                keyed = isinstance(one, Mapping) and key not in ("calibration", "calibrations", "lists", "models")
                yield from _inside(one, wanted, (*said, str(key)) if keyed else said)
    elif isinstance(value, list):
        for one in value:
            yield from _inside(one, wanted, said)


def _bars(axes: Axes, rows: Sequence[Named]) -> None:
    figures.side_bars(axes, [name for name, _ in rows], [row["cllr"] for _, row in rows])
    look = {**figures.style(3), "linestyle": "none"}
    axes.plot([row["min_cllr"] for _, row in rows], range(len(rows)), **look, label="least possible")
    axes.set_xlabel("Cllr, bits")


def _table(rows: Sequence[Named]) -> tuple[list[str], list[list[str]]]:
    priors = list(dict.fromkeys(prior for _, row in rows for prior in row.get("act_dcf") or {}))
    heads = ["what", "Cllr", "minCllr", "above it %"]
    heads += [f"{name} {prior}" for prior in priors for name in ("actDCF", "minDCF")]
    cells = []
    for name, row in rows:
        above = row["cllr"] / row["min_cllr"] - 1 if row["min_cllr"] else None
        line = [name, decimal(row["cllr"], 4), decimal(row["min_cllr"], 4), percent(above, 1, sign=True)]
        for prior in priors:
            line += [decimal((row.get(kind) or {}).get(prior), 4) for kind in ("act_dcf", "min_dcf")]
        cells.append(line)
    return filled(heads, cells)


def _map_lines(axes: Axes, maps: Sequence[Named]) -> None:
    scores = np.linspace(-0.2, 1.0, 60)
    for index, (name, one) in enumerate(maps):
        knots = one.get("knots") or []
        llrs = np.interp(scores, *np.transpose(knots)) if knots else one["scale"] * scores + one["offset"]
        axes.plot(scores, np.clip(llrs, -WIDEST, WIDEST), **figures.line(index), label=figures.short(name))
    _llr_axes(axes)


def _llr_axes(axes: Axes) -> None:
    axes.axhline(0, color=DIM, linewidth=0.9)
    axes.set_xlabel("score")
    axes.set_ylabel("llr, nats")
    figures.legend_below(axes, 3)


def _best_maps(found: Found) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """The best rising map of each file's scores on each list."""
    return {name: [(model, best_map(one)) for model, one in systems] for name, systems in scored_lists(found).items()}


def best_map(one: Scored) -> dict[str, Any]:
    """Isotonic regression of labels on scores as steps: `scores` (where each begins), `llrs` (nats, within ±8).

    `score_at_0`: the first score from which targets are the likelier. Brümmer and du Preez 2006.
    """
    distinct, place = np.unique(np.asarray(one.scores, dtype=np.float64), return_inverse=True)
    trials = np.bincount(place).astype(np.float64)
    share = pool_adjacent(np.bincount(place, weights=one.labels) / trials, trials)
    starts = np.flatnonzero(np.diff(share, prepend=-1.0))
    prior = float(np.mean(one.labels))
    llrs = _llrs(share[starts]) - math.log(prior / (1.0 - prior))
    above = np.flatnonzero(llrs >= 0)
    zero = float(distinct[starts][above[0]]) if len(above) else float(distinct[-1])
    return {
        "scores": [round(float(value), 5) for value in distinct[starts]],
        "llrs": [round(float(value), 4) for value in np.clip(llrs, -WIDEST, WIDEST)],
        "score_at_0": zero,
        "last": float(distinct[-1]),
    }


def _llrs(share: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(share) - np.log1p(-share))


def _best_lines(axes: Axes, systems: Sequence[tuple[str, Json]]) -> None:
    for index, (model, one) in enumerate(systems):
        look = {**figures.line(index), "drawstyle": "steps-post"}
        axes.plot([*one["scores"], one["last"]], [*one["llrs"], one["llrs"][-1]], **look, label=figures.short(model))
    axes.set_ylim(-WIDEST - 0.3, WIDEST + 0.3)
    _llr_axes(axes)
