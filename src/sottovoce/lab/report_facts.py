"""Sections of a report on speed and training, and on results that have no section of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from sottovoce.lab import figures, page
from sottovoce.lab.page import Section
from sottovoce.lab.report_words import count, decimal, file_name, filled, percent
from sottovoce.lab.sources import Found, Json, Source

WINDOWS = 160  # points of a loss curve
MOST_COLUMNS = 14  # of a table made from any rows


def speed(found: Found) -> Section | None:
    """Time of a recording, by file and peer, in the run that measured both."""
    parts: list[str] = []
    data: list[Json] = []
    for index, (source, name, rows) in enumerate(_timed(found)):
        machine = source.content.get("machine") or {}
        words = f"{name}, on {machine.get('processor', 'a machine that is not named')}."
        parts += [_times_figure(f"speed-{index}", words, rows), page.table(f"Times of {name}", *_time_rows(rows))]
        data.append({"source": source.name, "model": name, "rows": rows})
    for source in found.of("contract"):
        parts += [page.heading(source.name), page.table("What any file keeps to", *_contract(source.content["rows"]))]
        data.append({"source": source.name, "rows": source.content["rows"]})
    return Section("speed", "Speed", parts, data) if parts else None


def _timed(found: Found) -> Iterator[tuple[Source, str, Sequence[Json]]]:
    """Each model that was timed, with its rows and those of its peers."""
    for source in found.of("timing"):
        yield source, file_name(source.content), source.content["rows"]
    for source in found.of("timings"):
        for name, one in source.content["networks"].items():
            bits = f" in {one['bits']} bits" if one.get("bits") else ""
            yield source, f"{name}{bits}", one["rows"]


def _time_rows(rows: Sequence[Json]) -> tuple[list[str], list[list[str]]]:
    heads = ["what", "audio s", "threads", "median ms", "least ms", "processor ms", "time over this file's", "bytes"]
    cells = [
        [
            str(row["name"]),
            f"{row['seconds']:g}",
            count(row.get("threads")),
            *(decimal(row.get(key), 2) for key in ("median_ms", "min_ms", "cpu_ms", "ratio")),
            count(row.get("bytes")),
            decimal(row.get("load_ms"), 1),
            decimal(row.get("peak_mb"), 1),
        ]
        for row in rows
    ]
    return filled([*heads, "load ms", "peak MB"], cells)


def _contract(rows: Sequence[Json]) -> tuple[list[str], list[list[str]]]:
    """Size, likeness to the plain int8 file and times, a row a network and width; times of the fastest peer."""
    heads = [
        "network",
        "bits",
        "bytes",
        "limit",
        "as its int8 twin",
        "ms for 3 s",
        "int8 peer's ms",
        "torch float's ms",
    ]
    cells = []
    for row in rows:
        twins = [one.get("identical_to_twin") for one in row.get("engines", [])]
        times = {
            peer: min((one["cpu_ms"] for one in row.get("speed", []) if one["name"].startswith(peer)), default=None)
            for peer in ("this file", "onnxruntime static int8", "torch float")
        }
        start = [str(row["network"]), str(row["bits"]), count(row["bytes"]), count(row["limit_bytes"])]
        alike = ("yes" if all(twins) else "no") if twins else ""
        cells.append([*start, alike, *(decimal(ms, 1) for ms in times.values())])
    return filled(heads, cells)


def _times_figure(name: str, words: str, rows: Sequence[Json]) -> str:
    """Bars of times; words alone where there is nothing to compare."""
    if len(rows) < 2:
        return page.paragraph(words)
    told = "; ".join(f"{row['name']}, {row['seconds']:g} s: {row['cpu_ms']:.1f} ms" for row in rows)
    draw = partial(_times, rows=rows)
    return page.figure(
        figures.drawn(name, "Processor time of a recording", told, draw, height=1.1 + 0.26 * len(rows)), words
    )


def _times(axes: Axes, rows: Sequence[Json]) -> None:
    names = [f"{figures.short(row['name'], 40)}, {row['seconds']:g} s" for row in rows]
    figures.side_bars(axes, names, [row["cpu_ms"] for row in rows])
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("least processor time, ms")


def training(found: Found) -> Section | None:
    """Loss over the steps of trainings."""
    runs = found.of("run")
    if not runs:
        return None
    curves = {source.name: _smoothed(source.steps) for source in runs}
    told = "; ".join(f"{name}: {losses[0]:.2f} to {losses[-1]:.2f}" for name, (_, losses) in curves.items())
    svg = figures.drawn("training", "Loss over steps", told, partial(_losses, curves=curves), height=3.8)
    heads = ["run", "steps", "last loss", "right %", "median seconds a step", "recipe"]
    rows = [
        [
            source.name,
            count(len(source.steps)),
            decimal(curves[source.name][1][-1]),
            percent(source.steps[-1].get("correct")),
            decimal(median(step.get("seconds", 0.0) for step in source.steps), 2),
            str(source.content.get("name", "")),
        ]
        for source in runs
    ]
    parts = [page.figure(svg, "Medians of neighbouring steps."), page.table("Trainings", *filled(heads, rows))]
    data = [{"run": name, "steps": steps, "loss": losses} for name, (steps, losses) in curves.items()]
    return Section("training", "Training", parts, data)


def _smoothed(steps: Sequence[Json]) -> tuple[list[int], list[float]]:
    parts = np.array_split(np.arange(len(steps)), min(WINDOWS, len(steps)))
    places = [int(steps[part[len(part) // 2]]["step"]) for part in parts]
    return places, [round(float(np.median([steps[at]["loss"] for at in part])), 5) for part in parts]


def _losses(axes: Axes, curves: Mapping[str, tuple[list[int], list[float]]]) -> None:
    for index, (name, (steps, losses)) in enumerate(curves.items()):
        axes.plot(steps, losses, **figures.line(index), label=figures.short(name))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    figures.legend_below(axes)


def others(found: Found) -> Section | None:
    """Results that have no section of their own, as tables."""
    parts: list[str] = []
    sources = found.of("measurement", "demo", "compression")
    for source in sources:
        what = source.content.get("what")
        parts += [page.heading(source.name), *([page.paragraph(f"{what}.")] if what else [])]
        parts += list(_tables(source.content))
    data = [{"source": source.name, **source.content} for source in sources]
    return Section("other-measurements", "Other measurements", parts, data) if parts else None


def _tables(content: Json) -> Iterator[str]:
    """Every list of rows as a table, and single values together in one."""
    single = [[key, _cell(value)] for key, value in _flat(content) if key.split(" ")[0] not in _TOLD]
    if single:
        yield page.table("Values", ["what", "value"], single)
    for key, rows in content.items():
        if isinstance(rows, list) and rows and all(isinstance(row, Mapping) for row in rows):
            flat = [dict(_flat(row)) for row in rows]
            heads = list(dict.fromkeys(name for row in flat for name in row))[:MOST_COLUMNS]
            yield page.table(
                key.replace("_", " "), *filled(heads, [[_cell(row.get(name)) for name in heads] for row in flat])
            )


_TOLD = {"what", "command", "machine", "versions"}  # elsewhere on the page


def _flat(content: Json, before: str = "") -> Iterator[tuple[str, Any]]:
    """Values that are no lists, those of inner objects under both names."""
    for key, value in content.items():
        name = f"{before} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        elif not isinstance(value, list):
            yield name, value


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value or "")
