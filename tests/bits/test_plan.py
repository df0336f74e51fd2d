"""Specs and plans: text forms, first match wins, errors that name the nearest valid choice, sizes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.bits.plan import FLOAT, Plan, Spec, every_spec, mean_bits, plan_bytes, size_bytes, stored_bytes
from sottovoce.errors import BadPlan

SHAPES = {"conv1": (8, 1, 3, 3), "layer1.conv": (64, 8, 3, 3), "layer2.conv": (64, 64, 3, 3), "linear": (10, 64)}

specs = st.sampled_from(every_spec())
patterns = st.text(st.characters(exclude_categories=["Z", "C"], exclude_characters="=;#"), min_size=1, max_size=12)
plans = st.lists(st.tuples(patterns, st.none() | specs), min_size=1, max_size=5).map(lambda items: Plan(tuple(items)))


@settings(deadline=None)
@given(specs)
def test_parse_inverts_str_of_a_spec(spec):
    assert Spec.parse(str(spec)) == spec


@settings(deadline=None)
@given(plans)
def test_parse_inverts_str_of_a_plan(plan):
    assert Plan.parse(str(plan)) == plan


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_a_plan_or_a_bad_plan(text):
    try:
        plan = Plan.parse(text)
    except BadPlan:
        return
    assert Plan.parse(str(plan)) == plan


def test_parts_left_out_are_the_defaults():
    assert Spec.parse("kmeans4") == Spec("kmeans4", "channel", "mse")
    assert str(Spec.parse("uniform2/layer")) == "uniform2/layer/mse"


def test_the_first_match_wins_and_order_is_that_of_the_network():
    plan = Plan.parse("# stem\nconv1=uniform8; layer?.*=kmeans2/layer # body\nlayer2.conv=kmeans4; *=float")
    assert plan.resolve(SHAPES) == {
        "conv1": Spec("uniform8"),
        "layer1.conv": Spec("kmeans2", "layer"),
        "layer2.conv": Spec("kmeans2", "layer"),
        "linear": None,
    }
    assert list(plan.resolve(SHAPES)) == list(SHAPES)
    assert f"*={FLOAT}" in str(plan)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("*=kmeans5", "'kmeans5' is unknown; did you mean 'kmeans4'?"),
        ("*=kmean2", "did you mean 'kmeans2'?"),
        ("*=unifrom7", "did you mean 'uniform8'?"),
        ("*=kmeans4/chanel", "'chanel' is unknown; did you mean 'channel'?"),
        ("*=kmeans4/layer/clip3", "'clip3' is unknown for kmeans4"),
        ("*=kmeans4/layer/mse/x", "4 parts"),
        ("*=uniform4/codebook", "families that have one: kmeans"),
        ("*=binry", "did you mean 'binary'?"),
        ("*", "not of the form pattern=spec"),
        ("=kmeans4", "pattern ''"),
        ("a b=kmeans4", "pattern 'a b'"),
        ("", "at least one entry"),
    ],
)
def test_text_that_is_no_plan_is_refused_with_the_nearest_choice(text, message):
    with pytest.raises(BadPlan, match=re.escape(message)):
        Plan.parse(text)


def test_a_pattern_without_layer_names_the_nearest_layer():
    with pytest.raises(BadPlan, match=r"'layer1.cnov' of the plan fits no layer; did you mean 'layer1.conv'\?"):
        Plan.parse("layer1.cnov=kmeans2; *=kmeans4").resolve(SHAPES)


def test_a_layer_without_pattern_is_refused():
    with pytest.raises(BadPlan, match="layer 'conv1' fits no pattern"):
        Plan.parse("layer*=kmeans2").resolve(SHAPES)


def test_the_standard_plan_keeps_a_small_first_layer_at_8_bits():
    assert str(Plan.of_bits(4, SHAPES)) == "conv1=uniform8/channel/mse; *=kmeans4/channel/mse"
    assert str(Plan.of_bits(8, SHAPES)) == "*=uniform8/channel/mse"
    large = {"conv1": (64, 80, 5), "linear": (192, 64)}
    assert str(Plan.of_bits(2, large)) == "*=kmeans2/channel/mse"


@pytest.mark.parametrize(("bits", "nearest"), [(5, 4), (16, 8), (0, 1)])
def test_an_impossible_width_names_the_nearest(bits, nearest):
    with pytest.raises(BadPlan, match=f"{bits} bits are not possible; the nearest width is {nearest}"):
        Plan.of_bits(bits, SHAPES)


def test_size_counts_packed_codes_and_float_layers():
    shapes = {"a": (3, 3), "b": (5, 7), "c": (2, 2)}
    plan = Plan.parse("a=kmeans3; b=uniform2; c=float")
    assert size_bytes(plan, shapes) == 6 + 9 + 16  # ⌈9/8⌉·3, ⌈35/4⌉, 4·4
    assert size_bytes(plan.resolve(shapes), shapes) == size_bytes(plan, shapes)


def test_ends_of_a_standard_plan_are_explicit_entries():
    plan = Plan.of_bits(2, SHAPES, spec="kmeans2/codebook", first="uniform8", last="float")
    assert str(plan) == "conv1=uniform8/channel/mse; linear=float; *=kmeans2/codebook/mse"
    assert str(Plan.of_bits(2, SHAPES, first="same")) == "*=kmeans2/channel/mse"
    assert str(Plan.of_bits(2, {"only": (4, 4)}, last="float")) == "*=kmeans2/channel/mse"
    with pytest.raises(BadPlan, match="has 4 bits, 2 were asked for"):
        Plan.of_bits(2, SHAPES, spec="kmeans4")
    with pytest.raises(BadPlan, match="did you mean 'uniform8'"):
        Plan.of_bits(2, SHAPES, first="unifrm8")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("kmeans3/layer", 15 + 8 + 4),
        ("kmeans3/channel", 15 + 8 + 20),
        ("kmeans3/codebook", 15 + 40 + 20),
        ("uniform2/channel", 9 + 4 + 20),
        ("uniform8/channel", 35 + 20),
        ("lsq8/layer", 35 + 4),
        ("pot8/layer", 35 + 256 + 4),
    ],
)
def test_stored_bytes_are_codes_levels_and_scales(text, size):
    assert stored_bytes(Spec.parse(text), (5, 7)) == size


def test_bytes_and_bits_of_a_plan_are_sums_over_its_layers():
    shapes = {"a": (3, 3), "b": (5, 7)}
    plan = Plan.parse("a=float; b=kmeans3/layer")
    assert plan_bytes(plan, shapes) == 36 + 27
    assert mean_bits(plan, shapes) == pytest.approx((9 * 32 + 35 * 3) / 44)
