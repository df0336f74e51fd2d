"""Drawings of a report as SVG inside the page: no box of their own, inks from the page, the same bytes every time.

Text and axes take the page's ink, series the variables --c1 to --c7, which are the colours of Okabe and Ito, a little
darker or lighter where the page needs it. Markers, line styles and hatches differ too, so that grey print and
colour-blind readers lose nothing.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

from sottovoce.lab.page import escape

INK, DIM, GRID, BAND = "#010101", "#010102", "#010103", "#010104"  # stand for what the page decides
SERIES = tuple(f"#0102{index:02d}" for index in range(1, 8))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 2, 1, 2)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (2, 3)))
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "++++")
WIDTH = 7.6  # inches at 72 units each
INKS = {INK: "currentColor", DIM: "var(--dim)", GRID: "var(--grid)", BAND: "var(--band)"}
INKS |= {colour: f"var(--c{index})" for index, colour in enumerate(SERIES, 1)}
LOOK: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sottovoce",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 10,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "axes.edgecolor": DIM,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "hatch.color": INK,
    "hatch.linewidth": 0.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
}


def drawn(
    name: str,
    title: str,
    text: str,
    draw: Callable[[Any], None],
    *,
    height: float = 4.0,
    shape: tuple[int, int] = (1, 1),
    **shared: Any,
) -> str:
    """An SVG element drawn by `draw`, which is given the axes, or an array of them where `shape` asks for more.

    name: unique on the page, letters, digits and -.   title, text: for readers who cannot see it.   height: inches.
    """
    with matplotlib.rc_context(LOOK), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the metrics have no width for; the reader's fonts draw them
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(*shape, **shared)
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(file.getvalue(), name, title, text)


def style(index: int) -> dict[str, Any]:
    """Colour, marker and line style of a series; after seven, colours come again with other markers."""
    round_, place = divmod(index, len(SERIES))
    return {
        "color": SERIES[place],
        "marker": MARKERS[(place + round_) % len(MARKERS)],
        "linestyle": LINES[(place + round_) % len(LINES)],
    }


def line(index: int) -> dict[str, Any]:
    """`style` without the marker, for curves of many points."""
    return {key: value for key, value in style(index).items() if key != "marker"}


def bar(index: int) -> dict[str, Any]:
    """Colour and hatch of a series of bars."""
    place = index % len(SERIES)
    return {"facecolor": SERIES[place], "edgecolor": INK, "linewidth": 0.4, "hatch": HATCHES[place]}


def filled(index: int) -> dict[str, Any]:
    """Outline of a histogram in a series' colour and line style, its area in the same colour, thin."""
    look = style(index)
    area = matplotlib.colors.to_rgba(look["color"], 0.2)
    return {
        "fill": True,
        "facecolor": area,
        "edgecolor": look["color"],
        "linestyle": look["linestyle"],
        "linewidth": 1.4,
    }


def short(text: object, most: int = 34) -> str:
    """A label that fits: the middle of a long one is left out."""
    shown = "".join(one if one.isprintable() else " " for one in str(text))
    half = (most - 1) // 2
    return shown if len(shown) <= most else f"{shown[:half]}…{shown[-half:]}"


def side_bars(axes: Axes, names: Sequence[str], values: Sequence[float], index: int = 0) -> None:
    """Horizontal bars, the first on top, each with its name."""
    places = np.arange(len(names))
    axes.barh(places, values, 0.72, **bar(index))
    axes.set_yticks(places, [short(name) for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")


def plain_numbers(axis: Axis) -> None:
    """Ticks of a logarithmic axis as 10 k or 0.001: powers would need formulas, which no text here is read as."""
    axis.set_major_formatter(lambda value, _: f"{value:g}" if abs(value) < 1000 else EngFormatter()(value))
    axis.set_minor_formatter(NullFormatter())


def legend_below(axes: Axes, columns: int = 3) -> None:
    """A legend under the axes, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


def _inline(svg: str, name: str, title: str, text: str) -> str:
    """The drawing as an element of a page: loads nothing, has ids of its own and the page's inks, told in words."""
    body = svg[svg.index("<svg") : svg.rindex("</svg>")]
    box = re.search(r'viewBox="[^"]*"', body)
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"<[^>]*>", lambda tag: _tag(tag[0], name), body)
    body = re.sub(r" font-family: [^;\"]*;", "", body)  # a list of names in every word: the page's own is as good
    used = set(re.findall(r'(?:url\(#|href="#)([^")]*)', body))
    body = re.sub(r' id="([^"]*)"', lambda at: at[0] if at[1] in used else "", body)
    body = re.sub(r"\s*\n\s*", "\n", body.replace("<defs>\n  \n </defs>", ""))
    return (
        f'<svg {box[0] if box else ""} role="img" aria-labelledby="{name}-title {name}-text">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-text">{escape(text)}</desc>{body}</svg>'
    )


def _tag(tag: str, name: str) -> str:
    """One tag with short numbers, ids of this drawing and the inks of the page."""
    tag = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), tag)
    tag = tag.replace("xlink:href", "href")
    tag = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", tag)
    return re.sub(r"#010[12]\d\d", lambda ink: INKS.get(ink[0], ink[0]), tag)
