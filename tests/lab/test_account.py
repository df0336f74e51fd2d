"""What is told of a compression, against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sottovoce.bits.formats import FORMATS, Coded
from sottovoce.bits.plan import Plan, Spec
from sottovoce.lab import account
from sottovoce.lab.scored import Scored

SHAPES = {"stem": (4, 1, 3, 3), "body": (64, 64, 3, 3), "head": (16, 64)}


def test_layers_that_stayed_wide_are_told_with_the_reason() -> None:
    (first,) = account.kept_wide(Plan.of_bits(4, SHAPES), SHAPES, "bits")
    assert (first["layer"], first["spec"], first["weights"]) == ("stem", "uniform8/channel/mse", 36)
    assert "0.5 %" in first["why"]
    plan = Plan.parse("h*=float; stem=uniform8; *=kmeans2")
    told = {one["layer"]: (one["spec"], one["why"]) for one in account.kept_wide(plan, SHAPES, "plan")}
    assert told == {
        "stem": ("uniform8/channel/mse", "asked for by 'stem' of the plan"),
        "head": ("float", "asked for by 'h*' of the plan"),
    }


@pytest.mark.parametrize("plan", ["*=uniform8", "*=kmeans4"])
def test_where_all_have_one_width_nothing_is_told(plan: str) -> None:
    assert account.kept_wide(Plan.parse(plan), SHAPES, "plan") == []


def test_a_budget_names_what_the_next_narrower_format_would_do() -> None:
    wide = account.kept_wide(Plan.parse("stem=uniform8; *=kmeans2"), SHAPES, "plan")
    known = {"uniform8/channel/mse": 1e-4, "kmeans4/channel/mse": 3e-3, "kmeans2/channel/mse": 0.2}
    (told,) = account.because_of_damage(wide, {"stem": known})
    assert told["why"] == "the best use of the budget: damage 1.0e-04, with 4 bits 3.0e-03"
    (alone,) = account.because_of_damage(wide, {"stem": {"uniform8/channel/mse": 1e-4}})
    assert alone["why"] == "the best use of the budget: damage 1.0e-04"


def test_the_change_of_weights_is_a_share_of_their_squares() -> None:
    levels = np.array(FORMATS["uniform4"].levels, dtype=np.int8)
    codes = np.array([[0, 1], [2, 3]], dtype=np.uint8)
    coded = Coded(Spec("uniform4"), (2, 2), codes, levels, np.array([0.5, 2.0], np.float32))
    weights = {"a": coded.decode() + np.array([[0.1, 0.0], [0.0, -0.3]], np.float32), "unused": np.ones(3, np.float32)}
    assert account.weight_error({"a": coded}, weights) == pytest.approx(0.1 / float(np.sum(weights["a"] ** 2)))
    assert account.weight_error({"a": coded}, {"a": coded.decode()}) == 0.0


def test_damage_in_scores_is_both_rates_and_the_mean_move() -> None:
    labels = np.array([1, 1, 0, 0], np.uint8)
    rows = np.zeros(4, np.int64)

    def trials(*scores: float) -> Scored:
        return Scored("t", "", ["u"], ["s"], rows, rows, rows, rows, labels, np.array(scores, np.float32))

    found = account.score_damage(trials(0.9, 0.2, 0.3, 0.1), trials(0.9, 0.5, 0.3, 0.1))
    assert found["float_eer"] == 0.0
    assert found["eer"] == pytest.approx(0.5)
    assert found["score_change"] == pytest.approx(0.3 / 4)
    assert (found["targets"], found["nontargets"]) == (2, 2)


class Slow:
    """Stands for a model: so many squarings of a matrix."""

    def __init__(self, times: int) -> None:
        self.times = times

    def embed(self, wave: np.ndarray) -> np.ndarray:
        assert wave.shape == (48000,)
        table = wave[:40000].reshape(200, 200)
        for _ in range(self.times):
            table = table @ table / 200
        return table[0]


def test_speed_is_told_of_both() -> None:
    found = account.speed(Slow(2), Slow(40))
    assert found["seconds"] == 3.0
    assert found["float_ms"] > 3 * found["ms"] > 0
