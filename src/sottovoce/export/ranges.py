"""Ranges of activations: histograms over recordings, and the clip that loses least."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import BadInput
from sottovoce.export.graph import Graph, session

BINS = 4096  # on each side of zero
CLIPS = np.linspace(0.3, 1.0, 81)  # shares of the observed range that a clip may keep
# What a squared error of clipping counts, that of rounding being 1: errors of rounding differ from value to value and
# average out over a recording, those of a clip fall on the same channels of the same recordings, all to one side.
CLIP_HARM = 16.0

Grid = tuple[np.float32, np.uint8]  # scale, zero point


@dataclass
class Histogram:
    """Counts in 2 × BINS equal bins over -limit … limit; the limit doubles when a value falls outside."""

    limit: float = 2.0**-10
    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2 * BINS))
    low: float = 0.0
    high: float = 0.0

    def add(self, values: NDArray[np.float32]) -> None:
        """Count values of any shape."""
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        while max(-self.low, self.high) >= self.limit:
            halves = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([np.zeros(BINS // 2), halves, np.zeros(BINS // 2)])
            self.limit *= 2
        bins = (values.ravel() * np.float32(BINS / self.limit) + np.float32(BINS)).astype(np.int32)
        self.counts += np.bincount(bins, minlength=2 * BINS)[: 2 * BINS]

    def merged(self, other: Histogram) -> Histogram:
        """Counts of both."""
        wide, narrow = (self, other) if self.limit >= other.limit else (other, self)
        counts = narrow.counts
        for _ in range(int(np.log2(wide.limit / narrow.limit))):
            counts = np.concatenate([np.zeros(BINS // 2), counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2)])
        return Histogram(wide.limit, wide.counts + counts, min(self.low, other.low), max(self.high, other.high))

    def centres(self) -> NDArray[np.float64]:
        """Middle of each bin."""
        return (np.arange(2 * BINS) - BINS + 0.5) * (self.limit / BINS)


def uint8_range(histogram: Histogram) -> Grid:
    """Scale and zero point of the uint8 grid that does least harm, zero exactly on the grid.

    The grid is searched among clips of the observed range: inside, the squared error is step² / 12, that of rounding;
    outside it is that to the nearest end, and counts CLIP_HARM times.
    """
    used = histogram.counts > 0
    centres, counts = histogram.centres()[used], histogram.counts[used]
    best, least = minmax_range(histogram), np.inf
    for share_low in CLIPS[::8] if histogram.low < 0 else CLIPS[-1:]:
        for share_high in CLIPS[::8] if histogram.low < 0 else CLIPS:
            scale, zero = _grid(histogram.low * share_low, histogram.high * share_high)
            ends = np.clip(centres, -float(zero) * float(scale), (255.0 - zero) * float(scale))
            rounding = counts[ends == centres].sum() * float(scale) ** 2 / 12
            harm = rounding + CLIP_HARM * (counts * (centres - ends) ** 2).sum()
            if harm < least:
                best, least = (scale, zero), harm
    return best


def minmax_range(histogram: Histogram) -> Grid:
    """Scale and zero point of the uint8 grid over all that was observed: percentile 100 of arXiv 2407.08991."""
    return _grid(histogram.low, histogram.high)


RULES = {"mse": uint8_range, "minmax": minmax_range}  # how a range follows from what was observed


def _grid(low: float, high: float) -> Grid:
    scale = max(high - low, 1e-6) / 255
    return np.float32(scale), np.uint8(np.clip(np.rint(-low / scale), 0, 255))


def observe(graph: Graph, groups: Sequence[Sequence[str]], waves: Iterable[NDArray[np.float32]]) -> list[Histogram]:
    """Run the float graph on recordings, (samples,) each; returns one histogram for every group of tensors.

    Raises BadInput when there is no recording.
    """
    if not groups:  # coded weights in float operators only; a session asked for nothing would return everything
        return []
    tensors = sorted({tensor for group in groups for tensor in group})
    runner = session(graph.model(extra_outputs=tensors))
    single = {tensor: Histogram() for tensor in tensors}
    (name,) = graph.inputs
    seen = 0
    for wave in waves:
        seen += 1
        for tensor, values in zip(tensors, runner.run(tensors, {name: wave[None]}), strict=True):
            single[tensor].add(values)
    if not seen:
        raise BadInput("export: no recordings to observe activation ranges on; give at least one")
    return [_merge([single[tensor] for tensor in group]) for group in groups]


def _merge(histograms: Sequence[Histogram]) -> Histogram:
    first, *rest = histograms
    for other in rest:
        first = first.merged(other)
    return first
