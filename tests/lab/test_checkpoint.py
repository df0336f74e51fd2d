"""Checkpoints: round trip, and every way in which a file can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sottovoce import networks, quant
from sottovoce.bits.plan import Plan
from sottovoce.errors import BadCheckpoint
from sottovoce.lab import checkpoint

NETWORK = {"kind": "resnet", "blocks": [1, 1], "width": 4, "dim": 8}
ABOUT = {"network": NETWORK, "front_end": "wespeaker", "plan": ""}


def test_float_round_trip(tmp_path: Path) -> None:
    network = networks.build(**NETWORK)
    checkpoint.save(tmp_path / "m.safetensors", network, ABOUT)
    loaded = checkpoint.load(tmp_path / "m.safetensors")
    assert loaded.about == ABOUT
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, loaded.network.state_dict()[name])
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_quantized_round_trip(tmp_path: Path) -> None:
    network = networks.build(**NETWORK)
    quant.attach(network, Plan.parse("*=kmeans2"))
    checkpoint.save(tmp_path / "q.safetensors", network, {**ABOUT, "plan": "*=kmeans2"})
    loaded = checkpoint.load(tmp_path / "q.safetensors").network
    for name, stored in quant.coded(network).items():
        again = quant.coded(loaded)[name]
        assert (stored.codes == again.codes).all()
        assert (stored.levels == again.levels).all()
        assert (stored.scale == again.scale).all()


def break_file(path: Path, how: str) -> None:
    network = networks.build(**NETWORK)
    state = network.state_dict()
    if how == "cut":
        checkpoint.save(path, network, ABOUT)
        path.write_bytes(path.read_bytes()[:200])
    elif how == "foreign":
        save_file({"x": torch.zeros(2)}, path)
    elif how == "pickle":
        torch.save(state, path)
    elif how == "other network":
        checkpoint.save(path, network, {**ABOUT, "network": {**NETWORK, "width": 8}})
    elif how == "nan":
        state["conv1.weight"][0] = float("nan")
        checkpoint.save_tensors(path, state, ABOUT)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("missing", "no such checkpoint"),
        ("cut", "not a readable safetensors"),
        ("pickle", "not a readable safetensors"),
        ("foreign", "not written by sottovoce"),
        ("other network", "does not fit"),
        ("nan", "conv1.weight has NaN"),
    ],
)
def test_refuses(tmp_path: Path, how: str, told: str) -> None:
    path = tmp_path / "bad.safetensors"
    break_file(path, how)
    with pytest.raises(BadCheckpoint, match=told):
        checkpoint.load(path)
