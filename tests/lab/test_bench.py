"""The bench times what it says, beside peers that compute the same."""

import json

import numpy as np
import pytest
import torch

from sottovoce import networks, quant
from sottovoce.audio.features import preset
from sottovoce.audio.talker import talker
from sottovoce.bits.plan import Plan
from sottovoce.errors import BadInput, BadModel
from sottovoce.export import build, save
from sottovoce.lab import bench as module
from sottovoce.lab.bench import MODEL, bench, interleave

LIMITS = {  # of 16 numbers of a unit vector; onnxruntime takes the whole range it sees, which suits this network badly
    "onnxruntime, plain int8 weights": 1e-9,
    "onnxruntime static int8, Conv Add Relu": 0.4,
    "onnxruntime static int8, all operators": 0.4,
}
SETTINGS = {"kind": "resnet", "blocks": [1, 1], "width": 8, "dim": 16}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    torch.manual_seed(0)
    network = networks.build(**SETTINGS).eval()
    quant.attach(network, Plan.parse("*=uniform4"))
    coded = quant.coded(network)
    quant.detach(network)
    metadata = {"provenance": {"network": SETTINGS}}
    model = build(network, preset("wespeaker"), coded, [talker(1.0, seed=0)], metadata=metadata)
    save(model, tmp_path_factory.mktemp("bench") / "m.onnx")
    return next(tmp_path_factory.getbasetemp().glob("bench*/m.onnx"))


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(module, "MOST", 2)
    monkeypatch.setattr(module, "FEWEST", 1)


def test_rows_for_every_length(path):
    result = bench(path, seconds=(0.5, 1.0))
    assert json.loads(json.dumps(result)) == result
    assert [(row["name"], row["seconds"], row["ratio"]) for row in result["rows"]] == [
        (MODEL, 0.5, 1.0),
        (MODEL, 1.0, 1.0),
    ]
    assert result["bytes"] == result["rows"][0]["bytes"] == path.stat().st_size
    assert all(0 < row["min_ms"] <= row["median_ms"] for row in result["rows"])


def test_peers_compute_the_same_embedding(path):
    wave = talker(1.0, seed=3)
    makers = module._makers(path, 1, True, None)
    expected = makers.pop(MODEL)()[0](wave)
    makers.pop("torch float")  # its weights are random
    for name, make in makers.items():
        made = make()
        if made is not None:
            found = np.asarray(made[0](wave)).reshape(-1)
            assert np.abs(found - expected).max() < LIMITS.get(name, 0.05), name


def test_peers_are_in_the_rows(path):
    result = bench(path, seconds=(0.3,), peers=True)
    names = [row["name"] for row in result["rows"]]
    assert names[0] == MODEL
    assert {"onnxruntime, plain int8 weights", "onnxruntime float", "torch float"} <= set(names)
    assert all(row["ratio"] > 0 for row in result["rows"])


def test_turns_alternate():
    order = []
    turns = interleave(
        {"a": lambda _: order.append("a"), "b": lambda _: order.append("b")}, np.zeros(1, dtype=np.float32)
    )
    assert order == ["a", "b"] * (1 + len(turns["a"]))


def test_bad_requests_are_refused(path, tmp_path):
    for seconds in ((), (0.0,), (1.0, -1.0)):
        with pytest.raises(BadInput, match="seconds"):
            bench(path, seconds=seconds)
    with pytest.raises(BadModel, match=r"none\.onnx"):
        bench(tmp_path / "none.onnx")
