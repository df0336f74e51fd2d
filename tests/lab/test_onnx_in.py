"""Published .onnx → file: no architecture code, the torch network that was exported is the oracle."""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from onnx import TensorProto, helper

from sottovoce.audio.features import preset
from sottovoce.audio.talker import talker
from sottovoce.bits.plan import Plan, Spec
from sottovoce.errors import BadInput, BadModel, BadPlan
from sottovoce.export import describe, plain, read_weights
from sottovoce.lab import budget as budgets
from sottovoce.lab import damage, onnx_read, onnx_rounding, onnx_torch, posttraining
from sottovoce.lab.budget import allocate, compress_within
from sottovoce.lab.compress import compress, recordings
from sottovoce.lab.desk import SPARE
from sottovoce.lab.evaluate import evaluate
from sottovoce.lab.onnx_in import Published
from sottovoce.networks.frontend import FrontEnd
from sottovoce.quant.quantizers import Quantized
from sottovoce.runtime.engine import load

sys.path.insert(0, str(Path(__file__).parent))
import published


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("published")


@pytest.fixture(scope="module")
def exported(folder):
    """A function: the .onnx of a family and the network it was made of, exported once."""
    made: dict[str, tuple[Path, torch.nn.Module]] = {}

    def get(name: str) -> tuple[Path, torch.nn.Module]:
        if name not in made:
            path = folder / f"{name}.onnx"
            made[name] = (path, published.export(name, path))
        return made[name]

    return get


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posttraining, "CROPS", (8, 8))
    monkeypatch.setattr(posttraining, "STEPS", (2, 2))
    monkeypatch.setattr(posttraining, "CROP_S", 0.5)
    monkeypatch.setattr(posttraining, "HELD_S", 0.5)


def unit(network: torch.nn.Module, name: str, wave: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return torch.nn.functional.normalize(network(published.inputs(name, wave[None])))[0].numpy()


def features(wave: np.ndarray) -> np.ndarray:
    return FrontEnd(preset("wespeaker"))(torch.from_numpy(wave)[None]).numpy()


@pytest.mark.parametrize("name", published.FAMILIES)
def test_what_is_read_is_the_network(exported, name: str) -> None:
    path, network = exported(name)
    found = onnx_read.read(path, "wespeaker")
    embed = onnx_read.embedder(found.graph)
    assert found.dim == 16
    weights = [m for m in network.modules() if isinstance(m, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Linear))]
    assert sorted(found.graph.constants[f"{layer}.weight"].size for layer in found.layers) == sorted(
        layer.weight.numel() for layer in weights
    )
    for seconds in (0.7, 1.3):
        wave = talker(seconds, seed=21)
        assert np.abs(embed(features(wave)) - unit(network, name, wave)).max() < 1e-5


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("name", published.FAMILIES)
def test_the_file_keeps_its_contract(quick: None, exported, corpus: Path, tmp_path: Path, name: str, bits: int) -> None:
    path, network = exported(name)
    out = tmp_path / "m.onnx"
    report = compress(path, out=out, bits=bits, data=corpus, utterances=15, front_end="wespeaker")
    wave = talker(1.0, seed=31)
    assert embedding(onnx.load(out), wave).tobytes() == embedding(plain(onnx.load(out)), wave).tobytes()
    model = load(out, check=True)
    assert float(model.embed(wave) @ unit(network, name, wave)) > {8: 0.98, 4: 0.8, 2: 0.3}[bits]
    told = describe(out)
    assert told["weights_match"]
    assert {entry.bits for entry in read_weights(out).values()} <= {8, bits}
    assert told["float_layers"] == []
    assert report["float_layers"] == []
    assert [stage["name"] for stage in report["stages"]] == ["nearest", "round", "follow"]
    drift = [stage["drift"] for stage in report["stages"]]
    assert bits == 8 or drift[1] < drift[0]
    assert report["not_followed"] is None


@pytest.mark.parametrize("name", ["resnet", "matmul-attention"])
def test_without_gradients_onnxruntime_alone_rounds(
    quick: None, exported, corpus: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    path, _ = exported(name)
    monkeypatch.delitem(onnx_torch.OPERATORS, "Add")
    report = compress(path, out=tmp_path / "m.onnx", bits=2, data=corpus, utterances=15, front_end="wespeaker")
    assert [stage["name"] for stage in report["stages"]] == ["nearest", "round"]
    assert report["stages"][1]["drift"] < report["stages"][0]["drift"]
    assert report["method"] == "round"
    assert "the graph has Add" in report["not_followed"]
    assert "follow ends after round: the graph has Add" in capfd.readouterr().err
    with pytest.raises(BadInput, match="needs gradients"):
        allocate(path, bits_per_weight=2.0, sensitivity="hessian", data=corpus, front_end="wespeaker")


def embedding(model: onnx.ModelProto, wave: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact sums without VNNI too
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"wave": wave[None]})[0]


