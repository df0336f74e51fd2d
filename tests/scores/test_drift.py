"""Drift and flips: counted by hand, by brute force, and with the arithmetic of the paper's tables."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.errors import BadInput
from sottovoce.scores.drift import (
    EDGES,
    compare_scores,
    flips,
    knee,
    margin_bins,
    mean_of_sets,
    redrawn_sums,
)
from sottovoce.scores.metrics import equal_error, redrawn

# Eight trials at the threshold 0.5, one of every kind, margins 0.02, 0.1 and 0.3.
#            label  reference  other
BY_HAND = [
    (1, 0.52, 0.49),  # near, right, then wrong: harmful
    (1, 0.52, 0.60),  # near, right, stays right
    (0, 0.48, 0.50),  # near, right, then wrong, at the threshold itself: harmful
    (0, 0.52, 0.47),  # near, wrong, then right: beneficial
    (1, 0.40, 0.55),  # middle, wrong, then right: beneficial
    (0, 0.60, 0.70),  # middle, wrong, stays wrong
    (1, 0.80, 0.30),  # far, right, then wrong: harmful
    (0, 0.20, 0.25),  # far, right, stays right
]
LABELS, REFERENCE, OTHER = (np.array(column) for column in zip(*BY_HAND, strict=True))


def test_flips_of_the_hand_made_trials_are_counted_exactly() -> None:
    harmful, beneficial = flips(REFERENCE, OTHER, LABELS, 0.5)
    assert np.flatnonzero(harmful).tolist() == [0, 2, 6]
    assert np.flatnonzero(beneficial).tolist() == [3, 4]


def test_bins_of_the_hand_made_trials_are_counted_exactly() -> None:
    found = compare_scores(REFERENCE, OTHER, LABELS, 0.5, np.arange(8), np.arange(8), draws=0)["flips"]
    assert (found["harmful"], found["beneficial"]) == (3, 2)
    assert (found["harmful_rate"], found["beneficial_rate"]) == (3 / 8, 2 / 8)
    counts = [[row[key] for key in ("bin", "trials", "right", "harmful", "beneficial")] for row in found["bins"]]
    assert counts == [["near", 4, 3, 2, 1], ["middle", 2, 0, 0, 1], ["far", 2, 2, 1, 0]]
    assert [row["harmful_rate"] for row in found["bins"]] == [2 / 4, 0.0, 1 / 2]
    assert [(row["from"], row["to"]) for row in found["bins"]] == [(0.0, EDGES[0]), EDGES, (EDGES[1], None)]


def test_drift_of_the_hand_made_trials() -> None:
    found = compare_scores(REFERENCE, OTHER, LABELS, 0.5, np.arange(8), np.arange(8), draws=0)
    moved = [-0.03, 0.08, 0.02, -0.05, 0.15, 0.10, -0.50, 0.05]
    assert found["mean_abs"] == pytest.approx(sum(map(abs, moved)) / 8)
    assert found["mean"] == pytest.approx(sum(moved) / 8)
    assert found["target_mean"] == pytest.approx((-0.03 + 0.08 + 0.15 - 0.50) / 4)
    assert found["nontarget_mean"] == pytest.approx((0.02 - 0.05 + 0.10 + 0.05) / 4)
    assert found["correlation"] == pytest.approx(np.corrcoef(REFERENCE, OTHER)[0, 1])
    assert found["mean_abs_interval"] is None


@pytest.mark.parametrize(
    ("in_domain", "out_of_domain", "printed"),
    [(1.234, 7.923, 3.910), (1.462, 8.538, 4.293), (1.277, 7.952, 3.947)],  # float, 2 bits, cascade
)
def test_the_mean_of_five_sets_is_that_of_the_paper(in_domain: float, out_of_domain: float, printed: float) -> None:
    found = mean_of_sets([in_domain] * 3, [out_of_domain] * 2)
    assert found["all"] == pytest.approx((3 * in_domain + 2 * out_of_domain) / 5, rel=1e-12)
    assert found["all"] == pytest.approx(printed, abs=0.001)  # its own means are rounded to three digits
    assert found["in_domain"] == pytest.approx(in_domain)


def test_a_mean_over_one_domain_says_nothing_of_the_other() -> None:
    assert mean_of_sets([1.0, 3.0]) == {"in_domain": 2.0, "out_of_domain": None, "all": 2.0}
    with pytest.raises(BadInput, match="there is none"):
        mean_of_sets([])


scores = st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=30)


@given(scores, st.floats(-1, 1), st.integers(0, 2**32 - 1))
def test_flips_agree_with_a_loop_and_swap_with_the_files(first: list[float], threshold: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    other, labels = rng.uniform(-1, 1, len(first)), rng.integers(0, 2, len(first))
    harmful, beneficial = flips(first, other, labels, threshold)
    for index, (a, b, label) in enumerate(zip(first, other, labels, strict=True)):
        was_right, is_right = (a >= threshold) == bool(label), (b >= threshold) == bool(label)
        assert harmful[index] == (was_right and not is_right)
        assert beneficial[index] == (is_right and not was_right)
    back = flips(other, first, labels, threshold)
    assert np.array_equal(back[0], beneficial)
    assert np.array_equal(back[1], harmful)


@given(st.lists(st.floats(0, 2), min_size=1, max_size=30), st.sets(st.floats(0.01, 1.5), min_size=1, max_size=5))
def test_every_margin_is_in_its_bin(margins: list[float], edges: set[float]) -> None:
    bounds = [0.0, *sorted(edges), np.inf]
    for margin, index in zip(margins, margin_bins(margins, sorted(edges)), strict=True):
        assert bounds[index] <= margin < bounds[index + 1]


def random_trials(speakers: int = 12, trials: int = 400) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(4)
    enrol = rng.integers(speakers, size=trials)
    test = np.where(rng.random(trials) < 0.4, enrol, rng.integers(speakers, size=trials))
    labels = (enrol == test).astype(int)
    first = rng.normal(0.3 + 0.3 * labels, 0.15)
    return first, first + rng.normal(0.02, 0.05, trials), labels, enrol, test


def test_draws_of_sums_are_those_of_a_loop() -> None:
    first, other, _, enrol, test = random_trials()
    found = redrawn_sums(np.stack([first, other]), enrol, test, 20, 7)
    rng = np.random.default_rng(7)
    for draw in range(20):
        times = np.bincount(rng.integers(12, size=12), minlength=12)
        weights = [times[a] if a == b else times[a] * times[b] for a, b in zip(enrol, test, strict=True)]
        assert found[draw] == pytest.approx([weights @ first, weights @ other])


def test_draws_are_the_same_as_those_of_error_rates() -> None:
    """A trial's weight summed over targets alone gives the miss rate that `redrawn` has at a threshold."""
    first, _, labels, enrol, test = random_trials()
    sums = redrawn_sums(np.stack([labels, labels * (first < 0.5)]).astype(float), enrol, test, 10, 3)

    def misses_at_half(misses: np.ndarray, accepts: np.ndarray) -> float:
        return float(misses[np.searchsorted(np.unique(first), 0.5)])

    rates = redrawn([first], labels, enrol, test, [misses_at_half, equal_error], 10, 3)[:, 0, 0]
    assert sums[:, 1] / sums[:, 0] == pytest.approx(rates)


