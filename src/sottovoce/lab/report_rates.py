"""Sections of a report on error rates: tables, DET curves, scores with operating points."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from sottovoce.lab import figures, page
from sottovoce.lab.figures import DIM, INK
from sottovoce.lab.page import Section
from sottovoce.lab.report_words import (
    FEW,
    between,
    count,
    decimal,
    filled,
    list_name,
    marked,
    model_name,
    models_of,
    percent,
    sizes_of,
    with_interval,
)
from sottovoce.lab.scored import Scored
from sottovoce.lab.sources import Found, Json
from sottovoce.scores.metrics import det, eer, probit

POINTS = 120  # of a DET curve
BARS = 60  # of a histogram
MOST_COLUMNS = 8  # models side by side in a table
DET_TICKS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


def rates(found: Found) -> Section | None:
    """Every list's error rates with intervals, and those of its groups."""
    parts: list[str] = []
    for source, models in models_of(found):
        several = source != "sotto evaluate" and len(models) <= MOST_COLUMNS
        if several:
            parts.append(_side_by_side(source, models))
        for model in models:
            shown = [page.table(f"{model_name(model)} on {len(model['lists'])} lists", *_lists(model["lists"]))]
            if source != "sotto evaluate":
                shown = [page.folded(f"{source}, {model_name(model)}: all rates", shown)] if several else []
            parts += [*shown, *_groups(model)]
    many = [f"{source}: {len(models)} files" for source, models in models_of(found) if len(models) > MOST_COLUMNS]
    if many:
        parts.append(page.paragraph(f"List by list in the embedded data: {'; '.join(many)}."))
    if any(FEW in part for part in parts):
        parts.append(page.paragraph(f"{FEW} fewer than 30 errors of some kind stand behind this rate."))
    data = [{"source": source, "models": models} for source, models in models_of(found)]
    return Section("error-rates", "Error rates, list by list", parts, data) if parts else None


def _side_by_side(source: str, models: Sequence[Json]) -> str:
    names = list(dict.fromkeys(list_name(one) for model in models for one in model["lists"]))
    cells = {(model_name(model), list_name(one)): one for model in models for one in model["lists"]}
    rows = [
        [
            name,
            *(_eer(cells[model_name(model), name]) if (model_name(model), name) in cells else "" for model in models),
        ]
        for name in names
    ]
    return page.table(
        f"EER in %, with 95 % intervals over speakers ({source})", ["list", *map(model_name, models)], rows
    )


def _eer(one: Json) -> str:
    return marked(with_interval(one.get("eer"), one.get("eer_interval")), one.get("few_errors"))


def _lists(lists: Sequence[Json], head: str = "list") -> tuple[list[str], list[list[str]]]:
    priors = list(dict.fromkeys(prior for one in lists for prior in one.get("min_dcf") or {}))
    heads = [head, "trials", "targets", "speakers", "EER %", "95 %"]
    heads += [f"{name} {prior}" for prior in priors for name in ("minDCF", "actDCF")]
    heads += ["minCllr", "Cllr", "left out"]
    rows = []
    for one in lists:
        row = [one["group"] if head != "list" else list_name(one)]
        row += [count(one.get(key)) for key in ("trials", "targets", "speakers")]
        row += [marked(percent(one.get("eer")), one.get("few_errors")), between(one.get("eer_interval"))]
        for prior in priors:
            few = (one.get("min_dcf_few_errors") or {}).get(prior)
            row.append(marked(decimal((one.get("min_dcf") or {}).get(prior)), few))
            row.append(decimal((one.get("act_dcf") or {}).get(prior)))
        row += [decimal(one.get("min_cllr")), decimal(one.get("cllr")), count(one.get("trials_excluded"))]
        rows.append(row)
    return filled(heads, rows)


def _groups(model: Json) -> list[str]:
    """Tables of subgroups, such as gender or age, where they were measured."""
    return [
        page.table(f"{model_name(model)}, {list_name(one)}, by {column}", *_lists(rows, column))
        for one in model["lists"]
        for column, rows in (one.get("groups") or {}).items()
    ]


def scored_lists(found: Found) -> dict[str, list[tuple[str, Scored]]]:
    """Scores by list: name and hash of the list → the models and their trials, the largest file first if known."""
    lists: dict[str, list[tuple[str, Scored]]] = {}
    sizes = sizes_of(found)
    for source in sorted(found.of("scores"), key=lambda one: -sizes.get(str(one.content.get("model_sha256")), 0)):
        model = str(source.content.get("model") or source.name)
        for one in source.scored:
            lists.setdefault(list_name({"list": one.name, "list_sha256": one.sha256}), []).append((model, one))
    return lists


def dets(found: Found) -> Section | None:
    """DET curves: misses against false accepts on probit axes, a line a model."""
    parts: list[str] = []
    data: list[Json] = []
    for index, (name, systems) in enumerate(scored_lists(found).items()):
        curves = [
            (model, det(one.scores, one.labels, POINTS), eer(one.scores, one.labels)[0]) for model, one in systems
        ]
        told = "; ".join(f"{model}: EER {percent(rate)} %" for model, _, rate in curves)
        svg = figures.drawn(f"det-{index}", f"DET curves on {name}", told, partial(_det, curves=curves), height=5)
        size = systems[0][1]
        caption = f"{name}: {len(size):,} trials, {int(size.labels.sum()):,} of them targets. Dots: equal error rates."
        parts.append(page.figure(svg, f"{caption} Curves on few errors are steps, and far from certain."))
        data += [
            {"list": name, "model": model, "eer": rate, "accepts": _rounded(c.accepts), "misses": _rounded(c.misses)}
            for model, c, rate in curves
        ]
    return Section("det", "DET curves", parts, data) if parts else None


