"""Checkpoint → file: what is written is what the network computes; wrong requests are refused before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from sottovoce import networks, quant
from sottovoce.audio.features import preset
from sottovoce.audio.talker import talker
from sottovoce.audio.wav import read
from sottovoce.bits.plan import Plan
from sottovoce.errors import BadInput, BadList, BadPlan
from sottovoce.export import read_weights
from sottovoce.lab import checkpoint, posttraining
from sottovoce.lab import compress as compression
from sottovoce.lab.compress import compress, export
from sottovoce.networks.frontend import FrontEnd
from sottovoce.runtime.engine import load

NETWORK = {"kind": "resnet", "blocks": [1, 1], "width": 4, "dim": 16}


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


def test_eight_bits_stay_close(quick: None, float_file: Path, corpus: Path, tmp_path: Path) -> None:
    report = compress(float_file, bits=8, data=corpus, out=tmp_path / "m8.onnx")
    assert report["cosine_to_checkpoint"]["least"] > 0.99
    assert report["bytes"] == (tmp_path / "m8.onnx").stat().st_size
    told = load(tmp_path / "m8.onnx").metadata["provenance"]["ranges_observed_on"]
    assert told == f"{report['recordings']} recordings, one in 5 under stress too"


def test_one_recording_in_five_is_observed_under_stress_too() -> None:
    waves = [talker(4.0, seed=seed) for seed in range(15)]
    seen = compression.observable(waves)
    assert len(seen) == 18
    assert all(np.array_equal(short, wave[: 3 * 16000]) for short, wave in zip(seen[:15], waves, strict=True))
    silenced, telephone, clipped = seen[15:]
    assert (silenced == 0).mean() > 0.3
    spectrum = np.abs(np.fft.rfft(telephone)) ** 2
    assert spectrum[len(spectrum) * 11 // 20 :].sum() < 1e-4 * spectrum.sum()
    assert np.abs(clipped).max() == pytest.approx(0.2 * np.abs(waves[10][: 3 * 16000]).max())


@pytest.mark.parametrize("bits", [4, 2])
def test_the_file_holds_the_quantized_weights(float_file: Path, corpus: Path, tmp_path: Path, bits: int) -> None:
    compress(float_file, bits=bits, data=corpus / "train.tsv", out=tmp_path / "m.onnx", method="nearest")
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


def alike(model: Path, corpus: Path, turned: bool) -> list[str]:
    """Trials of an untrained network: what it finds alike is a target, one in seven the other way; or all turned."""
    names = [f"speech/s{index // 4}/{index % 4}.wav" for index in range(24)]
    table = np.stack([load(model).embed(read(corpus / name)) for name in names])
    first, second = np.triu_indices(24, 1)
    scores = np.sum(table[first] * table[second], axis=1)
    target = (scores > np.quantile(scores, 0.6)) ^ (np.arange(len(scores)) % 7 == 0) ^ turned
    return [f"{int(one)} {names[a]} {names[b]}" for a, b, one in zip(first, second, target, strict=True)]


def test_calibration_and_points_are_stored(quick: None, float_file: Path, corpus: Path, tmp_path: Path, capsys) -> None:
    out, trials = tmp_path / "m.onnx", tmp_path / "trials.txt"
    compress(float_file, bits=4, data=corpus, out=out, method="nearest")
    trials.write_text("\n".join(alike(out, corpus, turned=False)))
    report = compress(float_file, bits=4, data=corpus, out=out, trials=[trials], audio=corpus, method="nearest")
    known = load(out).metadata
    assert known["calibration"]["targets"] + known["calibration"]["nontargets"] == 276
    for name in ("calibration", "operating_points", "operating_points_refused"):
        assert known[name] == report[name]
    assert 0.0 < known["calibration"]["cllr"] < 1.0
    for point in known["operating_points"].values():
        assert point["trials"] == 276
        assert -1.0 < point["threshold"] < 1.0
    assert "30,000 nontarget trials" in known["operating_points_refused"]["secure"]
    assert report["evaluation"]["lists"][0]["eer"] < 0.5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "trials.txt"]
    trials.write_text("\n".join(alike(out, corpus, turned=True)))
    capsys.readouterr()
    compress(float_file, bits=4, data=corpus, out=out, trials=[trials], audio=corpus, method="nearest")
    assert "no calibration and no operating points" in capsys.readouterr().err
    assert "calibration" not in load(out).metadata


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few crops and steps: the tests look at what is done, not at how far it gets."""
    monkeypatch.setattr(posttraining, "CROPS", (12, 12))
    monkeypatch.setattr(posttraining, "STEPS", (2, 2))
    monkeypatch.setattr(posttraining, "CROP_S", 0.5)
    monkeypatch.setattr(posttraining, "HELD_S", 0.5)


