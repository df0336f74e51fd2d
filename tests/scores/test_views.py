"""Views of a recording against the pair cosines, written out, that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.errors import BadInput
from sottovoce.scores.views import (
    WAYS,
    crops,
    mean_of_scores,
    mean_of_units,
    segments,
    standing_for,
    unit,
    way_named,
)

RATE = 100  # Hz: a segment has 400 samples and starts every 300


def rows(rng: np.random.Generator, count: int, dim: int = 8) -> np.ndarray:
    return unit(rng.normal(size=(count, dim)).astype(np.float32))


def first_and_length(pieces: list[np.ndarray]) -> list[tuple[int, int]]:
    return [(int(piece[0]), len(piece)) for piece in pieces]


def test_segments_by_hand() -> None:
    wave = np.arange(2000, dtype=np.float32)
    assert first_and_length(segments(wave[:400], RATE)) == [(0, 400)]
    assert first_and_length(segments(wave[:399], RATE)) == [(0, 399)]
    assert first_and_length(segments(wave[:401], RATE)) == [(0, 400), (1, 400)]
    assert first_and_length(segments(wave[:1000], RATE)) == [(0, 400), (300, 400), (600, 400)]
    assert first_and_length(segments(wave[:1050], RATE)) == [(0, 400), (300, 400), (600, 400), (650, 400)]


@given(st.integers(1, 3000))
def test_segments_lose_nothing_and_overlap_by_a_second_or_more(samples: int) -> None:
    pieces = segments(np.arange(samples, dtype=np.float32), RATE)
    assert len(np.unique(np.concatenate(pieces))) == samples
    starts = [int(piece[0]) for piece in pieces]
    assert all(0 < step <= 300 for step in np.diff(starts))
    assert {len(piece) for piece in pieces} == {min(samples, 400)}


def test_crops_are_those_of_the_paper() -> None:
    """300 hops and 240 samples at 16 kHz, from starts that np.linspace gives, short ones padded by wrapping."""
    length = 300 * 160 + 240
    wave = np.arange(100_000, dtype=np.float32)
    assert first_and_length(crops(wave, 16000)) == [
        (int(start), length) for start in np.linspace(0, 100_000 - length, num=5)
    ]
    short = crops(wave[:20_000], 16000)
    assert len(short) == 1
    np.testing.assert_array_equal(short[0], np.pad(wave[:20_000], (0, length - 20_000), "wrap"))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 10), st.integers(1, 10), st.integers(0, 2**31))
def test_one_dot_product_is_the_mean_of_all_pair_cosines(left: int, right: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rows(rng, left), rows(rng, right)
    looped = np.mean([[float(x.astype(float) @ y.astype(float)) for y in b] for x in a])
    assert float(standing_for([a]) @ standing_for([b])) == pytest.approx(looped, abs=1e-6)  # float32 products


def test_two_views_count_the_same() -> None:
    """Paper A: (cosine of the whole + mean of the 25 cosines of crops) / 2."""
    rng = np.random.default_rng(0)
    (whole_a, whole_b), crops_a, crops_b = rows(rng, 2), rows(rng, 5), rows(rng, 5)
    wanted = (whole_a @ whole_b + np.mean(crops_a @ crops_b.T)) / 2
    found = standing_for([whole_a[None], crops_a]) @ standing_for([whole_b[None], crops_b])
    assert float(found) == pytest.approx(float(wanted), abs=1e-6)
    assert len(WAYS["crops"].views) == 2


def test_a_centre_is_taken_from_every_piece() -> None:
    rng = np.random.default_rng(1)
    a, b, centre = rows(rng, 3), rows(rng, 2), rows(rng, 1)[0] / 2
    pairs = [
        np.dot(x - centre, y - centre) / np.linalg.norm(x - centre) / np.linalg.norm(y - centre) for x in a for y in b
    ]
    assert float(standing_for([a], centre) @ standing_for([b], centre)) == pytest.approx(np.mean(pairs), abs=1e-6)


def test_several_recordings_by_hand() -> None:
    two = np.array([[1, 0], [0.6, 0.8]], dtype=np.float32)
    np.testing.assert_allclose(mean_of_units(two), np.array([1.6, 0.8]) / np.sqrt(3.2), atol=1e-7)
    np.testing.assert_allclose(mean_of_scores(two), [0.8, 0.4], atol=1e-7)


def test_the_mean_of_scores_is_that() -> None:
    rng = np.random.default_rng(2)
    several, other = rows(rng, 4), rows(rng, 1)[0]
    assert float(mean_of_scores(several) @ other) == pytest.approx(float(np.mean(several @ other)), abs=1e-6)


def test_each_view_of_several_recordings_has_the_same_weight() -> None:
    rng = np.random.default_rng(3)
    several = np.stack([standing_for([rows(rng, 1), rows(rng, 5)]) for _ in range(3)])
    joined = mean_of_units(several, views=2)
    np.testing.assert_allclose(np.linalg.norm(joined.reshape(2, -1), axis=1), np.sqrt([0.5, 0.5]), atol=1e-6)


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(BadInput, match="whole, segments, crops"):
        way_named("halves")
