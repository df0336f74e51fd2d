"""Section of a report on bits: how they were given out among the layers of a file or a plan."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import PurePath

from matplotlib.axes import Axes

from sottovoce.lab import figures, page
from sottovoce.lab.figures import INK
from sottovoce.lab.page import Section
from sottovoce.lab.report_words import count, decimal, filled
from sottovoce.lab.sources import Found, Json


def allocation(found: Found) -> Section | None:
    """Bits of each layer, of files that were inspected and of plans that were searched for."""
    parts: list[str] = []
    data: list[Json] = []
    for index, source in enumerate(found.of("inspection", "allocation")):
        content = source.content
        layers = [*content["layers"], *content.get("float_layers", [])]
        rows = [(str(one["name"]), int(one.get("bits", 32)), one) for one in layers]
        title = f"Bits of each layer, {PurePath(str(content.get('model') or source.name)).name}"
        parts.append(_figure(f"bits-{index}", title, rows, content))
        parts += [page.paragraph(_size(content)), page.folded("All layers", [page.table(title, *_allocated(layers))])]
        kept = ("name", "bits", "bytes", "macs", "bit_operations", "damage")
        data.append({"source": source.name, "layers": [{key: one.get(key) for key in kept} for one in layers]})
    return Section("bits", "Bits of each layer", parts, data) if parts else None


def _figure(name: str, title: str, rows: Sequence[tuple[str, int, Json]], content: Json) -> str:
    """Bars of the layers; a sentence where all have one width."""
    words = f"{title}: {len(rows)} layers in the order of the network. Plan {content.get('plan')}."
    widths = {bits for _, bits, _ in rows}
    if len(widths) == 1:
        return page.paragraph(f"{title}: {widths.pop()} in each of {len(rows)} layers. Plan {content.get('plan')}.")
    told = "; ".join(f"{layer}: {bits}" for layer, bits, _ in rows)
    return page.figure(figures.drawn(name, title, told, partial(_bits, rows=rows), height=3.4), words)


def _bits(axes: Axes, rows: Sequence[tuple[str, int, Json]]) -> None:
    widths = sorted({bits for _, bits, _ in rows})
    height = {bits: place + 1 for place, bits in enumerate(widths)}  # even steps, so that 32 does not dwarf 2
    for index, bits in enumerate(widths):
        places = [place for place, (_, width, _) in enumerate(rows) if width == bits]
        axes.bar(places, [height[bits]] * len(places), 0.85, **figures.bar(index), label=f"{bits} bits")
    axes.set_yticks(list(height.values()), [str(bits) for bits in widths])
    axes.set_ylabel("bits a weight")
    every = max(1, -(-len(rows) // 30))
    shown = range(0, len(rows), every)
    axes.set_xticks(
        list(shown), [figures.short(rows[place][0], 22) for place in shown], rotation=90, fontsize=7, color=INK
    )
    axes.grid(False, axis="x")


def _size(content: Json) -> str:
    said = {"bytes": "bytes of the file", "packed_bytes": "packed", "file_bytes": "bytes of the file at most"}
    told = [f"{count(content[key])} {words}" for key, words in said.items() if content.get(key) is not None]
    if content.get("bits_per_weight") is not None:
        told.append(f"{content['bits_per_weight']:.3f} bits a weight")
    if content.get("macs") is not None:
        work = (
            f"{content['macs'] / 1e9:.3f} billion MACs and {content['bit_operations'] / 1e9:.1f} billion bit-operations"
        )
        told.append(f"{work} for {content.get('seconds', 3):g} s of audio")
    return f"{', '.join(told)}."


def _allocated(layers: Sequence[Json]) -> tuple[list[str], list[list[str]]]:
    heads = ["layer", "shape", "format", "bits", "bytes", "million MACs", "giga bit-operations", "damage"]
    rows = [
        [
            str(one["name"]),
            "×".join(map(str, one.get("shape", []))),
            str(one.get("format") or one.get("spec") or "float"),
            str(one.get("bits", 32)),
            count(one.get("bytes")),
            decimal(one["macs"] / 1e6, 2) if "macs" in one else "",
            decimal(one["bit_operations"] / 1e9, 2) if "bit_operations" in one else "",
            f"{one['damage']:.2e}" if one.get("damage") is not None else "",
        ]
        for one in layers
    ]
    return filled(heads, rows)
