"""Metadata written without the onnx package, against the onnx package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.errors import BadModel
from sottovoce.runtime.engine import SHIPPED, load
from sottovoce.runtime.relabel import relabel, replaced

onnx = pytest.importorskip("onnx", reason="the oracle of all that is written here; no part of the base install")
TensorProto, helper = onnx.TensorProto, onnx.helper


def model(entries: dict[str, str]) -> Any:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [300], [float(i) for i in range(300)])
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [value], [helper.make_tensor_value_info("y", 1, [1])], [weight])
    made = helper.make_model(graph, producer_name="somebody")
    helper.set_model_props(made, entries)
    return made


def entries(content: bytes) -> dict[str, str]:
    return {one.key: one.value for one in onnx.load_from_string(content).metadata_props}


TEXT = st.text(st.characters(codec="utf-8"), max_size=200)
JSON = st.one_of(st.none(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT, st.lists(TEXT))


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(TEXT, TEXT, max_size=4), st.dictionaries(TEXT, JSON, max_size=4))
def test_the_onnx_package_reads_what_was_written(old: dict[str, str], new: dict[str, Any]) -> None:
    before = model(old)
    content = replaced(before.SerializeToString(), new)
    written = {f"sottovoce.{name}": value for name, value in new.items()}
    found = entries(content)
    assert {name: json.loads(found[name]) for name in written} == written
    assert {name: value for name, value in found.items() if name not in written} == {
        name: value for name, value in old.items() if name not in written
    }
    after = onnx.load_from_string(content)
    assert after.graph.SerializeToString() == before.graph.SerializeToString()
    assert (after.ir_version, after.producer_name) == (before.ir_version, "somebody")
    assert list(after.opset_import) == list(before.opset_import)
    assert replaced(content, new) == content, "the second time nothing changes"


def test_every_byte_but_the_entries_stays(tmp_path: Path) -> None:
    content = SHIPPED.read_bytes()
    relabel(SHIPPED, tmp_path / "m.onnx", {"calibration": {"a": 1}})
    relabel(tmp_path / "m.onnx", tmp_path / "m.onnx", {"calibration": {"a": 2}, "note": "ü"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx"]
    there = (tmp_path / "m.onnx").read_bytes()
    before, after = onnx.load_from_string(content), onnx.load_from_string(there)
    assert after.graph.SerializeToString() == before.graph.SerializeToString()
    graph = before.graph.SerializeToString()
    assert content.count(graph) == there.count(graph) == 1
    loaded, shipped = load(tmp_path / "m.onnx", check=True), load()
    changed = {"calibration": {"a": 2}, "note": "ü"}
    assert loaded.metadata == {**shipped.metadata, **changed}


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=60))
def test_what_is_no_model_is_refused_or_kept(content: bytes) -> None:
    try:
        found = replaced(content, {})
    except BadModel:
        return
    assert found == content


@pytest.mark.parametrize("cut", [1, 7, 300])
def test_a_model_that_was_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(BadModel, match="cut short"):
        replaced(model({"a": "b" * 300}).SerializeToString()[:-cut], {"x": 1})


def test_no_file_is_left_behind_where_values_are_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        relabel(SHIPPED, tmp_path / "m.onnx", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []
