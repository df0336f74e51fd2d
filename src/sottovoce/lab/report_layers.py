"""Sections of a report on layers: where the damage sits, what weights and levels look like, how bits were given out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from sottovoce.lab import figures, page
from sottovoce.lab.figures import DIM
from sottovoce.lab.page import Section
from sottovoce.lab.report_words import count, decimal, filled, percent
from sottovoce.lab.sources import Found, Json, Source

SHOWN = 24  # layers in a figure of bars: the worst
WEIGHTS_SHOWN = 6  # layers whose weights are drawn


def sensitivity(found: Found) -> Section | None:
    """What quantizing one layer, or one group of layers, does alone; what keeping a stage in float wins back."""
    parts: list[str] = []
    data: list[Json] = []
    makers = {"analysis": _analysis, "sensitivity": _damage, "sweep": _sweep}
    for index, source in enumerate(found.of(*makers)):
        made, shown = makers[source.kind](source, f"sensitivity-{index}")
        parts += [page.heading(f"{source.name}"), *made]
        data.append({"source": source.name, "kind": source.kind, **shown})
    return Section("sensitivity", "Where the damage sits", parts, data) if parts else None


def _bars(name: str, title: str, unit: str, pairs: Sequence[tuple[str, float]], index: int = 0) -> str:
    """Horizontal bars of the largest values, in their order."""
    kept = pairs[:SHOWN]

    def draw(axes: Axes) -> None:
        figures.side_bars(axes, [one for one, _ in kept], [value for _, value in kept], index)
        axes.axvline(0, color=DIM, linewidth=0.8)
        axes.set_xlabel(unit)

    told = "; ".join(f"{one}: {value:.3g}" for one, value in kept)
    return figures.drawn(name, title, f"{unit}. {told}", draw, height=0.9 + 0.21 * len(kept))


def _analysis(source: Source, name: str) -> tuple[list[str], dict[str, Any]]:
    content = source.content
    whole = content["whole"]
    rows = [row for row in content["layers"] if row.get("alone")]
    with_eer = any(row["alone"].get("eer_loss") is not None for row in rows)
    measure, unit, factor = (
        ("eer_loss", "change of EER, points of per cent", 100) if with_eer else ("drift", "drift", 1)
    )
    alone = [(row["layer"], factor * row["alone"][measure]) for row in rows if row["alone"].get(measure) is not None]
    alone.sort(key=lambda pair: -pair[1])
    stages = [row for row in content["stages"] if row.get("kept_in_float")]
    back = "eer_recovery" if "eer" in whole else "drift_recovery"
    won = [
        (row["stage"], 100 * row["kept_in_float"][back]) for row in stages if row["kept_in_float"].get(back) is not None
    ]
    told = f"Plan {content['plan']}: drift {whole['drift']:.4f}"
    told += f", mean EER {percent(whole['float_eer'])} to {percent(whole['eer'])} %" if "eer" in whole else ""
    title = "One layer quantized, all others in float"
    parts = [page.paragraph(f"{told}. Drift is the mean of 1 - cosine to the float network's embeddings.")]
    parts.append(page.figure(_bars(name, title, unit, alone), f"{title}; the {min(len(alone), SHOWN)} worst layers."))
    if won:
        title = "All quantized, one stage kept in float"
        svg = _bars(f"{name}-stages", title, "share of the damage won back, %", won, 2)
        parts.append(page.figure(svg, f"{title}: how much of the damage sits in it. Shares need not add up to 100 %."))
    heads = ["of", "with", "layers", "Spearman", "p"]
    found = [one for one in content["correlations"] if one.get("spearman") is not None]
    cells = [[one["of"], one["with"], one["layers"], f"{one['spearman']:+.2f}", decimal(one["p"], 4)] for one in found]
    parts.append(
        page.folded("Rank correlations of what might explain the damage", [page.table("Over layers", heads, cells)])
    )
    parts.append(page.folded("All layers", [page.table("Layers", *_layer_rows(content["layers"]))]))
    keys = ("whole", "stages", "correlations")
    return parts, {"alone": dict(alone), "unit": unit, **{key: content[key] for key in keys}}


def _layer_rows(layers: Sequence[Json]) -> tuple[list[str], list[list[str]]]:
    heads = [
        "layer",
        "parameters",
        "million MACs",
        "format",
        "kurtosis",
        "weights off",
        "alone",
        "propagated",
        "cosine",
    ]
    rows = []
    for row in layers:
        weights, alone = row.get("weights") or {}, row.get("alone") or {}
        moved = (row.get("activations") or {}).get("propagated") or {}
        rows.append(
            [
                row["layer"],
                count(row.get("parameters")),
                decimal(row["macs"] / 1e6, 2) if "macs" in row else "",
                str(weights.get("spec", "float")),
                decimal(weights.get("kurtosis"), 2),
                decimal(weights.get("relative_error"), 4),
                f"{alone['drift']:.2e}" if alone.get("drift") is not None else "",
                decimal(moved.get("relative_error"), 4),
                decimal(moved.get("cosine"), 4),
            ]
        )
    return filled(heads, rows)


def _damage(source: Source, name: str) -> tuple[list[str], dict[str, Any]]:
    values, method = source.content["values"], source.content["settings"].get("method", "damage")
    specs = list(dict.fromkeys(spec for row in values.values() for spec in row))
    worst = sorted(values, key=lambda layer: -max(values[layer].values(), default=0.0))[:SHOWN]

    def draw(axes: Axes) -> None:
        places = np.arange(len(worst))
        for index, spec in enumerate(specs):
            known = [(place, values[layer][spec]) for place, layer in enumerate(worst) if spec in values[layer]]
            look = {**figures.style(index), "linestyle": "none"}
            axes.plot([v for _, v in known], [p for p, _ in known], **look, label=figures.short(spec))
        axes.set_yticks(places, [figures.short(layer) for layer in worst], fontsize=8)
        axes.set_ylim(len(worst) - 0.5, -0.5)
        axes.set_xscale("symlog", linthresh=_least_positive(values))
        figures.plain_numbers(axes.xaxis)
        axes.set_xlabel(f"damage, measured by {method}")
        figures.legend_below(axes, 4)

    told = "; ".join(f"{layer}: {max(values[layer].values(), default=0.0):.3g}" for layer in worst)
    title = "What each format would do to each layer"
    svg = figures.drawn(name, title, f"Largest damage. {told}", draw, height=1.6 + 0.21 * len(worst))
    return [page.figure(svg, f"{title}, alone; the worst layers on top.")], {"method": method, "values": values}


def _least_positive(values: Json) -> float:
    return min((value for row in values.values() for value in row.values() if value > 0), default=1.0)


def _sweep(source: Source, name: str) -> tuple[list[str], dict[str, Any]]:
    content = source.content
    if not content.get("table"):
        measured = [
            ["+".join(one["groups"]) or "nothing", count(one["bytes"]), percent(one["mean_eer"])]
            for one in content["sets"]
        ]
        note = page.paragraph("The sweep is not finished; run the same command again to go on.", "note")
        return [note, page.table("Measured so far", ["8 bits in", "bytes", "EER %"], measured)], {}
    table = content["table"]
    pairs = [(row["group"], 100 * row["eer_change"]) for row in table]
    title = "8 bits in one group of layers, all others in float"
    unit = "change of the mean EER, points of per cent"
    heads = ["8 bits in", "bytes", "saved %", "EER %", "change", "minDCF change", "cosine"]
    rows = [("nothing", content["float"]), *((row["group"], row) for row in table)]
    rows += [("+".join(row["groups"]), row) for row in content["pareto"] if len(row["groups"]) > 1]
    cells = [
        [
            label,
            count(row["bytes"]),
            percent(row["share_saved"]),
            percent(row["eer"]),
            percent(row["eer_change"], sign=True),
            f"{row['min_dcf_change']:+.4f}",
            decimal(row["cosine"], 4),
        ]
        for label, row in rows
    ]
    chosen = content["chosen"]
    told = f"Smallest within {percent(content['max_eer_loss'])} points: {count(chosen['bytes'])} bytes"
    told += f", plan {chosen['plan']}."
    parts = [page.figure(_bars(name, title, unit, pairs, 1), f"{title}; below 0 the EER fell, mostly by luck.")]
    shown = {key: content[key] for key in ("float", "table", "pareto", "chosen")}
    return [*parts, page.table("Measured sets of groups", heads, cells), page.paragraph(told)], shown


def weights(found: Found) -> Section | None:
    """Weights and the levels they are stored at, and how far off they are against the size of their layer."""
    parts: list[str] = []
    data: list[Json] = []
    for index, source in enumerate(found.of("analysis")):
        rows = [row for row in source.content["layers"] if (row.get("weights") or {}).get("histogram")]
        worst = sorted(rows, key=lambda row: -((row.get("alone") or {}).get("drift") or 0.0))[:WEIGHTS_SHOWN]
        if not worst:
            continue
        told = "; ".join(f"{row['layer']}: kurtosis {row['weights']['kurtosis']:.1f}" for row in worst)
        high = 0.8 + 1.5 * ((len(worst) + 1) // 2)
        svg = figures.drawn(
            f"weights-{index}",
            "Weights of the layers with the largest drift alone",
            told,
            partial(_weight_panels, rows=worst),
            height=high,
            shape=((len(worst) + 1) // 2, 2),
            squeeze=False,
        )
        note = "Weights in units of the outermost level, short lines: the levels where they are few"
        parts.append(page.figure(svg, f"{source.name}: {note}. {told}."))
        svg = figures.drawn(
            f"weights-off-{index}",
            "Mean error of the weights against parameters and MACs",
            f"A point a layer, {len(rows)} layers",
            partial(_off_panels, rows=rows),
            height=3.2,
            shape=(1, 2),
            sharey=True,
        )
        parts.append(page.figure(svg, "Mean |W - Ŵ| in units of the outermost level, a point a layer."))
        data.append({"source": source.name, "layers": [{"layer": row["layer"], **row["weights"]} for row in rows]})
    return Section("weights", "Weights and levels", parts, data) if parts else None


def _weight_panels(axes: Any, rows: Sequence[Json]) -> None:
    for panel, row in zip(axes.flat, rows, strict=False):
        bars = row["weights"]["histogram"]
        edges = np.linspace(bars["from"], bars["to"], len(bars["counts"]) + 1)
        share = np.asarray(bars["counts"], dtype=float) / max(sum(bars["counts"]), 1) * 100
        panel.stairs(share, edges, **figures.filled(0))
        levels = bars.get("levels") or []
        panel.vlines(levels, 0, 0.12 * max(share.max(), 1e-9), color=figures.SERIES[1], linewidth=2.2)
        panel.set_title(f"{figures.short(row['layer'], 28)}: {row['weights']['spec']}", loc="left", fontsize=8.5)
        panel.set_ylabel("%")
    for panel in list(axes.flat)[len(rows) :]:
        panel.set_axis_off()


def _off_panels(axes: Any, rows: Sequence[Json]) -> None:
    for index, (panel, (key, unit)) in enumerate(
        zip(axes, (("parameters", "parameters"), ("macs", "MACs")), strict=True)
    ):
        kept = [(row[key], row["weights"]["mean_error"]) for row in rows if row.get(key)]
        look = {**figures.style(index), "linestyle": "none"}
        panel.plot([x for x, _ in kept], [y for _, y in kept], **look)
        panel.set_xscale("log")
        figures.plain_numbers(panel.xaxis)
        panel.set_xlabel(unit)
    axes[0].set_ylabel("mean error of the weights")