def _rounded(values: Any, digits: int = 5) -> list[float]:
    return [round(float(value), digits) for value in values]


def _det(axes: Axes, curves: Sequence[Any]) -> None:
    edges = probit(np.array([0.0005, 0.85]))
    for index, (model, points, rate) in enumerate(curves):
        label = f"{figures.short(model)}, EER {percent(rate)} %"
        axes.plot(points.x, points.y, **figures.line(index), label=label)
        if 0 < rate < 1:
            x = float(probit([rate])[0])
            axes.plot([x], [x], **{**figures.style(index), "linestyle": "none"})
    places, words = probit(DET_TICKS), [f"{100 * tick:g}" for tick in DET_TICKS]
    axes.plot(edges, edges, color=DIM, linewidth=0.7, linestyle=":")
    axes.set_xticks(places, words)
    axes.set_yticks(places, words)
    axes.set_xlim(*edges)
    axes.set_ylim(*edges)
    axes.set_aspect("equal")
    axes.set_xlabel("false accepts, % of nontargets")
    axes.set_ylabel("misses, % of targets")
    axes.legend(loc="upper right" if len(curves) < 7 else "best")


def histograms(found: Found) -> Section | None:
    """Scores of targets and nontargets, with the operating points that models carry."""
    parts: list[str] = []
    data: list[Json] = []
    for index, (name, panels) in enumerate(_panels(found).items()):
        told = "; ".join(f"{one['model']}: {', '.join(_point_words(one))}" for one in panels)
        svg = figures.drawn(
            f"scores-{index}",
            f"Scores of targets and nontargets on {name}",
            told,
            partial(_score_panels, panels=panels),
            height=0.9 + 1.25 * len(panels),
            shape=(len(panels), 1),
            sharex=True,
            squeeze=False,
        )
        parts.append(page.figure(svg, f"{name}. Share of each kind of trials by score. {told}."))
        data += [{"list": name, **one} for one in panels]
    return Section("scores", "Scores and operating points", parts, data) if parts else None


def _panels(found: Found) -> dict[str, list[Json]]:
    """A histogram for each list and model: from scores, else from what `sotto drift` kept of them."""
    stored = {
        str(one.content.get("sha256")): one.content["operating_points"]
        for one in found.of("inspection")
        if one.content.get("operating_points")
    }
    digests = {
        str(one.content.get("model") or one.name): str(one.content.get("model_sha256")) for one in found.of("scores")
    }
    panels: dict[str, list[Json]] = {}
    for name, systems in scored_lists(found).items():
        low = min(float(one.scores.min()) for _, one in systems)
        high = max(float(one.scores.max()) for _, one in systems)
        for model, one in systems:
            kept = {kind: one.scores[one.labels == label] for kind, label in (("targets", 1), ("nontargets", 0))}
            bars = {kind: np.histogram(v, BARS, (low, high))[0].tolist() for kind, v in kept.items()}
            points = {"EER": eer(one.scores, one.labels)[1], **_thresholds(stored.get(digests[model]))}
            panels.setdefault(name, []).append({"model": model, "from": low, "to": high, **bars, "points": points})
    for source in found.of("drift"):
        for listed in source.content["lists"]:
            for model in listed["models"] if list_name(listed) not in scored_lists(found) else []:
                points = {"EER of the first": listed["threshold"]}
                panels.setdefault(list_name(listed), []).append(
                    {"model": model["model"], **model["scores"], "points": points}
                )
    return panels


def _thresholds(points: Any) -> dict[str, float]:
    """Operating points by name: threshold on scores, whatever else is told of them."""
    named = points.items() if isinstance(points, dict) else []
    found = {str(name): one.get("threshold") if isinstance(one, dict) else one for name, one in named}
    return {name: float(value) for name, value in found.items() if isinstance(value, (int, float))}


def _point_words(panel: Json) -> list[str]:
    return [f"{name} at {value:.3f}" for name, value in panel["points"].items()]


def _score_panels(axes: Any, panels: Sequence[Json]) -> None:
    ends: list[float] = []
    for one, panel in zip(axes[:, 0], panels, strict=True):
        edges = np.linspace(panel["from"], panel["to"], len(panel["targets"]) + 1)
        for place, kind in enumerate(("nontargets", "targets")):
            share = np.asarray(panel[kind], dtype=float) / max(sum(panel[kind]), 1) * 100
            one.stairs(share, edges, **figures.filled(place), label=kind)
        top = one.get_ylim()[1]
        for place, (name, value) in enumerate(panel["points"].items()):
            one.axvline(value, color=INK, linewidth=1, linestyle=figures.LINES[place % 4])
            height = top * (0.96 - 0.17 * (place % 4))
            one.annotate(name, (value, height), (4, 0), textcoords="offset points", va="top", fontsize=8)
        one.set_title(figures.short(panel["model"], 60), loc="left")
        one.set_ylabel("% of trials")
        used = np.flatnonzero(np.asarray(panel["targets"]) + np.asarray(panel["nontargets"]))
        ends += [float(edges[place]) for place in (used[0], used[-1] + 1)] if len(used) else []
    axes[0, 0].set_xlim(min(ends, default=-1.0), max(ends, default=1.0))
    axes[-1, 0].set_xlabel("score")
    figures.legend_below(axes[0, 0])
