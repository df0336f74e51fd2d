"""Checkpoint → file: what is written is what the network computes; wrong requests are refused before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sottovoce import networks, quant
from sottovoce.audio.talker import talker
from sottovoce.bits.plan import Plan
from sottovoce.errors import BadInput, BadList, BadPlan
from sottovoce.export import read_weights
from sottovoce.lab import checkpoint
from sottovoce.lab.compress import compress, export, reestimate_norms
from sottovoce.networks.frontend import FrontEnd
from sottovoce.runtime.engine import load

NETWORK = {"kind": "resnet", "blocks": [1, 1], "width": 8, "dim": 16}


@pytest.fixture(scope="module")
def float_file(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    network = networks.build(**NETWORK)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(-1.5, 1.5)
                module.bias.normal_(0, 0.2)
    network.train()
    for seed in range(4):
        network(FrontEnd()(torch.from_numpy(np.stack([talker(1.0, seed=seed), talker(1.0, seed=seed + 9)]))))
    path = tmp_path_factory.mktemp("models") / "float.safetensors"
    checkpoint.save(path, network.eval(), {"network": NETWORK, "front_end": "wespeaker", "plan": "", "licence": "none"})
    return path


def embedding(path: Path, wave: np.ndarray) -> np.ndarray:
    network = checkpoint.load(path).network
    with torch.no_grad():
        return torch.nn.functional.normalize(network(FrontEnd()(torch.from_numpy(wave)[None])))[0].numpy()


def test_float_export_is_the_network(float_file: Path, tmp_path: Path) -> None:
    export(float_file, out=tmp_path / "f.onnx")
    wave = talker(2.0, seed=5)
    assert np.abs(load(tmp_path / "f.onnx").embed(wave) - embedding(float_file, wave)).max() < 1e-4


def test_eight_bits_stay_close(float_file: Path, corpus: Path, tmp_path: Path) -> None:
    report = compress(float_file, bits=8, data=corpus, out=tmp_path / "m8.onnx")
    assert report["cosine_to_checkpoint"]["least"] > 0.99
    assert report["bytes"] == (tmp_path / "m8.onnx").stat().st_size


@pytest.mark.parametrize("bits", [4, 2])
def test_the_file_holds_the_quantized_weights(float_file: Path, corpus: Path, tmp_path: Path, bits: int) -> None:
    compress(float_file, bits=bits, data=corpus / "train.tsv", out=tmp_path / "m.onnx")
    network = checkpoint.load(float_file).network
    quant.positive_gains(network, torch.randn(2, 80, 64))
    quant.attach(network, Plan.of_bits(bits, quant.quantizable(network)))
    stored = read_weights(tmp_path / "m.onnx")
    for name, expected in quant.coded(network).items():
        assert np.array_equal(stored[name].decode(), expected.decode()), name


def test_a_checkpoint_trained_with_a_plan_ships_its_own_weights(float_file: Path, corpus: Path, tmp_path: Path) -> None:
    loaded = checkpoint.load(float_file)
    quant.positive_gains(loaded.network, torch.randn(2, 80, 64))
    quant.attach(loaded.network, Plan.parse("*=kmeans2"))
    about = {**loaded.about, "plan": str(Plan.parse("*=kmeans2"))}
    checkpoint.save(tmp_path / "q.safetensors", loaded.network, about)
    report = compress(tmp_path / "q.safetensors", data=corpus, out=tmp_path / "q.onnx")
    assert report["trained_with_plan"]
    last = {
        name: module.weight for name, module in loaded.network.named_modules() if hasattr(module, "parametrizations")
    }
    stored = read_weights(tmp_path / "q.onnx")
    assert set(stored) == set(last)
    for name, weight in last.items():
        assert np.array_equal(stored[name].decode(), weight.detach().numpy()), name
    with pytest.raises(BadInput, match="was trained with plan"):
        compress(tmp_path / "q.safetensors", bits=4, out=tmp_path / "x.onnx")


def test_an_operating_point_is_stored(float_file: Path, corpus: Path, tmp_path: Path) -> None:
    lines = [
        f"{int(a // 4 == b // 4)} speech/s{a // 4}/{a % 4}.wav speech/s{b // 4}/{b % 4}.wav"
        for a in range(24)
        for b in range(a)
    ]
    (tmp_path / "trials.txt").write_text("\n".join(lines))
    compress(float_file, bits=4, data=corpus, out=tmp_path / "m.onnx", trials=[tmp_path / "trials.txt"], audio=corpus)
    point = load(tmp_path / "m.onnx").metadata["operating_points"]["balanced"]
    assert point["trials"] == 276
    assert -1.0 < point["threshold"] < 1.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "trials.txt"]


def test_norms_are_those_of_the_data(float_file: Path) -> None:
    network = checkpoint.load(float_file).network
    before = network.bn1.running_mean.clone()
    front_end = FrontEnd().config
    reestimate_norms(network, front_end, [talker(2.5, seed=i) for i in range(4)], batches=2)
    assert not torch.equal(network.bn1.running_mean, before)
    assert not network.training
    assert network.bn1.momentum == 0.1


@pytest.mark.parametrize(
    ("request_", "error", "told"),
    [
        ({"bits": 5}, BadPlan, ""),
        ({"plan": "layer9.*=kmeans4; *=kmeans4"}, BadPlan, "layer9"),
        ({}, BadInput, "one of the two"),
        ({"bits": 4, "plan": "*=kmeans4"}, BadInput, "one of the two"),
        ({"bits": 4, "trials": ["t.txt"]}, BadInput, "go together"),
        ({"bits": 4, "data": "/nowhere"}, BadList, "no such folder"),
    ],
)
def test_refuses(float_file: Path, tmp_path: Path, request_: dict, error: type, told: str) -> None:
    with pytest.raises(error, match=told):
        compress(float_file, out=tmp_path / "m.onnx", **request_)
    assert not list(tmp_path.iterdir())
