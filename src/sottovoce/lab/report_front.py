"""Section of a report on size against error: which files are worth their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from sottovoce.lab import figures, page
from sottovoce.lab.figures import DIM
from sottovoce.lab.page import Section
from sottovoce.lab.report_words import (
    between,
    count,
    decimal,
    filled,
    model_name,
    models_of,
    percent,
    whisker,
    with_interval,
)
from sottovoce.lab.sources import Found, Json

MOST_WHISKERS = 10  # files, beyond which their whiskers hide one another
SHOWN = {True: "Whiskers and band:", False: "Band, and in the table:"}


def front(found: Found) -> Section | None:
    """Bytes of the file against the mean EER, and which files no other beats in both."""
    parts: list[str] = []
    data: list[Json] = []
    for index, (source, models) in enumerate(models_of(found)):
        rows = [one for one in models if one.get("bytes") and one.get("mean_eer") is not None]
        if rows:
            kept = best(rows)
            svg = _front_figure(f"front-{index}", source, rows, kept)
            known = any(row.get("mean_eer_interval") for row in rows)
            told = f"{source}: {len(rows)} files; dashed: the first. "
            told += f"{SHOWN[len(rows) <= MOST_WHISKERS]} 95 % intervals over speakers. " if known else ""
            parts += [
                page.figure(svg, told + f"Beaten by no other in bytes and EER: {'; '.join(map(model_name, kept))}.")
            ]
            parts.append(page.table(f"Files of {source}", *_files(rows, kept)))
            keys = ("name", "method", "bits", "bytes", "mean_eer", "mean_eer_interval", "cosine_to_first")
            data.append({"source": source, "files": [{key: one.get(key) for key in keys} for one in rows]})
    return Section("size-and-error", "Size against error", parts, data) if parts else None


def best(rows: Sequence[Json]) -> list[Json]:
    """Files that no other beats in bytes and mean EER, the smallest first."""
    kept: list[Json] = []
    for row in sorted(rows, key=lambda one: (one["bytes"], one["mean_eer"])):
        if not kept or row["mean_eer"] < kept[-1]["mean_eer"]:
            kept.append(row)
    return kept


def _front_figure(name: str, source: str, rows: Sequence[Json], kept: Sequence[Json]) -> str:
    series = dict.fromkeys(str(row["method"]) for row in rows if row.get("method"))
    reference, whiskers = rows[0], len(rows) <= MOST_WHISKERS

    def draw(axes: Axes) -> None:
        bounds = reference.get("mean_eer_interval")
        if bounds:
            axes.axhspan(100 * bounds[0], 100 * bounds[1], color=figures.BAND, alpha=0.45, linewidth=0)
        axes.axhline(100 * reference["mean_eer"], color=DIM, linewidth=1, linestyle="--")
        for place, label in enumerate(series):
            chosen = sorted((row for row in rows if row.get("method") == label), key=lambda row: row["bytes"])
            _points(axes, chosen, {**figures.style(place), "label": figures.short(label)}, whiskers)
        if series:
            _points(axes, [row for row in rows if not row.get("method")], _lone(len(series), reference), whiskers)
        else:
            x, y = [row["bytes"] / 1000 for row in kept], [100 * row["mean_eer"] for row in kept]
            axes.plot(x, y, color=DIM, linewidth=1, drawstyle="steps-post")
            for place, row in enumerate(rows):
                _points(axes, [row], _lone(place, row), whiskers)
        axes.set_xscale("log")
        _plain_ticks(axes, [row["bytes"] / 1000 for row in rows])
        axes.set_xlabel("bytes of the file, kB")
        axes.set_ylabel("mean EER, %")
        figures.legend_below(axes, 4)

    told = "; ".join(
        f"{model_name(row)}: {count(row['bytes'])} bytes, {percent(row['mean_eer'])} %" for row in rows[:12]
    )
    return figures.drawn(name, f"Bytes against mean EER, {source}", told, draw, height=4.6)


def _lone(index: int, model: Json) -> dict[str, Any]:
    """The look of a file that stands on no line."""
    return {**figures.style(index), "linestyle": "none", "label": figures.short(model_name(model))}


def _points(axes: Axes, rows: Sequence[Json], look: dict[str, Any], whiskers: bool) -> None:
    if not rows:
        return
    values = [100 * row["mean_eer"] for row in rows]
    bounds = [[100 * edge for edge in b] if (b := row.get("mean_eer_interval")) else None for row in rows]
    size = [row["bytes"] / 1000 for row in rows]
    axes.errorbar(size, values, yerr=whisker(values, bounds) if whiskers else None, elinewidth=0.7, capsize=2, **look)


def _plain_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Ticks of a logarithmic axis as plain numbers, 1, 2 and 5 times powers of ten within the values."""
    low, high = min(values) / 1.4, max(values) * 1.4
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [one * 10.0**power for power in powers for one in (1, 2, 5) if low <= one * 10.0**power <= high]
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [f"{tick:,g}" if tick < 1e6 else f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()


def _files(rows: Sequence[Json], kept: Sequence[Json]) -> tuple[list[str], list[list[str]]]:
    most = max(row["bytes"] for row in rows)
    heads = ["file", "bytes", "times smaller", "mean EER %", "95 %", "against the first %", "mean minDCF 0.01"]
    heads += ["cosine to the first", "beaten by none"]
    lines = [
        [
            model_name(row),
            count(row["bytes"]),
            f"{most / row['bytes']:.1f}",
            percent(row["mean_eer"]),
            between(row.get("mean_eer_interval")),
            with_interval(row.get("relative_eer"), row.get("relative_eer_interval"), 1, sign=True),
            decimal(row.get("mean_min_dcf")),
            decimal(row.get("cosine_to_first"), 4),
            "yes" if row in kept else "",
        ]
        for row in rows
    ]
    return filled(heads, lines)
