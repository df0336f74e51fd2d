"""Histograms against NumPy's, and the chosen grid against a search over every grid."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.export.ranges import BINS, CLIP_HARM, Histogram, minmax_range, uint8_range


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50), st.integers(1, 4))
def test_histogram_counts_every_value_in_its_bin(values, parts):
    histogram = Histogram()
    for part in np.array_split(np.float32(values), parts):
        if part.size:
            histogram.add(part)
    assert histogram.counts.sum() == len(values)
    assert histogram.low == min(0, min(values))
    assert histogram.high == max(0, max(values))
    order = np.repeat(histogram.centres(), histogram.counts.astype(int))
    assert np.abs(order - np.sort(values)).max() <= histogram.limit / BINS  # a bin's width


def test_merging_equals_counting_together():
    a, b = np.random.default_rng(0).normal(0, [[1], [50]], (2, 1000)).astype(np.float32)
    together, first, second = Histogram(), Histogram(), Histogram()
    together.add(np.concatenate([a, b]))
    first.add(a)
    second.add(b)
    merged = first.merged(second)
    assert (merged.limit, merged.low, merged.high) == (together.limit, together.low, together.high)
    # a value at the edge of a fine bin may fall to the other side of the same edge in a coarse one
    assert np.abs(np.cumsum(merged.counts) - np.cumsum(together.counts)).max() <= 1


def damage(values: np.ndarray, scale: float, zero: int) -> float:
    codes = np.rint(values / scale) + zero
    error = (values - (np.clip(codes, 0, 255) - zero) * scale) ** 2
    return float(np.mean(np.where((codes < 0) | (codes > 255), CLIP_HARM, 1) * error))


@pytest.mark.parametrize("kind", ["relu", "gauss", "outlier", "heavy"])
def test_the_grid_is_nearly_the_best_of_all(kind):
    rng = np.random.default_rng(1)
    values = {
        "relu": np.maximum(rng.normal(size=20000), 0),
        "gauss": rng.normal(0.3, 2, size=20000),
        "outlier": np.append(np.abs(rng.normal(size=20000)), 30),
        "heavy": np.abs(rng.standard_t(3, size=200000)),  # its tail is best cut off
    }[kind].astype(np.float32)
    histogram = Histogram()
    histogram.add(values)
    scale, zero = uint8_range(histogram)
    assert (scale.dtype, zero.dtype) == (np.float32, np.uint8)
    if values.min() >= 0:
        assert zero == 0
    spread = values.max() - min(0, values.min())
    grids = [
        (s, z)
        for s in spread / 255 * np.linspace(0.3, 1, 60)
        for z in ({0} if values.min() >= 0 else range(60, 200, 4))
    ]
    assert damage(values, float(scale), int(zero)) <= 1.06 * min(damage(values, s, z) for s, z in grids)


def test_a_tensor_that_is_always_zero_has_a_grid():
    histogram = Histogram()
    histogram.add(np.zeros(5, dtype=np.float32))
    scale, zero = uint8_range(histogram)
    assert scale > 0
    assert zero == 0


def test_the_whole_range_is_covered_where_that_is_asked_for():
    histogram = Histogram()
    histogram.add(np.float32([-1, 0.1, 0.2, 50]))
    scale, zero = minmax_range(histogram)
    assert (0 - float(zero)) * scale == pytest.approx(-1, abs=float(scale))
    assert (255 - float(zero)) * scale == pytest.approx(50, abs=float(scale))
