"""Sections of a report on decisions: drift of scores and flips, what probes still find in embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from sottovoce.lab import figures, page
from sottovoce.lab.figures import DIM
from sottovoce.lab.page import Section
from sottovoce.lab.report_words import count, decimal, list_name, percent, whisker, with_interval
from sottovoce.lab.sources import Found, Json

SIDES = {"full": "both sides", "test_only": "test side"}


def flips(found: Found) -> Section | None:
    """Decisions that change sides at the first file's threshold, by how far the score was from it."""
    parts: list[str] = []
    data: list[Json] = []
    for index, source in enumerate(found.of("drift")):
        models = [str(model["model"]) for model in source.content["models"]][1:]
        bins = _bins(source.content, models)
        told = "; ".join(
            f"{model}, {row['bin']}: {row['harmful']} harmful and {row['beneficial']} beneficial of {row['trials']}"
            for model, rows in bins.items()
            for row in rows
        )
        title = "Flipped decisions by margin, all lists together"
        svg = figures.drawn(f"flips-{index}", title, told, partial(_flip_bars, bins=bins), height=3.9)
        first = source.content["models"][0]["model"]
        note = "margin: distance of the first file's score from its EER threshold; near ones flip both ways by chance"
        parts.append(page.figure(svg, f"{title}, against {first}; {note}."))
        heads = ["file", "margin", "trials", "harmful", "%", "beneficial", "% "]
        rows = [
            [
                model,
                f"{row['bin']} ({row['from']:g} to {'any' if row['to'] is None else format(row['to'], 'g')})",
                *(count(row[key]) for key in ("trials", "harmful")),
                percent(row["harmful"] / max(row["trials"], 1)),
                count(row["beneficial"]),
                percent(row["beneficial"] / max(row["trials"], 1)),
            ]
            for model, kept in bins.items()
            for row in kept
        ]
        parts.append(page.table(f"Flips against {first}", heads, rows))
        data.append({"source": source.name, "against": first, "bins": bins})
    return Section("flips", "Flipped decisions", parts, data) if parts else None


