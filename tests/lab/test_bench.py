"""The bench times what it says, beside peers that compute the same."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from sottovoce import networks, quant
from sottovoce.audio.features import preset
from sottovoce.audio.talker import talker
from sottovoce.bits.plan import Plan
from sottovoce.errors import BadInput, BadModel
from sottovoce.export import build, save
from sottovoce.lab import bench as module
from sottovoce.lab.bench import bench, interleave
from sottovoce.lab.footprint import measured
from sottovoce.lab.peers import MODEL, OURS, Peer, open_peer, peers_of

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


def test_peers_compute_the_same_embedding(path, tmp_path):
    wave = talker(1.0, seed=3)
    expected = open_peer(Peer(MODEL, "ours", path, 0), 1)(wave)
    seen = set()
    for peer in peers_of(path, tmp_path):
        run = open_peer(peer, 1) if peer.engine != "torch" else None  # its weights are random
        if run is not None:
            found = run(wave)
            found = np.asarray(found if isinstance(found, np.ndarray) else next(iter(_values(found)))).reshape(-1)
            assert np.abs(found - expected).max() < LIMITS.get(peer.name, 0.05), peer.name
            assert peer.bytes > 0
        seen.add(peer.name)
    assert {*LIMITS, "onnxruntime float", "torch float"} <= seen


def _values(found):
    return found.values() if hasattr(found, "values") else found


def test_peers_are_in_the_rows(path):
    result = bench(path, seconds=(0.3,), threads=(1, 2), peers=True)
    assert json.loads(json.dumps(result)).keys() == result.keys()
    named = [(row["name"], row["threads"]) for row in result["rows"]]
    assert named[0] == (MODEL, 1)
    assert {("onnxruntime, plain int8 weights", 2), ("onnxruntime float", 1), ("torch float", 2)} <= set(named)
    assert all(row["ratio"] > 0 for row in result["rows"])


def test_what_is_faster_is_named():
    rows = [
        {"name": name, "seconds": 3.0, "threads": 1, "ratio": r} for name, r in ((MODEL, 1.0), ("a", 0.8), ("b", 2))
    ]
    assert module.slower_than(rows) == [{"name": "a", "seconds": 3.0, "threads": 1, "times": 1.25}]


def test_a_process_of_its_own_tells_memory_and_loading(path):
    found = measured(Peer(MODEL, "ours", path, 0), 0.3, 1)
    assert found["load_ms"] > 0
    assert 20 < found["peak_mb"] < 2000

    assert measured(Peer("none", "onnxruntime", path.with_name("none.onnx"), 0), 0.3, 1) == {}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system tells no peak that begins anew")
def test_the_peak_is_not_that_of_the_process_that_measures(path):
    held = np.ones(2**27, dtype=np.float32)  # half a gigabyte
    assert measured(Peer(MODEL, "ours", path, 0), 0.3, 1)["peak_mb"] < held.nbytes / 2**20


def test_a_peer_that_cannot_compute_a_length_is_named_and_left_out(path, monkeypatch):
    def opened(peer, threads, encoder=None):
        def broken(wave):
            raise RuntimeError("shapes do not fit")

        return broken if "float" in peer.name else open_peer(peer, threads, encoder)

    monkeypatch.setattr(module, "open_peer", opened)
    result = bench(path, seconds=(0.3,), peers=True)
    assert {row["name"] for row in result["failed"]} >= {"onnxruntime float"}
    assert not [row for row in result["rows"] if "float" in row["name"]]
    assert result["failed"][0]["error"] == "shapes do not fit"


def test_peers_are_made_of_the_network_as_it_was_exported(path, tmp_path):
    network = networks.build(**SETTINGS).eval()
    floats = build(network, preset("wespeaker"), {}, [], metadata={}, activations="float")
    save(floats, tmp_path / "exported.onnx")
    made = {peer.name: peer for peer in peers_of(path, tmp_path, exported=tmp_path / "exported.onnx")}
    wave = talker(1.0, seed=3)
    expected = open_peer(Peer("", "onnxruntime", tmp_path / "exported.onnx", 0), 1)(wave)[0]
    np.testing.assert_array_equal(open_peer(made["onnxruntime float"], 1)(wave)[0], expected)
    kinds = Counter(node.op_type for node in onnx.load(made["onnxruntime static int8, all operators"].path).graph.node)
    assert kinds["DequantizeLinear"] > 2 * kinds["Conv"] > 0  # weights are constants, and were quantized
    assert f"onnxruntime static int8, all operators{OURS}" in made


def test_throughput_one_by_one_and_in_batches(path):
    rows = {row["name"]: row for row in bench(path, seconds=(0.3,), batch=True)["throughput"]}
    assert {MODEL, "onnxruntime float"} <= set(rows)
    assert all(row["one"] > 0 and row["batch"] > 0 for row in rows.values())


def test_turns_alternate():
    order = []
    turns = interleave(
        {"a": lambda _: order.append("a"), "b": lambda _: order.append("b")}, np.zeros(1, dtype=np.float32)
    )
    assert order == ["a", "b"] * (1 + len(turns["a"]))


def test_after_a_rest_a_run_goes_before_each_turn():
    order = []
    runners = {"a": lambda _: order.append("a"), "b": lambda _: order.append("b")}
    turns = interleave(runners, np.zeros(1, dtype=np.float32), budget_s=0.0, rest_s=1e-6)
    assert order == ["a", "b", *["a", "a", "b", "b"] * len(turns["a"])]


def test_bad_requests_are_refused(path, tmp_path):
    for seconds in ((), (0.0,), (1.0, -1.0)):
        with pytest.raises(BadInput, match="seconds"):
            bench(path, seconds=seconds)
    with pytest.raises(BadInput, match="threads"):
        bench(path, threads=())
    with pytest.raises(BadModel, match=r"none\.onnx"):
        bench(tmp_path / "none.onnx")
