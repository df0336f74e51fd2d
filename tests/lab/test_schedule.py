"""Stages and their plans, learning rates against the papers' numbers, ramps."""

from __future__ import annotations

import math

import pytest

from sottovoce.bits.plan import Plan, Spec
from sottovoce.errors import BadRecipe
from sottovoce.lab.recipe import Optim, Quant
from sottovoce.lab.schedule import ramp, rate, stages

SHAPES = {"stem": (4, 1, 3, 3), "body": (4, 4, 3, 3), "out": (8, 16)}
MIXED = Plan.parse("stem=uniform8; body=kmeans2; out=kmeans4/layer/mass")


def specs(stage) -> dict[str, str]:
    return {name: str(spec) for name, spec in Plan.parse(stage.plan).resolve(SHAPES).items()}


def test_one_stage_without_a_schedule() -> None:
    assert [str(s) for s in stages(Quant(), None, SHAPES, 3)] == ["epochs 1 to 3: float"]
    (only,) = stages(Quant(), MIXED, SHAPES, 3)
    assert only.plan == str(MIXED)


@pytest.mark.parametrize(("order", "first"), [("lowest-first", "body"), ("highest-first", "stem")])
def test_widths_in_turn(order: str, first: str) -> None:
    found = stages(Quant(order=order), MIXED, SHAPES, 7)
    assert [(s.first, s.epochs) for s in found] == [(0, 2), (2, 3), (5, 2)]
    quantized = [{name for name, spec in specs(s).items() if spec != "None"} for s in found]
    assert quantized[0] == {first}
    assert quantized[1] == {first, "out"}
    assert found[2].plan == str(MIXED)


def test_progressive_widths_never_go_below_a_layer_own() -> None:
    found = stages(Quant(through=(4, 3)), MIXED, SHAPES, 3)
    assert [specs(s)["body"] for s in found] == [f"kmeans{bits}/channel/mse" for bits in (4, 3, 2)]
    assert {specs(s)["stem"] for s in found} == {"uniform8/channel/mse"}
    assert {specs(s)["out"] for s in found} == {"kmeans4/layer/mass"}


def test_refused_before_training() -> None:
    with pytest.raises(BadRecipe, match="fewer than the 3 stages"):
        stages(Quant(order="lowest-first"), MIXED, SHAPES, 2)
    with pytest.raises(BadRecipe, match="nearest is 4"):
        stages(Quant(through=(5,)), Plan((("*", Spec("kmeans2")),)), SHAPES, 9)


def test_steps_are_those_of_paper_c() -> None:
    optim = Optim(rate=1e-3, schedule="steps", drops=(20, 32), warm_up=0.0, epochs=40)
    seen = [rate(optim, 10 * epoch + 5, 400, 10) for epoch in (1, 19, 20, 31, 32, 39)]
    assert seen == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


def test_exponential_is_that_of_wespeaker() -> None:
    optim = Optim(rate=0.1, final_rate=5e-5, schedule="exponential", warm_up=6 / 150, epochs=150)
    decay = [0.1 * math.exp(step / 1500 * math.log(5e-5 / 0.1)) for step in (30, 60, 750, 1500)]
    seen = [rate(optim, step, 1500, 10) for step in (30, 60, 750, 1500)]
    assert seen == pytest.approx([decay[0] * 31 / 60, *decay[1:]])


def test_cosine_warms_up_and_ends_at_the_final_rate() -> None:
    optim = Optim(rate=1.0, final_rate=0.1, warm_up=0.1)
    assert [rate(optim, step, 100, 10) for step in (0, 9, 10, 55, 100)] == pytest.approx([0.1, 1.0, 1.0, 0.55, 0.1])


def test_ramp() -> None:
    assert [ramp(p) for p in (-1.0, 0.0, 0.5, 1.0, 2.0)] == pytest.approx([0, 0, 0.5, 1, 1])
