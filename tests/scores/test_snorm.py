"""AS-norm against loops and values worked by hand."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.errors import BadInput
from sottovoce.scores import snorm
from sottovoce.scores.snorm import as_norm, cohort_statistics, speaker_means
from sottovoce.scores.views import unit


def vectors(count: int, dim: int = 6, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32))


SPREAD = {"population": statistics.pstdev, "sample": statistics.stdev}


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 12), st.integers(0, 20), st.sampled_from(sorted(SPREAD)), st.integers(0, 2**31))
def test_statistics_equal_a_loop(top: int, more: int, deviation: str, seed: int) -> None:
    table, cohort = vectors(7, seed=seed), vectors(top + more, seed=seed + 1)
    found = cohort_statistics(table, cohort, top, deviation)
    for row, (mean, spread) in zip(table, found, strict=True):
        highest = sorted(sum(float(a) * float(b) for a, b in zip(row, one, strict=True)) for one in cohort)[-top:]
        assert mean == pytest.approx(statistics.mean(highest), abs=1e-6)  # float32 products
        assert spread == pytest.approx(SPREAD[deviation](highest), abs=1e-6)


def test_the_highest_of_many_are_found() -> None:
    table, cohort = vectors(20, seed=4), vectors(700, seed=5)
    highest = np.sort(table.astype(float) @ cohort.T.astype(float), axis=1)[:, -40:]
    wanted = np.stack([highest.mean(axis=1), highest.std(axis=1)], axis=1)
    np.testing.assert_allclose(cohort_statistics(table, cohort, 40), wanted, atol=1e-6)


def test_worked_by_hand() -> None:
    """Cohort scores 1, 0, 0.6: the top two are 1 and 0.6; population deviation 0.2, sample deviation 0.2·√2."""
    cohort = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    one = np.array([[1, 0]], dtype=np.float32)
    np.testing.assert_allclose(cohort_statistics(one, cohort, 2), [[0.8, 0.2]], atol=1e-7)
    np.testing.assert_allclose(cohort_statistics(one, cohort, 2, "sample"), [[0.8, 0.2 * 2**0.5]], atol=1e-7)
    # ((0.9 - 0.8) / 0.2 + (0.9 - 0.5) / 0.1) / 2
    assert as_norm([0.9], np.array([[0.8, 0.2]]), np.array([[0.5, 0.1]])).tolist() == [pytest.approx(2.25)]


def test_blocks_change_nothing_and_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    table, cohort = vectors(50), vectors(20, seed=1)
    alone = cohort_statistics(table, cohort, 5)
    monkeypatch.setattr(snorm, "_BLOCK_ENTRIES", 7 * 20)
    seen: list[int] = []
    np.testing.assert_allclose(cohort_statistics(table, cohort, 5, advance=seen.append), alone, atol=1e-7)
    assert seen == [7] * 7 + [1]


def test_sides_may_be_swapped_and_scales_vanish() -> None:
    rng = np.random.default_rng(0)
    scores, sides = rng.normal(size=9), rng.uniform(0.1, 1.0, size=(2, 9, 2))
    np.testing.assert_allclose(as_norm(scores, *sides), as_norm(scores, *sides[::-1]), atol=1e-12)
    moved = sides * [3.0, 3.0] + [0.5, 0.0]
    np.testing.assert_allclose(as_norm(3 * scores + 0.5, *moved), as_norm(scores, *sides), atol=1e-12)


def test_speakers_are_averaged_at_unit_length() -> None:
    table = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    found = speaker_means(table, ["b", "a", "b"])
    np.testing.assert_allclose(found, [np.array([1.6, 0.8]) / np.sqrt(3.2), [0, 1]], atol=1e-7)
    with pytest.raises(BadInput, match="no speaker"):
        speaker_means(table, ["b", "", "b"])


def test_what_cannot_be_normalised() -> None:
    table, cohort = vectors(3), vectors(4, seed=1)
    with pytest.raises(BadInput, match="4 members, fewer than the top 5"):
        cohort_statistics(table, cohort, 5)
    with pytest.raises(BadInput, match="2 or more"):
        cohort_statistics(table, cohort, 1)
    with pytest.raises(BadInput, match="deviation 'median'"):
        cohort_statistics(table, cohort, 2, "median")
    with pytest.raises(BadInput, match="do not fit"):
        cohort_statistics(table, cohort[:, :3], 2)
    with pytest.raises(BadInput, match="NaN"):
        cohort_statistics(table, np.where(cohort > 0, cohort, np.nan), 2)
    with pytest.raises(BadInput, match="the same score"):
        as_norm([0.5], *2 * [cohort_statistics(table[:1], np.repeat(cohort[:1], 3, axis=0), 3)])
    with pytest.raises(BadInput, match="do not fit"):
        as_norm([0.5, 0.6], np.ones((1, 2)), np.ones((1, 2)))