def test_intervals_hold_the_figure_and_one_seed_gives_them_twice() -> None:
    first, other, labels, enrol, test = random_trials()
    found = compare_scores(first, other, labels, 0.45, enrol, test, draws=300, seed=1)
    assert found == compare_scores(first, other, labels, 0.45, enrol, test, draws=300, seed=1)
    for name in ("mean_abs", "mean", "target_mean", "nontarget_mean", "correlation"):
        low, high = found[f"{name}_interval"]
        assert low < found[name] < high
    for row in found["flips"]["bins"]:
        low, high = row["harmful_rate_interval"]
        assert low <= row["harmful_rate"] <= high


def test_a_system_does_not_drift_from_itself() -> None:
    first, _, labels, enrol, test = random_trials()
    found = compare_scores(first, first, labels, 0.45, enrol, test, draws=20)
    assert (found["mean_abs"], found["flips"]["harmful"], found["flips"]["beneficial"]) == (0.0, 0, 0)
    assert found["mean_abs_interval"] == [0.0, 0.0]
    assert found["correlation"] == pytest.approx(1.0)


def test_an_empty_bin_has_no_rate() -> None:
    found = compare_scores(REFERENCE, OTHER, LABELS, 0.5, np.arange(8), np.arange(8), edges=(0.5, 0.9), draws=0)
    assert [row["trials"] for row in found["flips"]["bins"]] == [8, 0, 0]
    assert found["flips"]["bins"][1]["harmful_rate"] is None


def test_the_knee_is_where_the_curve_bends() -> None:
    assert knee([2, 3, 4, 8], [1.0, 0.2, 0.1, 0.0]) == 1
    assert knee([8, 4, 3, 2], [0.0, 0.1, 0.2, 1.0]) == 2
    assert knee([2, 2, 3, 4, 8], [1.5, 1.0, 0.2, 0.1, 0.0]) == 2  # of one width the better file counts
    assert knee([2, 4, 8], [0.6, 0.5, 0.0]) is None  # bends the other way
    assert knee([2, 5, 8], [1.0, 0.5, 0.0]) is None  # a straight line
    assert knee([2, 4], [1.0, 0.0]) is None
    assert knee([2, 3, 4], [0.1, 0.2, 0.3]) is None  # rises


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"other": OTHER[:-1]}, "of one length"),
        ({"other": np.where(np.arange(8) == 3, np.nan, OTHER)}, "score 3 of 8 is nan"),
        ({"labels": LABELS + 1}, "labels must be"),
        ({"edges": (0.2, 0.1)}, "that rise"),
        ({"edges": (0.0, 0.1)}, "positive"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: dict[str, object], told: str) -> None:
    given: dict[str, object] = {"reference": REFERENCE, "other": OTHER, "labels": LABELS, **change}
    with pytest.raises(BadInput, match=told):
        compare_scores(**given, threshold=0.5, enrol_speaker=np.arange(8), test_speaker=np.arange(8), draws=0)
