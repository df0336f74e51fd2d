"""Checkpoints in other toolkits' layouts: recognised, imported, equal to what the original definitions give."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from sottovoce import networks
from sottovoce.cli import main
from sottovoce.errors import BadCheckpoint, BadInput, OtherEmbedding, UnknownCheckpoint
from sottovoce.lab import checkpoint as checkpoints
from sottovoce.lab import imports, pickles, recognise
from sottovoce.lab.compress import compress, export
from sottovoce.lab.imports import import_checkpoint
from sottovoce.runtime.engine import load

sys.path.insert(0, str(Path(__file__).parent))
import foreign

sys.path.pop(0)
GOLDEN = foreign.golden()
KINDS = {  # case: layout, front end
    "speechbrain ecapa": ("SpeechBrain ECAPA", "speechbrain"),
    "3dspeaker ecapa": ("SpeechBrain ECAPA", "3dspeaker"),
    "3dspeaker resnet34": ("WeSpeaker ResNet", "3dspeaker"),
    "pyannote resnet34": ("pyannote ResNet", "wespeaker"),
    "wespeaker resnet34": ("WeSpeaker ResNet", "wespeaker"),
    "wespeaker resnet50": ("WeSpeaker ResNet", "wespeaker"),
    "wespeaker ecapa": ("WeSpeaker ECAPA", "wespeaker"),
    "wespeaker ecapa glob": ("WeSpeaker ECAPA", "wespeaker"),
    "wespeaker gemini": ("WeSpeaker Gemini-DF-ResNet", "wespeaker"),
    "taoruijie ecapa": ("TaoRuijie ECAPA", "taoruijie"),
}
SMALL = "wespeaker resnet34"


def tensors(case: str) -> dict[str, torch.Tensor]:
    arrays = foreign.weights({name: tuple(shape) for name, shape in GOLDEN[case]["shapes"].items()})
    return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}


def saved(folder: Path, content: Any, name: str = "net.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def imported(folder: Path, case: str, content: Any = None, **settings: Any) -> dict[str, Any]:
    path = saved(folder, tensors(case) if content is None else content)
    asked = GOLDEN[case]["front_end"] or None
    return import_checkpoint(path, out=folder / "net.safetensors", **{"front_end": asked, **settings})


def embedding(folder: Path, front_end: str) -> np.ndarray:
    network = checkpoints.load(folder / "net.safetensors").network
    return imports.embed(network, front_end, foreign.wave())


def test_every_layout_has_a_golden_embedding() -> None:
    assert set(KINDS) == set(GOLDEN)
    assert {layout for layout, _ in KINDS.values()} <= {layout.name for layout in recognise.LAYOUTS}


@pytest.mark.parametrize("case", KINDS)
def test_gives_the_embedding_of_the_original_definition(tmp_path: Path, case: str) -> None:
    report = imported(tmp_path, case)
    assert (report["toolkit"], report["front_end"]) == KINDS[case]
    found, expected = embedding(tmp_path, report["front_end"]), np.array(GOLDEN[case]["embedding"])
    assert np.abs(found - expected).max() < 1e-4
    assert 0.5 * np.square(found - expected).sum() < 1e-6
    trained = sum(tensor.numel() for name, tensor in tensors(case).items() if _is_weight(name))
    assert report["parameters"] == trained


def _is_weight(name: str) -> bool:
    return not name.endswith(("running_mean", "running_var", "num_batches_tracked")) and "torchfbank" not in name


@pytest.mark.parametrize("case", KINDS)
def test_exports_unchanged_and_compresses(tmp_path: Path, case: str) -> None:
    imported(tmp_path, case)
    checkpoint, expected = tmp_path / "net.safetensors", np.array(GOLDEN[case]["embedding"])
    export(checkpoint, out=tmp_path / "float.onnx")
    assert np.abs(load(tmp_path / "float.onnx").embed(foreign.wave()) - expected).max() < 5e-4  # front end in float32
    report = compress(checkpoint, out=tmp_path / "net.onnx", bits=8)
    assert report["cosine_to_checkpoint"]["least"] > 0.94  # random weights: 8 bits in each of many layers
    model = load(tmp_path / "net.onnx")
    assert model.embed(foreign.wave()) @ expected > 0.94
    assert "imported" in model.metadata["provenance"]["note"]


@pytest.mark.parametrize(
    "wrap", ["flat", "state_dict", "model", "module", "safetensors", "float counters", "no counters"]
)
def test_the_same_however_it_is_stored(tmp_path: Path, wrap: str) -> None:
    plain = tensors(SMALL)
    counters = [name for name in plain if name.endswith("num_batches_tracked")]
    content: Any = {
        "state_dict": {"epoch": 3, "state_dict": plain, "optimizer": {"lr": 0.1}},
        "model": {"model": plain},
        "module": {f"module.{name}": tensor for name, tensor in plain.items()},
        "float counters": {**plain, **{name: torch.tensor(7.5) for name in counters}},
        "no counters": {name: tensor for name, tensor in plain.items() if name not in counters},
    }.get(wrap, plain)
    if wrap == "safetensors":
        save_file(plain, tmp_path / "x.safetensors")
        source = tmp_path / "x.safetensors"
    else:
        source = saved(tmp_path, content, "anything.bin")
    import_checkpoint(source, out=tmp_path / "net.safetensors", front_end="wespeaker")
    assert np.abs(embedding(tmp_path, "wespeaker") - np.array(GOLDEN[SMALL]["embedding"])).max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read_as_torch_reads_them(tmp_path: Path, dtype: torch.dtype) -> None:
    content = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors(SMALL).items()}
    stored = pickles.listing(saved(tmp_path, content))
    there = torch.load(tmp_path / "net.pt", weights_only=True)
    assert list(stored) == list(there)
    for name, tensor in stored.items():
        np.testing.assert_array_equal(tensor.read(), (there[name].float() if dtype != torch.float64 else there[name]))


def test_views_and_shared_storages_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    base = torch.arange(60.0).reshape(5, 12)
    content = {
        "turned": base.T,
        "part": base[1:4, 2:7],
        "row": base[2],
        "whole": base,
        "none": base[:0],
        "one": base[0, 1],
    }
    stored = pickles.listing(saved(tmp_path, content))
    for name, tensor in torch.load(tmp_path / "net.pt", weights_only=True).items():
        np.testing.assert_array_equal(stored[name].read(), tensor)
        assert stored[name].finite()


def test_heads_are_left_out_and_reported(tmp_path: Path) -> None:
    report = imported(tmp_path, SMALL, {**tensors(SMALL), "projection.weight": torch.zeros(10, 256)})
    assert report["dropped"] == ["projection.weight"]
    wrapped = {f"speaker_encoder.{name}": tensor for name, tensor in tensors("taoruijie ecapa").items()}
    report = imported(tmp_path, "taoruijie ecapa", {**wrapped, "speaker_loss.weight": torch.zeros(10, 192)})
    assert "speaker_loss.weight" in report["dropped"]
    assert all(name.startswith(("speaker_loss", "torchfbank")) for name in report["dropped"])


def test_where_front_ends_differ_one_must_be_told(tmp_path: Path) -> None:
    path = saved(tmp_path, tensors(SMALL), "avg_model.pt")
    out = tmp_path / "net.safetensors"
    with pytest.raises(BadInput, match="--front-end: wespeaker or 3dspeaker"):
        import_checkpoint(path, out=out)
    (tmp_path / "config.yaml").write_text("model: ResNet34\ndataset_args:\n  fbank_args:\n    num_mel_bins: 80\n")
    assert import_checkpoint(tmp_path, out=out)["front_end"] == "wespeaker"
    (tmp_path / "config.yaml").write_text("feature_extractor:\n  obj: speakerlab.process.processor.FBank\n")
    assert import_checkpoint(tmp_path, out=out)["front_end"] == "3dspeaker"
    with pytest.raises(BadInput, match="says 3dspeaker"):
        import_checkpoint(tmp_path, out=out, front_end="wespeaker")
    (tmp_path / "config.yaml").write_text("fbank_args:\n  num_mel_bins: 64\n")
    with pytest.raises(BadInput, match="num_mel_bins is 64"):
        import_checkpoint(tmp_path, out=out)


def test_a_configuration_with_code_is_only_text(tmp_path: Path) -> None:
    saved(tmp_path, tensors("speechbrain ecapa"), "embedding_model.ckpt")
    ran = tmp_path / "ran"
    (tmp_path / "hyperparams.yaml").write_text(
        f"x: !!python/object/apply:os.system ['touch {ran}']\nn_mels: 80\n"
        "compute_features: !new:speechbrain.lobes.features.Fbank\n    n_mels: !ref <n_mels>\n"
    )
    assert import_checkpoint(tmp_path, out=tmp_path / "net.safetensors")["front_end"] == "speechbrain"
    assert not ran.exists()


def test_an_unknown_network_is_told_from_the_nearest(tmp_path: Path) -> None:
    content = tensors("wespeaker ecapa")
    content["pool.linear2.weight"] = torch.zeros(1536, 64, 1)
    content["extra.weight"] = torch.zeros(3)
    del content["linear.bias"]
    with pytest.raises(UnknownCheckpoint) as raised:
        imported(tmp_path, "wespeaker ecapa", content)
    message = str(raised.value)
    assert "nearest is WeSpeaker ECAPA, of which 3 tensors differ" in message
    assert "linear.bias [192] is missing" in message
    assert "pool.linear2.weight is [1536, 64], not [1536, 128]" in message
    assert "extra.weight [3] is not of it" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused(tmp_path: Path, value: float) -> None:
    content = tensors(SMALL)
    content["layer3.0.conv2.weight"][1, 2, 0, 1] = value
    with pytest.raises(BadCheckpoint, match=r"layer3\.0\.conv2\.weight has NaN"):
        imported(tmp_path, SMALL, content)
    assert not (tmp_path / "net.safetensors").exists()


def test_negative_variances_are_refused(tmp_path: Path) -> None:
    content = tensors(SMALL)
    content["bn1.running_var"][0] = -1
    with pytest.raises(BadCheckpoint, match="negative"):
        imported(tmp_path, SMALL, content)


def test_the_check_passes_on_the_original_and_refuses_another(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", foreign.wave(), 16000, subtype="FLOAT")
    golden = np.array(GOLDEN[SMALL]["embedding"])
    np.save(tmp_path / "same.npy", 3 * golden[None])
    np.save(tmp_path / "other.npy", golden + 0.01 * np.eye(256)[3])
    given = {"check_audio": tmp_path / "a.wav"}
    report = imported(tmp_path, SMALL, check=tmp_path / "same.npy", **given)
    assert report["check"]["largest_difference"] < 1e-4
    (tmp_path / "net.safetensors").unlink()
    with pytest.raises(OtherEmbedding, match="differ by"):
        imported(tmp_path, SMALL, check=tmp_path / "other.npy", **given)
    with pytest.raises(OtherEmbedding, match="3dspeaker the front end"):
        imported(tmp_path, SMALL, check=tmp_path / "same.npy", front_end="3dspeaker", **given)
    assert not (tmp_path / "net.safetensors").exists()
    np.save(tmp_path / "short.npy", golden[:5])
    with pytest.raises(BadInput, match="256 numbers"):
        imported(tmp_path, SMALL, check=tmp_path / "short.npy", **given)


def built(found: recognise.Recognised) -> Any:
    with torch.device("meta"):
        return networks.build(**found.settings).config


@pytest.mark.parametrize("preset", ["resnet18", "resnet101", "resnet293", "ecapa1024", "gemini114", "gemini237"])
def test_published_sizes_are_recognised(preset: str) -> None:
    with torch.device("meta"):
        network = networks.build(preset)
    stored = {
        name: pickles.Stored(Path("x"), "<f4", tuple(tensor.shape), (), 0)
        for name, tensor in network.state_dict().items()
    }
    found = recognise.recognise(Path("x"), stored)
    assert built(found) == network.config
    assert found.layout.name.startswith("WeSpeaker")


def test_the_command(tmp_path: Path) -> None:
    path = saved(tmp_path, tensors("wespeaker gemini"))
    out = tmp_path / "net.safetensors"
    arguments = ["import", str(path), "--out", str(out), "--licence", "CC-BY-4.0", "--name", "small", "--json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    about = checkpoints.load(out).about
    assert (about["licence"], about["name"]) == ("CC-BY-4.0", "small")
    assert about["imported"]["source_sha256"] == report["source_sha256"]
    assert CliRunner().invoke(main, ["import", str(tmp_path / "none.pt"), "--out", str(out)]).exit_code == 2
