"""Names and shapes worked out without torch are those of the networks themselves, in all settings a layout can read."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce import networks
from sottovoce.errors import BadInput
from sottovoce.lab.layouts import CAMPPLUS_FLOOR, LAYOUTS
from sottovoce.lab.shapes import Usual
from sottovoce.lab.tensors import KINDS, shapes_of

REFUSALS = (BadInput, ValueError, ZeroDivisionError)
blocks = st.tuples(*[st.integers(0, 2)] * 4)
sizes, widths = st.integers(1, 12), st.tuples(*[st.integers(1, 9)] * 4)
mels = st.integers(1, 90)
ECAPA = {
    "width": st.integers(1, 40),
    "context": st.booleans(),
    "mels": mels,
    "dim": sizes,
    "aggregate": sizes,
    "attention": sizes,
    "scale": st.integers(1, 5),
}
STAGE = st.tuples(st.integers(1, 3), st.integers(0, 2), st.integers(1, 3), st.sampled_from([0, 0, 1, 2, 3]))
READ: dict[str, dict[str, st.SearchStrategy[Any]]] = {  # what shapes.py can read of each kind
    "resnet": {
        "blocks": blocks,
        "width": sizes,
        "block": st.sampled_from(["basic", "bottleneck"]),
        "mels": mels,
        "dim": sizes,
        "two_layers": st.booleans(),
    },
    "dfresnet": {"depths": blocks, "dims": st.tuples(*[sizes] * 5), "mels": mels, "dim": sizes},
    "ecapa": ECAPA,
    "ecapa1024-speechbrain": ECAPA,
    "ecapa1024-a": {key: value for key, value in ECAPA.items() if key != "context"},
    "campplus": {
        "layers": st.tuples(*[st.integers(0, 3)] * 3),
        "head": sizes,
        "width": sizes,
        "growth": sizes,
        "bottleneck": st.integers(1, 4),
        "mels": mels,
        "dim": sizes,
    },
    "simam": {"blocks": blocks, "width": sizes, "mels": mels, "dim": sizes},
    "eres2net": {
        "blocks": blocks,
        "width": st.integers(1, 40),
        "base": st.integers(1, 70),
        "scale": st.integers(1, 4),
        "expansion": st.integers(1, 4),
        "fused": st.sampled_from(["all", "last"]),
        "mels": mels,
        "dim": sizes,
    },
    "sbresnet": {"blocks": blocks, "widths": widths, "gated": st.integers(0, 4), "mels": mels, "dim": sizes},
    "redimnet": {
        "stages": st.lists(STAGE, min_size=1, max_size=3).map(tuple),
        "width": st.integers(1, 12),
        "block": st.sampled_from(["convnext", "basic", "gated"]),
        "group": st.integers(1, 4),
        "context": st.booleans(),
        "mels": st.sampled_from([12, 20, 24, 30, 72]),
        "dim": sizes,
    },
    "resnetse": {
        "blocks": blocks,
        "widths": st.tuples(*[st.integers(1, 24)] * 4),
        "lite": st.booleans(),
        "deviations": st.booleans(),
        "mels": mels,
        "dim": sizes,
    },
}
CASES = st.sampled_from(sorted(READ)).flatmap(lambda kind: st.fixed_dictionaries({"kind": st.just(kind), **READ[kind]}))


def built(kind: str, **chosen: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Of the network itself, without memory for its values."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of empty tensors
        network = networks.build(kind, **chosen)
    return [(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()]


@pytest.mark.parametrize("kind", KINDS)
def test_of_each_kind_as_it_is(kind: str) -> None:
    assert list(shapes_of(kind).items()) == built(kind)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_of_the_usual_network_of_each_layout(layout: Any) -> None:
    usual = layout.settings(Usual())
    assert list(shapes_of(**usual).items()) == built(**usual)


@pytest.mark.parametrize("preset", networks.PRESETS)
def test_of_each_published_size_that_a_layout_reads(preset: str) -> None:
    published = dict(built(preset))
    matched = [layout for layout in LAYOUTS if read_as(layout, published) == published]
    assert bool(matched) == (not preset.endswith(("-c", "-d", "ecapa256-a"))), (
        "published sizes are known but for papers'"
    )


def read_as(layout: Any, published: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]] | None:
    """What the settings that a layout reads off a network stand for."""
    theirs = {layout.theirs(name).removeprefix(layout.prefix): shape for name, shape in published.items()}
    plain = {name: shape[: len(shape) - (shape[-1:] == (1,))] for name, shape in theirs.items()}
    try:
        return shapes_of(**layout.settings(plain))
    except (KeyError, IndexError, *REFUSALS):
        return None


@settings(max_examples=150, deadline=None)
@given(CASES)
def test_of_any_size_and_refused_where_the_network_is(case: dict[str, Any]) -> None:
    try:
        expected = built(**case)
    except REFUSALS:
        expected = None
    try:
        found = list(shapes_of(**case).items())
    except REFUSALS:
        found = None
    assert found == expected


def test_the_floor_that_follows_from_a_front_end_is_the_preset_s() -> None:
    assert networks.PRESETS["campplus-3dspeaker"].floor == CAMPPLUS_FLOOR