@pytest.mark.parametrize("plan", ["*=kmeans2", "conv1=uniform8; *=kmeans3/codebook"])
def test_stages_lower_the_drift_and_are_what_is_shipped(
    quick: None, float_file: Path, corpus: Path, tmp_path: Path, plan: str
) -> None:
    report = compress(float_file, plan=plan, data=corpus, out=tmp_path / "m.onnx")
    names = [stage["name"] for stage in report["stages"]]
    assert names == ["nearest", "round", "follow"]
    drift = [stage["drift"] for stage in report["stages"] if stage["kept"]]
    assert drift == sorted(drift, reverse=True)
    assert report["stages"][1]["kept"]
    assert drift[1] < 0.7 * drift[0]
    # the file, with 8-bit activations, on the same recordings at full length
    assert 1 - report["cosine_to_checkpoint"]["mean"] < 2 * drift[-1] + 0.01
    assert report["cosine_to_checkpoint"]["recordings"] == 6
    stored = onnx.load(tmp_path / "m.onnx").graph.initializer
    parts = {f"{name}.{part}" for name in read_weights(tmp_path / "m.onnx") for part in ("codes", "levels", "scale")}
    assert report["plan_bytes"] > report["packed_bytes"]
    assert report["plan_bytes"] == sum(own_bytes(one) for one in stored if one.name in parts)


def own_bytes(tensor: onnx.TensorProto) -> int:
    return onnx.numpy_helper.to_array(tensor).nbytes


def test_a_stage_that_does_not_help_is_dropped(
    quick: None, float_file: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(network: torch.nn.Module, *_: object) -> None:
        network.bn1.running_mean += 5.0

    monkeypatch.setitem(posttraining.STAGES, "round", spoil)
    report = compress(float_file, bits=2, data=corpus, out=tmp_path / "a.onnx", method="round")
    assert [stage["kept"] for stage in report["stages"]] == [True, False]
    compress(float_file, bits=2, data=corpus, out=tmp_path / "b.onnx", method="nearest")
    wave = talker(2.0, seed=5)
    assert np.array_equal(load(tmp_path / "a.onnx").embed(wave), load(tmp_path / "b.onnx").embed(wave))


def test_the_same_seed_gives_the_same_weights(quick: None, float_file: Path) -> None:
    waves = [talker(0.6, seed=index) for index in range(12)]

    def improved(seed: int) -> dict[str, np.ndarray]:
        network, teacher = checkpoint.load(float_file).network, checkpoint.load(float_file).network
        quant.attach(network, Plan.parse("*=kmeans2"))
        told: list[posttraining.Stage] = []
        assert posttraining.improve(network, teacher, preset("wespeaker"), waves, seed=seed, each=told.append) == told
        return {name: coded.decode() for name, coded in quant.coded(network).items()}

    first, same, other = improved(3), improved(3), improved(4)
    assert all(np.array_equal(weight, same[name]) for name, weight in first.items())
    assert not all(np.array_equal(weight, other[name]) for name, weight in first.items())


def test_too_few_recordings_are_not_worked_on(float_file: Path, corpus: Path, tmp_path: Path, capfd) -> None:
    report = compress(float_file, bits=2, data=corpus / "speech" / "s0", out=tmp_path / "m.onnx")
    assert [stage["name"] for stage in report["stages"]] == ["nearest"]
    assert "too few" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("request_", "error", "told"),
    [
        ({"bits": 5}, BadPlan, "nearest width is 4"),
        ({"plan": "layer9.*=kmeans4; *=kmeans4"}, BadPlan, "layer9"),
        ({}, BadInput, "one of the two"),
        ({"bits": 4, "plan": "*=kmeans4"}, BadInput, "one of the two"),
        ({"bits": 4, "trials": ["t.txt"]}, BadInput, "go together"),
        ({"bits": 4, "method": "folow"}, BadInput, "did you mean 'follow'"),
        ({"bits": 4, "data": "/nowhere"}, BadList, "no such folder"),
    ],
)
def test_refuses(float_file: Path, tmp_path: Path, request_: dict, error: type, told: str) -> None:
    with pytest.raises(error, match=told):
        compress(float_file, out=tmp_path / "m.onnx", **request_)
    assert not list(tmp_path.iterdir())
