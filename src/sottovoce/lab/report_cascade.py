"""Section of a report on cascades: what is kept and what is saved where a cheap stage answers first."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import PurePath
from typing import Any

from matplotlib.axes import Axes

from sottovoce.lab import figures, page
from sottovoce.lab.page import Section
from sottovoce.lab.report_words import between, count, decimal, percent, with_interval
from sottovoce.lab.sources import Found, Json, Source


def cascade(found: Found) -> Section | None:
    """Cost of a trial against EER: gates that were tried, cascades that were measured, each stage alone."""
    parts: list[str] = []
    data: list[Json] = []
    makers = {"tuning": _tuned, "cascade": _measured, "cascades": _many}
    for index, source in enumerate(found.of(*makers)):
        parts += [page.heading(source.name), *makers[source.kind](source, f"cascade-{index}")]
        data.append({"source": source.name, "kind": source.kind, **source.content})
    if parts:
        parts.append(
            page.paragraph(
                "Bits of a trial are those of every stage that was asked, added up. Milliseconds are of the processor: "
                "a fresh pair when both recordings are new in every trial, shared when each is embedded once a stage."
            )
        )
    return Section("cascade", "Cascades", parts, data) if parts else None


def _tuned(source: Source, name: str) -> list[str]:
    content = source.content
    curve = content.get("curve") or []
    gates = [*content["gates"], {}]
    rows = [
        [number, percent(rate), percent(share, 1), *(decimal(gate.get(side), 4) for side in ("low", "high"))]
        for number, (rate, share, gate) in enumerate(
            zip(content["eer_of_stages"], content["stopped"], gates, strict=True), 1
        )
    ]
    heads = ["stage", "EER % alone", "answers %", "rejects below", "accepts above"]
    shown = page.table("Tuned on development trials", heads, rows)
    if not curve:
        return [shown]
    unit = "bits a trial" if content.get("unit", "bits") == "bits" else "ms a trial"
    told = "; ".join(f"{one['cost']:.3g} {unit}: {percent(one['eer'])} %" for one in curve[:: max(1, len(curve) // 12)])
    draw = partial(_curve, curve=curve, unit=unit, last=content["eer_of_stages"][-1], chosen=_chosen(content))
    svg = figures.drawn(name, "EER of a cascade against the cost of a trial", told, draw, height=3.6)
    return [page.figure(svg, "Gates that no others beat in cost and EER, on development trials."), shown]


def _chosen(content: Json) -> tuple[float, float] | None:
    cost = content.get("bits_per_trial") if content.get("unit", "bits") == "bits" else None
    return None if cost is None or content.get("eer") is None else (float(cost), float(content["eer"]))


def _curve(axes: Axes, curve: Sequence[Json], unit: str, last: float, chosen: tuple[float, float] | None) -> None:
    rows = sorted(curve, key=lambda one: one["cost"])
    x, y = [one["cost"] for one in rows], [100 * one["eer"] for one in rows]
    axes.plot(x, y, **figures.line(0), drawstyle="steps-post", label="best gates")
    axes.axhline(100 * last, color=figures.DIM, linestyle="--", linewidth=1, label="last stage alone")
    if chosen:
        axes.plot([chosen[0]], [100 * chosen[1]], **{**figures.style(1), "linestyle": "none"}, label="chosen")
    axes.set_xlabel(unit)
    axes.set_ylabel("EER, %")
    figures.legend_below(axes)


def _measured(source: Source, name: str) -> list[str]:
    content = source.content
    heads = ["list", "trials", "EER %", "95 %", "against the last stage %"]
    heads += [f"stage {number} answers %" for number in range(1, len(content["stages"]) + 1)]
    lists = [(PurePath(str(one["list"])).name, one) for one in content["lists"]]
    rows = [
        [
            label,
            count(one["trials"]),
            percent(one["eer"]),
            between(one.get("eer_interval")),
            with_interval(one.get("relative_eer"), one.get("relative_eer_interval"), 1, sign=True),
            *(percent(share, 1) for share in one["stopped"]),
        ]
        for label, one in [*lists, ("all", content["all"])]
    ]
    points = _points(content)
    parts = [page.table("Cascade on trial lists", heads, rows), _stages(content["stages"])]
    if len(points) > 1:
        parts.insert(0, _costs_figure(name, points))
    return parts


def _points(measured: Json) -> list[tuple[str, Json, float]]:
    """Cascade and stages alone: label, costs, EER over all trials."""
    alone = [
        (f"stage {number} alone", stage["alone"], float(stage["alone"]["all"]))
        for number, stage in enumerate(measured["stages"], 1)
        if stage.get("alone")
    ]
    return [("cascade", measured["cost"], float(measured["all"]["eer"])), *alone]


def _costs_figure(name: str, points: Sequence[tuple[str, Json, float]]) -> str:
    told = "; ".join(
        f"{label}: {cost['bits']:.2f} bits, {cost['ms_fresh_pair']:.2f} ms, {percent(eer)} %"
        for label, cost, eer in points
    )
    draw = partial(_costs, points=points)
    svg = figures.drawn(name, "Cost of a trial against EER", told, draw, height=3.4, shape=(1, 2), sharey=True)
    return page.figure(svg, "Cost of a trial against EER over all trials: the cascade, and each stage alone.")


def _costs(axes: Any, points: Sequence[tuple[str, Json, float]]) -> None:
    for panel, (key, unit) in zip(
        axes, (("bits", "bits a trial"), ("ms_fresh_pair", "ms for a fresh pair")), strict=True
    ):
        for index, (label, cost, eer) in enumerate(points):
            look = {**figures.style(index), "linestyle": "none"}
            panel.plot([cost[key]], [100 * eer], **look, label=figures.short(label) if key == "bits" else None)
        panel.set_xlim(left=0)
        panel.set_xlabel(unit)
    axes[0].set_ylabel("EER, %")
    figures.legend_below(axes[0], 4)


def _stages(stages: Sequence[Json]) -> str:
    heads = ["stage", "file", "bits", "bytes", "bytes in memory", "reached %", "answers %", "ms a recording"]
    rows = [
        [
            number,
            stage.get("file"),
            f"{stage['bits']:g}",
            count(stage.get("bytes")),
            count(stage.get("resident_bytes")),
            percent(stage.get("reached"), 1),
            percent(stage.get("stopped"), 1),
            decimal(stage.get("ms"), 2),
        ]
        for number, stage in enumerate(stages, 1)
    ]
    return page.table("Stages", heads, rows)


def _many(source: Source, name: str) -> list[str]:
    """The rows of benchmarks/cascade.py: tuned on one half of the speakers, measured on the other."""
    rows = source.content["rows"]
    heads = ["cascade", "lists", "target", "tuned on", "EER %", "last alone %", "against the last %", "first answers %"]
    heads += ["bits", "ms fresh pair", "last alone ms", "decisions changed %"]
    cells = []
    for row in rows:
        found = row["measured"]
        last, together = found["stages"][-1]["alone"], found["all"]
        cells.append(
            [
                *(row[key] for key in ("cascade", "scope", "target")),
                f"half {row['tuned_on']}",
                percent(together["eer"]),
                percent(last["all"]),
                with_interval(together.get("relative_eer"), together.get("relative_eer_interval"), 1, sign=True),
                percent(together["stopped"][0], 1),
                decimal(found["cost"]["bits"], 2),
                decimal(found["cost"]["ms_fresh_pair"], 2),
                decimal(last["ms_fresh_pair"], 2),
                percent(found.get("disagreement")),
            ]
        )
    draw = partial(_saved, rows=rows)
    told = "; ".join(f"{row[0]}, {row[1]}, {row[2]}: {row[7]} % answered by the first stage" for row in cells[:12])
    svg = figures.drawn(name, "What cascades save and lose", told, draw, height=3.9)
    words = "A point a cascade, target and half of the speakers. Left of 100 %: cheaper than the last stage alone."
    return [page.figure(svg, words), page.table("Cascades on speakers they were not tuned on", heads, cells)]


def _saved(axes: Axes, rows: Sequence[Json]) -> None:
    kinds = dict.fromkeys((str(row["cascade"]), str(row["target"])) for row in rows)
    for index, (name, target) in enumerate(kinds):
        kept = [row["measured"] for row in rows if (str(row["cascade"]), str(row["target"])) == (name, target)]
        kept = [one for one in kept if one["all"].get("relative_eer") is not None]
        x = [100 * one["cost"]["ms_fresh_pair"] / one["stages"][-1]["alone"]["ms_fresh_pair"] for one in kept]
        y = [100 * one["all"]["relative_eer"] for one in kept]
        axes.plot(x, y, **{**figures.style(index), "linestyle": "none"}, label=figures.short(f"{name}, {target}"))
    axes.axvline(100, color=figures.DIM, linewidth=0.9, linestyle="--")
    axes.axhline(0, color=figures.DIM, linewidth=0.9)
    axes.set_xlabel("time of a fresh pair, % of the last stage alone")
    axes.set_ylabel("EER against the last stage, %")
    figures.legend_below(axes, 3)