def _bins(content: Json, models: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Flips by bin summed over lists, for each file but the first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for place, model in enumerate(models, 1):
        every = [one["models"][place]["full"]["flips"]["bins"] for one in content["lists"]]
        found[model] = [
            {
                **{key: rows[0].get(key) for key in ("bin", "from", "to")},
                **{key: sum(row[key] for row in rows) for key in ("trials", "harmful", "beneficial")},
            }
            for rows in zip(*every, strict=True)
        ]
    return found


def _flip_bars(axes: Axes, bins: dict[str, list[dict[str, Any]]]) -> None:
    names = [row["bin"] for row in next(iter(bins.values()))]
    wide = 0.8 / max(len(bins), 1)
    for index, (model, rows) in enumerate(bins.items()):
        places = np.arange(len(names)) + (index - (len(bins) - 1) / 2) * wide
        for sign, kind in ((1, "harmful"), (-1, "beneficial")):
            share = [sign * 100 * row[kind] / max(row["trials"], 1) for row in rows]
            label = figures.short(model) if sign > 0 else None
            axes.bar(places, share, 0.9 * wide, **figures.bar(index), label=label)
    axes.axhline(0, color=DIM, linewidth=0.8)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlabel("margin")
    axes.set_ylabel("% of the bin's trials\nbeneficial below 0, harmful above")
    axes.grid(False, axis="x")
    figures.legend_below(axes, 4)


def drift(found: Found) -> Section | None:
    """How far scores move between files, where enrolment and test are in one file and where they are in two."""
    parts: list[str] = []
    data: list[Json] = []
    for index, source in enumerate(found.of("drift")):
        content = source.content
        heads = ["list", "file", "by the file", "EER %", "change", "mean |drift|", "of targets", "of nontargets", "r"]
        rows = [
            _drift_row(list_name(one), model, told, model[kind])
            for one in content["lists"]
            for model in one["models"][1:]
            for kind, told in SIDES.items()
            if model.get(kind)
        ]
        knee = content.get("knee") or {}
        points = [point for point in knee.get("points", []) if point.get("bits") is not None]
        if points:
            told = "; ".join(f"{one['model']}: {one['bits']:.2f} bits, {one['mean_abs']:.4f}" for one in points)
            draw = partial(_knee, points=points, at=knee.get("bits"))
            svg = figures.drawn(f"drift-{index}", "Mean absolute drift over bits a weight", told, draw, height=3.2)
            bend = f"It bends at {knee['model']}." if knee.get("model") else "There is no knee."
            parts.append(page.figure(svg, f"Drift over bits, mean over lists. {bend}"))
        note = "Test side: enrolled by the first file, tested by the other, as on server and device."
        parts += [page.paragraph(note), page.table(f"Drift against {content['models'][0]['model']}", heads, rows)]
        data.append({"source": source.name, "means": content["means"], "knee": knee, "lists": _without_bars(content)})
    return Section("drift", "Drift of scores between files", parts, data) if parts else None


def _drift_row(name: str, model: Json, told: str, part: Json) -> list[str]:
    moved = [f"{part[key]:+.4f}" if part.get(key) is not None else "" for key in ("target_mean", "nontarget_mean")]
    change = with_interval(part.get("eer_change"), part.get("eer_change_interval"), sign=True)
    start = [name, str(model["model"]), told, percent(part.get("eer")), change, decimal(part.get("mean_abs"), 4)]
    return [*start, *moved, decimal(part.get("correlation"), 4)]


def _knee(axes: Axes, points: Sequence[Json], at: float | None) -> None:
    rows = sorted(points, key=lambda one: one["bits"])
    axes.plot([one["bits"] for one in rows], [one["mean_abs"] for one in rows], **figures.style(0))
    if at is not None:
        axes.axvline(at, color=DIM, linestyle="--", linewidth=1)
        axes.annotate("knee", (at, axes.get_ylim()[1]), (4, -2), textcoords="offset points", va="top")
    axes.set_xlabel("bits a weight")
    axes.set_ylabel("mean |drift|")


def _without_bars(content: Json) -> list[Json]:
    """The lists of a drift report without histograms, which another section has."""
    drop = ("scores", "histogram")

    def slim(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: slim(one) for key, one in value.items() if key not in drop}
        return [slim(one) for one in value] if isinstance(value, list) else value

    return [dict(slim(one)) for one in content["lists"]]


def probes(found: Found) -> Section | None:
    """Accuracy of small classifiers on frozen embeddings, over bits."""
    parts: list[str] = []
    data: list[Json] = []
    for index, source in enumerate(found.of("probe")):
        content = source.content
        models, labels = content["models"], content["labels"]
        svg = figures.drawn(
            f"probes-{index}",
            "Balanced accuracy of probes by file",
            "; ".join(" ".join(row[:4]) for row in _probe_rows(content)),
            partial(_probe_lines, models=models, labels=labels),
            height=3.8,
        )
        told = "Mean recall over classes, speakers kept apart; whiskers: 95 % intervals; dotted: guessing."
        parts.append(page.figure(svg, f"{source.name}: {told}"))
        heads = ["label", "file", "bits", "balanced %", "change to the first", "accuracy %", "guessing %"]
        parts.append(page.table("What a probe finds", heads, _probe_rows(content)))
        data.append({"source": source.name, "labels": labels, "models": models})
    return Section("probes", "What the embeddings still know", parts, data) if parts else None


def _file(model: Json) -> str:
    return PurePath(str(model["model"])).name


def _probe_rows(content: Json) -> list[list[str]]:
    return [
        [
            str(label["label"]),
            _file(model),
            decimal(model.get("bits"), 2),
            with_interval(one["balanced_accuracy"], one.get("balanced_accuracy_interval"), 1),
            with_interval(one.get("balanced_change"), one.get("balanced_change_interval"), 1, sign=True),
            with_interval(one["accuracy"], one.get("accuracy_interval"), 1),
            percent(label.get("chance_balanced_accuracy"), 1),
        ]
        for place, label in enumerate(content["labels"])
        for model in content["models"]
        for one in [model["probes"][place]]
    ]


def _probe_lines(axes: Axes, models: Sequence[Json], labels: Sequence[Json]) -> None:
    spread = 0.06
    for place, label in enumerate(labels):
        rows = [model["probes"][place] for model in models]
        values = [100 * row["balanced_accuracy"] for row in rows]
        bounds = [[100 * edge for edge in b] if (b := row.get("balanced_accuracy_interval")) else None for row in rows]
        x = np.arange(len(models)) + spread * (place - (len(labels) - 1) / 2)
        name = figures.short(label["label"])
        axes.errorbar(x, values, yerr=whisker(values, bounds), elinewidth=0.7, **figures.style(place), label=name)
        chance = label.get("chance_balanced_accuracy")
        if chance is not None:
            axes.axhline(100 * chance, color=figures.SERIES[place % len(figures.SERIES)], linestyle=":", linewidth=0.9)
    axes.set_xticks(range(len(models)), [figures.short(_file(model), 18) for model in models])
    axes.set_ylabel("balanced accuracy, %")
    figures.legend_below(axes, 4)
