"""Section of a report on calibration: scores as log-likelihood ratios, and what that costs beside the best possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from sottovoce.lab import figures, page
from sottovoce.lab.figures import DIM
from sottovoce.lab.page import Section
from sottovoce.lab.report_rates import scored_lists
from sottovoce.lab.report_words import (
    count,
    decimal,
    file_name,
    filled,
    list_name,
    model_name,
    percent,
    whisker,
    with_interval,
)
from sottovoce.lab.scored import Scored
from sottovoce.lab.sources import Found, Json, Source
from sottovoce.scores.isotonic import pool_adjacent

SHOWN = 30  # rows in a figure
WIDEST = 8.0  # nats shown
MEASURES = {"cllr": "Cllr", "dcf 0.01": "actDCF 0.01", "dcf 0.5": "actDCF 0.5"}

Named = tuple[str, Json]


def calibration(found: Found) -> Section | None:
    """What llrs cost beside the best possible, how scores become llrs, and the named points of each file."""
    parts: list[str] = []
    data: list[Json] = []
    for index, source in enumerate(found.of("calibrations")):
        parts += [page.heading(source.name), *_held_out(source, f"calibrations-{index}")]
        data.append({"source": source.name, **source.content})
    stored = [(file_name(one), one) for one in (source.content for source in found.of("calibration", "inspection"))]
    stored = [(name, one) for name, one in stored if one.get("calibration")]
    rows = [row for name, one in stored for row in _costs(name, one)]
    rows += [
        (f"{model_name(one)} on {list_name(one)}", one)
        for source in found.of("evaluation")
        for one in (source.content.get("lists") or [source.content])
        if one.get("cllr") is not None
    ]
    if rows:
        told = "; ".join(f"{name}: {row['cllr']:.3f}, least {row['min_cllr']:.3f}" for name, row in rows[:SHOWN])
        title = "Cost of log-likelihood ratios, and the least possible"
        height = 1.2 + 0.24 * min(len(rows), SHOWN)
        svg = figures.drawn("cllr", title, told, partial(_bars, rows=rows[:SHOWN]), height=height)
        words = "Cllr in bits: 0 is perfect, 1 tells nothing. Diamonds: the same scores calibrated perfectly."
        parts += [page.figure(svg, words), page.table("Cost of calibration", *_table(rows))]
    parts += [part for name, one in stored for part in _points(name, one)]
    maps = [(name, one["calibration"]) for name, one in stored]
    if maps:
        told = "; ".join(f"{name}: {one.get('method')}" for name, one in maps)
        svg = figures.drawn("maps", "Scores to log-likelihood ratios", told, partial(_map_lines, maps=maps), height=3.8)
        words = "How each stored calibration turns a score into a log-likelihood ratio, side information left out."
        parts.append(page.figure(svg, words))
    best = _best_maps(found)
    parts += _best_figures(best)
    data += [{"model": name, "calibration": one["calibration"]} for name, one in stored]
    data += [{"list": name, "model": model, "best": one} for name, systems in best.items() for model, one in systems]
    return Section("calibration", "Calibration", parts, data) if parts else None


def _held_out(source: Source, name: str) -> list[str]:
    """Results of benchmarks/calibration.py: cost over the least cost on speakers that were not fitted on."""
    models = source.content["models"]
    keys = [key for key in MEASURES if key in _own(next(iter(models.values())))]
    told = "; ".join(
        f"{model}: own {_ratio(_own(one), keys[0])}, that of the first {_ratio(one.get(FIRSTS), keys[0])}"
        for model, one in models.items()
    )
    title = "Cost of calibration over the least cost, on other speakers"
    draw = partial(_ratio_panels, models=models, keys=keys)
    svg = figures.drawn(name, title, told, draw, height=3.7, shape=(1, len(keys)), sharey=True, squeeze=False)
    words = "1 is the best that these scores allow; dashed: 10 % above it. Whiskers: least and largest of all dealings."
    heads = ["file", "calibration", *(f"{MEASURES[key]} over least" for key in keys)]
    rows = [
        [model, method, *(_ratio(one, key) for key in keys)]
        for model, each in models.items()
        for method, one in [*each["pooled"].items(), ("that of the first file", each.get(FIRSTS))]
    ]
    lists = [
        [model, part, told_as, *(_ratio(one, key) for key in keys)]
        for model, each in models.items()
        for told_as, kind in (("all lists", "pooled_calibration_on_each_list"), ("it", "calibrated_on_the_list_itself"))
        for part, one in (each.get(kind) or {}).items()
    ]
    shown = [
        page.figure(svg, f"{title}. {words}"),
        page.table("Fitted on other speakers, all lists", heads, rows),
    ]
    if floor := source.content.get("floor"):
        perfect = [[part, *(_ratio(one, key) for key in keys)] for part, one in floor.items()]
        shown.append(page.table("What perfect log-likelihood ratios would show", ["list", *heads[2:]], perfect))
    if errors := _supports(models):
        heads_of = ["file", "list", "prior", "misses", "most of one speaker %", "false accepts", "most of one pair %"]
        shown.append(page.table("Whose errors these costs stand on", [*heads_of, "few"], errors))
    if lists:
        shown.append(page.table("List by list", ["file", "list", "calibrated on", *heads[2:]], lists))
    return shown


def _supports(models: Json) -> list[list[str]]:
    """A row for each file, list and prior whose errors were counted by speaker."""
    return [
        [
            *(model, part, prior),
            *(count(one["misses"]), percent(one["misses_of_one_speaker"], 0)),
            *(count(one["false_accepts"]), percent(one["false_accepts_of_one_pair"], 0)),
            "few" if one["few"] else "",
        ]
        for model, each in models.items()
        for part, priors in (each.get("support") or {}).items()
        for prior, one in priors.items()
    ]


FIRSTS = "with_the_calibration_of_the_first"


def _own(model: Json) -> Json:
    """The costs of a file under its own calibration, by the first method."""
    return next(iter(model["pooled"].values())) or {}


def _ratio(one: Json | None, key: str) -> str:
    return decimal(((one or {}).get(key) or {}).get("ratio"))


def _ratio_panels(axes: Any, models: Json, keys: Sequence[str]) -> None:
    for panel, key in zip(axes[0], keys, strict=True):
        for index, (label, read) in enumerate((("its own", _own), ("that of the first file", _firsts))):
            known = [(at, (read(one) or {}).get(key) or {}) for at, one in enumerate(models.values())]
            known = [(at, one) for at, one in known if one.get("ratio") is not None]
            values = [one["ratio"] for _, one in known]
            wide = whisker(values, [one.get("ratio_range") for _, one in known])
            look = {**figures.style(index), "linestyle": "none", "elinewidth": 0.8, "capsize": 2}
            panel.errorbar([at + 0.16 * (index - 0.5) for at, _ in known], values, yerr=wide, **look, label=label)
        panel.axhline(1.1, color=DIM, linestyle="--", linewidth=1)
        panel.axhline(1.0, color=DIM, linewidth=0.9)
        panel.set_xticks(range(len(models)), [figures.short(name, 14) for name in models], rotation=45, ha="right")
        panel.set_title(MEASURES[key], loc="left")
        panel.grid(False, axis="x")
    axes[0, 0].set_ylabel("cost over the least cost")
    figures.legend_below(axes[0, 0])


def _firsts(model: Json) -> Json | None:
    return model.get(FIRSTS)


def _costs(name: str, content: Json) -> list[Named]:
    """What a stored calibration costs: before, as fitted, and on speakers left out, where these are told."""
    found = content["calibration"]
    rows = [(f"{name}, before", content.get("before")), (f"{name}, as fitted", found)]
    rows += [(f"{name}, on speakers left out", one) for one in found.get("held_out") or []]
    return [(label, row) for label, row in rows if row and row.get("cllr") is not None]


def _points(name: str, content: Json) -> list[str]:
    """The named operating points of a file, and those that its trials could not support."""
    heads = ["point", "threshold", "false accepts %", "misses %", "trials", "rule"]
    rows = [
        [
            point,
            decimal(one.get("threshold"), 4),
            with_interval(one.get("false_accepts"), one.get("false_accepts_interval")),
            with_interval(one.get("misses"), one.get("misses_interval")),
            count(one.get("trials")),
            str(one.get("rule", "")),
        ]
        for point, one in (content.get("operating_points") or {}).items()
    ]
    refused = [f"{point}: {why}" for point, why in (content.get("operating_points_refused") or {}).items()]
    shown = [page.table(f"Operating points of {name}", *filled(heads, rows))] if rows else []
    return [*shown, *([page.paragraph(f"Refused for {name}:"), page.listing(refused)] if refused else [])]


def _best_figures(best: dict[str, list[tuple[str, dict[str, Any]]]]) -> list[str]:
    parts = []
    for index, (name, systems) in enumerate(best.items()):
        told = "; ".join(f"{model}: llr 0 at {one['score_at_0']:.3f}" for model, one in systems)
        title = f"Best calibration of each file on {name}"
        svg = figures.drawn(f"best-llr-{index}", title, told, partial(_best_lines, systems=systems), height=3.6)
        words = "By isotonic regression on these trials. Where lines lie apart, files need calibrations of their own."
        parts.append(page.figure(svg, f"{name}. {words}"))
    return parts


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
