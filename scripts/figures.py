"""Make the figures in docs/figures from results/*.json.

    python scripts/figures.py

Colours are those of Okabe and Ito, which the colour-blind can tell apart; markers differ too, so that print in grey
does not lose anything.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

ROOT = Path(__file__).parents[1]
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def quantizers() -> None:
    """Bytes of the whole file against the mean EER, one line a method, with the float network's rate."""
    models = json.loads((ROOT / "results" / "quantizers.json").read_text(encoding="utf-8"))["models"]
    first, cells = models[0], [model for model in models[1:] if model["seed"] == models[1]["seed"]]
    figure, axes = pyplot.subplots(figsize=(7.2, 4.4), layout="constrained")
    for index, method in enumerate(dict.fromkeys(cell["method"] for cell in cells)):
        points = sorted((cell["bytes"] / 1000, 100 * cell["mean_eer"]) for cell in cells if cell["method"] == method)
        axes.plot(*zip(*points, strict=True), color=COLOURS[index], marker=MARKERS[index], label=method)
    low, high = (100 * edge for edge in first["mean_eer_interval"])
    axes.axhspan(low, high, color="0.92", zorder=0)
    axes.axhline(100 * first["mean_eer"], color="0.4", linestyle="--", linewidth=1)
    axes.annotate(
        f"dashed: float, {first['bytes'] / 1000:,.0f} kB; band: its 95 % interval",
        (1.0, 0.0),
        xycoords="axes fraction",
        xytext=(-6, 14),
        textcoords="offset points",
        ha="right",
    )
    axes.set_xscale("log")
    axes.set_xlabel("bytes of the file, kB (weights of 1, 2, 3, 4 and 8 bits)")
    axes.set_ylabel("mean EER, %")
    axes.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.set_xticks([150, 200, 300, 400, 600, 1000])
    axes.grid(True, which="both", color="0.9")
    axes.legend(frameon=False)
    folder = ROOT / "docs" / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "quantizers.svg", metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    quantizers()