@pytest.mark.parametrize("opset", [11, 13])
def test_older_opsets_are_read(exported, folder: Path, opset: int) -> None:
    _, network = exported("pre-activation")
    published.export("pre-activation", folder / "old.onnx", network, opset)
    embed = onnx_read.embedder(onnx_read.read(folder / "old.onnx", "wespeaker").graph)
    wave = talker(0.8, seed=4)
    assert np.abs(embed(features(wave)) - unit(network, "pre-activation", wave)).max() < 1e-5


def small(op: str = "Relu", shape: tuple[object, ...] = ("B", "T", 80), **attributes: object) -> onnx.ModelProto:
    """(B, T, 80) → op → mean over time → matrix product → (B, 4)."""
    weight = np.random.default_rng(0).standard_normal((80, 4)).astype(np.float32)
    nodes = [
        helper.make_node(op, ["x"], ["y"], **attributes),
        helper.make_node("ReduceMean", ["y"], ["m"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["e"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, ("B", 4))],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def written(model: onnx.ModelProto, folder: Path, **notes: str) -> Path:
    for key, value in notes.items():
        model.metadata_props.add(key=key, value=value)
    path = folder / "given.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("op", ["HardSigmoid", "Elu", "Softplus"])
def test_other_operators_are_listed_never_fatal(quick: None, corpus: Path, tmp_path: Path, op: str) -> None:
    path = written(small(op), tmp_path, framework="wespeaker", language="English")
    report = compress(path, out=tmp_path / "m.onnx", bits=4, data=corpus, utterances=12)
    assert report["float_operators"][op] == 1
    assert report["front_end"] == "wespeaker"
    told = load(tmp_path / "m.onnx", check=True).metadata["provenance"]
    assert told["source_metadata"] == {"framework": "wespeaker", "language": "English"}


def test_a_shared_weight_stays_in_float_and_is_named(quick: None, corpus: Path, tmp_path: Path) -> None:
    model = small(shape=("B", 80, "T"))
    square = np.random.default_rng(1).standard_normal((80, 80, 1)).astype(np.float32) / 9
    model.graph.initializer.append(onnx.numpy_helper.from_array(square, "twice"))
    model.graph.node[1].CopyFrom(helper.make_node("ReduceMean", ["y2"], ["m"], axes=[2], keepdims=0))
    for turn in range(2):
        model.graph.node.insert(1 + turn, helper.make_node("Conv", ["y" + "1" * turn, "twice"], [f"y{turn + 1}"]))
    path = written(model, tmp_path, framework="wespeaker")
    report = compress(path, out=tmp_path / "m.onnx", bits=8, data=corpus, utterances=12)
    assert report["float_layers"] == ["twice"]
    assert len(describe(tmp_path / "m.onnx")["layers"]) == 1


@pytest.mark.parametrize("name", ["resnet", "matmul-attention"])
def test_drift_is_that_of_the_file_with_one_weight_changed(exported, corpus: Path, tmp_path: Path, name: str) -> None:
    """The published file itself in onnxruntime, one of its weights replaced, is the oracle."""
    path, _ = exported(name)
    asked = {"utterances": 3, "widths": (1, 4), "data": corpus / "speech", "front_end": "wespeaker"}
    report = allocate(path, bits_per_weight=2.0, **asked)
    subject = Published(path, "wespeaker")
    ground = damage.Ground("drift", corpus / "speech", utterances=3)
    crops = damage.read_crops(ground, recordings(corpus / "speech"), subject.front_end)[0].numpy()
    crops = crops.transpose(0, 2, 1) if name in published.FRAMES_FIRST else crops

    def embed(model: onnx.ModelProto) -> np.ndarray:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found = np.stack([session.run(None, {"feats": one[None]})[0][0] for one in crops]).astype(np.float64)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    wanted, checked = embed(onnx.load(path)), 0
    for layer, row in report["damage_by_layer"].items():
        model = onnx.load(path)
        if replaced(model, subject.source.graph.constants[f"{layer}.weight"], Spec("kmeans4")):
            expected = np.mean(np.sum((embed(model) - wanted) ** 2, axis=1)) / 2
            assert row["kmeans4/channel/mse"] == pytest.approx(expected, rel=1e-3, abs=1e-9), layer
            checked += 1
    assert checked >= 4


@torch.no_grad()
def replaced(model: onnx.ModelProto, weight: np.ndarray, spec: Spec) -> bool:
    """Let a file compute with a weight of its own as a format stores it; False where no tensor holds that weight."""
    seen = Quantized(torch.from_numpy(weight), spec)(torch.from_numpy(weight)).numpy()
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        for ours, new in ((array, seen), (array.T, np.ascontiguousarray(seen.T))):
            if np.array_equal(ours, weight):
                tensor.CopyFrom(onnx.numpy_helper.from_array(new, tensor.name))
                return True
    return False


def test_a_budget_in_bytes_is_kept_and_used(quick: None, exported, corpus: Path, tmp_path: Path) -> None:
    path, network = exported("resnet")
    how = {"sensitivity": "drift", "widths": (2, 4, 8), "utterances": 2}
    shared = {"data": corpus / "speech", "front_end": "wespeaker"}
    sizes = [
        allocate(path, bits_per_weight=bits, sensitivity="weights", front_end="wespeaker")["file_bytes"]
        for bits in (2.0, 8.0)
    ]
    asked = sum(sizes) // 2
    report = compress_within(path, out=tmp_path / "m.onnx", size=f"{asked}B", allocation=how, utterances=12, **shared)
    assert asked - 4 * SPARE < report["bytes"] <= asked
    specs = Plan.parse(report["plan"]).resolve({row["name"]: row["shape"] for row in report["allocation"]["layers"]})
    assert {name: str(coded.spec) for name, coded in read_weights(tmp_path / "m.onnx").items()} == {
        name: str(spec) for name, spec in specs.items()
    }
    assert len(set(map(str, specs.values()))) > 1
    assert report["damage"]["predicted"] == report["allocation"]["predicted_damage"]
    for one in report["wide_layers"]:
        assert "with 4 bits" in one["why"]
    wave = talker(1.0, seed=31)
    assert float(load(tmp_path / "m.onnx").embed(wave) @ unit(network, "resnet", wave)) > 0.5


def test_a_budget_in_eer_is_kept_on_the_trials(exported, corpus: Path, tmp_path: Path) -> None:
    """Of the rungs tried the narrowest within; the file gives the EER that was told of it, evaluated by itself."""
    path, network = exported("pre-activation")
    trials, out = tmp_path / "trials.txt", tmp_path / "m.onnx"
    names = [f"speech/s{speaker}/{take}.wav" for speaker in range(4) for take in range(2)]
    known = {name: unit(network, "pre-activation", soundfile.read(corpus / name, dtype="float32")[0]) for name in names}
    pairs = list(combinations(names, 2))
    alike = [float(known[one] @ known[other]) for one, other in pairs]  # so that float makes no error
    labels = (np.array(alike) > np.median(alike)).astype(int)
    trials.write_text("\n".join(f"{label} {one} {other}" for label, (one, other) in zip(labels, pairs, strict=True)))
    report = compress_within(
        path,
        out=out,
        max_eer_loss="20",
        allocation={"sensitivity": "weights", "widths": (1, 4)},
        data=corpus / "speech",
        trials=[trials],
        audio=corpus,
        front_end="wespeaker",
        method="nearest",
        utterances=4,
    )
    found = report["allocation"]
    assert found["float_eer"] == 0
    within = {one["bits_per_weight"]: one["eer"] for one in found["tried"] if one["eer"] <= 0.2}
    assert 0 < len(within) < len(found["tried"]), "of no use where all rungs are within, or none"
    assert min(within) - 0.25 < found["bits_per_weight"] <= min(within)
    told = evaluate(load(out), trials, corpus, draws=0)
    assert (told["eer"], report["evaluation"]["lists"][0]["eer"]) == (within[min(within)],) * 2
    assert report["calibration"]["measured_on"] == "trials.txt"


def test_budgets_that_cannot_be_are_refused_before_anything_is_measured(
    exported, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = exported("resnet")
    monkeypatch.setattr(budgets, "measure_damage", lambda *_: pytest.fail("was measured"))
    with pytest.raises(BadPlan, match="least possible is"):
        allocate(path, size="1kB", data=corpus, front_end="wespeaker")
    with pytest.raises(BadInput, match="name a front end"):
        allocate(path, size="1kB", data=corpus)
    with pytest.raises(BadInput, match="--trials"):
        allocate(path, max_eer_loss="2%", data=corpus, front_end="wespeaker")


def test_names_that_every_layer_has_are_no_names_of_layers() -> None:
    assert onnx_rounding.can_be_named("layer1.0.conv")
    for taken in ("type", "layer1.weight", "a.forward.b", "_graph"):
        assert not onnx_rounding.can_be_named(taken)


def test_the_front_end_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="name a front end"):
        onnx_read.read(written(small(), tmp_path))
    with pytest.raises(BadInput, match="unknown"):
        onnx_read.read(written(small(), tmp_path), "kaldi-like")
    with pytest.raises(BadInput, match="64"):
        onnx_read.read(written(small(shape=("B", "T", 64)), tmp_path), "wespeaker")
    with pytest.raises(BadModel, match="4 axes"):
        onnx_read.read(written(small(shape=("B", 1, "T", 80)), tmp_path), "wespeaker")


def test_bad_requests_are_refused_before_any_work(tmp_path: Path) -> None:
    path = written(small(), tmp_path, framework="wespeaker")
    for wrong in ({}, {"bits": 4, "plan": "*=kmeans2"}):
        with pytest.raises(BadInput, match="one of the two"):
            compress(path, out=tmp_path / "m.onnx", **wrong)
    with pytest.raises(BadPlan, match="fits no layer"):
        compress(path, out=tmp_path / "m.onnx", plan="layer9=kmeans2; *=kmeans4")
    with pytest.raises(BadInput, match="folder"):
        compress(path, out=tmp_path / "none" / "m.onnx", bits=4)
