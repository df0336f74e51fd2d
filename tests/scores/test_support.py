"""Whose errors a cost stands on, counted by hand and by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.errors import BadInput
from sottovoce.scores.metrics import bayes_threshold
from sottovoce.scores.support import support


def trials(of: list[tuple[str, str, int]]) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """All wrong at a prior of one half: llrs, labels and sides of so many trials of each pair."""
    rows = [(a, b) for a, b, count in of for _ in range(count)]
    labels = np.array([int(a == b) for a, b in rows])
    return np.where(labels, -1.0, 1.0), labels, [a for a, _ in rows], [b for _, b in rows]


def test_by_hand() -> None:
    found = support(*trials([("a", "a", 3), ("b", "b", 1), ("a", "b", 4), ("b", "a", 2), ("c", "b", 2)]), 0.5)
    assert (found["misses"], found["miss_speakers"], found["misses_of_one_speaker"]) == (4, 1.6, 0.75)
    assert (found["false_accepts"], found["false_accepts_of_one_pair"]) == (8, 0.75), "a pair has no order"
    assert found["false_accept_pairs"] == pytest.approx(64 / (36 + 4))


def test_few_are_few_errors_or_those_of_one() -> None:
    enough = [("a", "a", 20), ("b", "b", 20), ("a", "b", 20), ("b", "c", 20)]
    assert not support(*trials(enough), 0.5)["few"]
    assert support(*trials([*enough, ("c", "c", 41)]), 0.5)["few"], "more than half are one speaker's"
    assert not support(*trials([*enough, ("c", "c", 40)]), 0.5)["few"], "half is not more than half"
    assert support(*trials([*enough, ("a", "b", 21)]), 0.5)["few"]
    assert support(*trials([("a", "a", 14), ("b", "b", 15), *enough[2:]]), 0.5)["few"], "29 misses"


def test_without_errors_nothing_is_known() -> None:
    found = support([-9.0, 9.0], [0, 1], ["a", "a"], ["b", "a"], 0.01)
    assert (found["misses"], found["false_accepts"], found["false_accept_pairs"], found["few"]) == (0, 0, 0.0, True)
    with pytest.raises(BadInput, match="need both"):
        support([1.0, 1.0], [1, 1], ["a", "b"], ["a", "b"], 0.5)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.floats(-9, 9), st.integers(0, 3), st.integers(0, 3)), min_size=3, max_size=60),
    st.sampled_from([0.01, 0.5]),
)
def test_by_brute_force(rows: list[tuple[float, int, int]], prior: float) -> None:
    kinds = {a == b for _, a, b in rows}
    if len(kinds) < 2:
        return
    llrs, first, second = zip(*rows, strict=True)
    found = support(llrs, [int(a == b) for _, a, b in rows], first, second, prior)
    limit = bayes_threshold(prior)
    misses = [a for llr, a, b in rows if a == b and llr < limit]
    accepts = [frozenset((a, b)) for llr, a, b in rows if a != b and llr >= limit]
    assert (found["misses"], found["false_accepts"]) == (len(misses), len(accepts))
    for errors, number in ((misses, "miss_speakers"), (accepts, "false_accept_pairs")):
        alike = sum(one == other for one in errors for other in errors)  # Σ n²
        assert found[number] == pytest.approx(len(errors) ** 2 / alike if errors else 0.0)
