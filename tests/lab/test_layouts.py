"""Architectures whose tensors have their toolkit's names: dressed as published, recognised, imported unchanged.

That the names and values are those of the toolkits is tested in tests/networks/test_originals.py.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sottovoce import networks
from sottovoce.errors import BadInput, UnknownCheckpoint
from sottovoce.lab import checkpoint as checkpoints
from sottovoce.lab import imports, recognise
from sottovoce.lab.compress import compress, export
from sottovoce.lab.imports import import_checkpoint
from sottovoce.runtime.engine import load

sys.path.insert(0, str(Path(__file__).parent))
import foreign

sys.path.pop(0)
SPEAKERS = 7  # of classifiers
PROJECTION = {"projection.weight": (SPEAKERS, 16)}
PLAIN = {"torchfb.spectrogram.window": (400,), "torchfb.mel_scale.fb": (257, 40)}
EMPHASISED = {
    "torchfb.0.flipped_filter": (1, 1, 2),
    "torchfb.1.spectrogram.window": (400,),
    "torchfb.1.mel_scale.fb": (257, 64),
}
PROTOTYPES = {"__L__.w": (), "__L__.b": ()}
BOTH = {"__L__.softmax.fc.weight": (SPEAKERS, 16), "__L__.angleproto.w": ()}


@dataclass(frozen=True)
class Case:
    """A thin network and how its toolkit stores it."""

    layout: str
    front_end: str
    kind: str
    settings: dict[str, Any]
    left_out: dict[str, tuple[int, ...]] = field(default_factory=dict)  # stored as well
    prefix: str = ""  # before every name of the network
    entry: str = ""  # of the dictionary that is stored
    asked: bool = False  # names and shapes do not tell the front end

    def network(self) -> nn.Module:
        network = networks.build(self.kind, **self.settings).eval()
        network.load_state_dict(random_tensors({name: tuple(t.shape) for name, t in network.state_dict().items()}))
        return network

    def saved(self, folder: Path, network: nn.Module, name: str = "net.pt") -> Path:
        extra = random_tensors(self.left_out)
        inside = {n: t for n, t in extra.items() if not n.startswith(("__L__", "projection"))}
        tensors = {self.prefix + n: t for n, t in {**network.state_dict(), **inside}.items()}
        tensors |= {n: t for n, t in extra.items() if n not in inside}
        content = {self.entry: tensors, "epoch": 3, "optimizer_state_dict": {"state": {0: {"step": torch.ones(2)}}}}
        torch.save(content if self.entry else tensors, folder / name)
        return folder / name


NARROW = {"growth": 8, "bottleneck": 2, "width": 32, "dim": 16, "layers": (2, 3, 1)}
SMALL = {"blocks": (1, 2, 1, 1), "widths": (8, 16, 16, 32), "dim": 16}
STAGES = ((1, 1, 1, 0), (2, 1, 2, 4))
CASES = {
    "campplus of wespeaker": Case("CAM++", "wespeaker", "campplus", NARROW, PROJECTION, asked=True),
    "campplus of 3dspeaker": Case("CAM++", "3dspeaker", "campplus-3dspeaker", NARROW, asked=True),
    "simam": Case(
        "WeSpeaker SimAM-ResNet",
        "wespeaker",
        "simam34",
        {"width": 8, "dim": 16, "blocks": (1, 2, 1, 1)},
        PROJECTION,
        prefix="module.",
    ),
    "eres2net": Case("3D-Speaker ERes2Net", "3dspeaker", "eres2net", {"width": 8, "dim": 16, "blocks": (1, 2, 1, 1)}),
    "eres2netv2": Case(
        "3D-Speaker ERes2Net",
        "3dspeaker",
        "eres2netv2",
        {"width": 16, "dim": 16, "blocks": (1, 1, 2, 1)},
        prefix="module.",
        entry="state_dict",
    ),
    "eres2netv2 w24s4ep4": Case(
        "3D-Speaker ERes2Net",
        "3dspeaker",
        "eres2netv2",
        {"width": 8, "base": 48, "scale": 4, "expansion": 4, "dim": 16, "blocks": (1, 2, 2, 1)},
    ),
    "sbresnet": Case(
        "SpeechBrain ResNet",
        "speechbrain",
        "resnet-speechbrain",
        {"widths": (8, 8, 16, 16), "gated": 3, "dim": 16, "blocks": (1, 2, 1, 1)},
    ),
    "redimnet convnext": Case(
        "WeSpeaker ReDimNet",
        "wespeaker-72",
        "redimnet",
        {"stages": STAGES, "width": 12, "group": 8, "context": False, "dim": 16},
        PROJECTION,
    ),
    "redimnet basic": Case(
        "WeSpeaker ReDimNet",
        "wespeaker-60",
        "redimnet",
        {"stages": STAGES, "width": 4, "group": 1, "block": "basic", "mels": 60, "dim": 16},
        PROJECTION,
    ),
    "redimnet gated": Case(
        "WeSpeaker ReDimNet",
        "wespeaker-72",
        "redimnet",
        {"stages": ((1, 1, 2, 8), (3, 2, 1, 9)), "width": 4, "group": 2, "block": "gated", "dim": 16},
        PROJECTION,
    ),
    "resnetse34l": Case(
        "voxceleb_trainer ResNetSE34",
        "voxceleb_trainer-plain",
        "resnetse34l",
        SMALL,
        {**PLAIN, **PROTOTYPES},
        prefix="__S__.",
    ),
    "resnetse34l with deviations, resumable": Case(
        "voxceleb_trainer ResNetSE34",
        "voxceleb_trainer-plain",
        "resnetse34l",
        {**SMALL, "deviations": True},
        {**PLAIN, **PROTOTYPES},
        prefix="__S__.",
        entry="model_state_dict",
    ),
    "resnetse34l of an old file": Case(
        "voxceleb_trainer ResNetSE34", "voxceleb_trainer-plain", "resnetse34l", SMALL, PLAIN, entry="model"
    ),
    "resnetse34v2": Case(
        "voxceleb_trainer ResNetSE34",
        "voxceleb_trainer",
        "resnetse34v2",
        SMALL,
        {**EMPHASISED, **BOTH},
        prefix="__S__.",
    ),
}
PUBLISHED = {  # preset: layout, front ends that its names and shapes leave
    "campplus": ("CAM++", ["wespeaker", "3dspeaker"]),
    "campplus-3dspeaker": ("CAM++", ["wespeaker", "3dspeaker"]),
    "simam34": ("WeSpeaker SimAM-ResNet", ["wespeaker"]),
    "simam100": ("WeSpeaker SimAM-ResNet", ["wespeaker"]),
    "eres2net": ("3D-Speaker ERes2Net", ["3dspeaker"]),
    "eres2netv2": ("3D-Speaker ERes2Net", ["3dspeaker"]),
    "resnet-speechbrain": ("SpeechBrain ResNet", ["speechbrain"]),
    "redimnet-b0": ("WeSpeaker ReDimNet", ["wespeaker-60"]),
    **{f"redimnet-b{size}": ("WeSpeaker ReDimNet", ["wespeaker-72"]) for size in range(1, 7)},
    "resnetse34l": ("voxceleb_trainer ResNetSE34", ["voxceleb_trainer-plain"]),
    "resnetse34v2": ("voxceleb_trainer ResNetSE34", ["voxceleb_trainer"]),
}


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.asarray(array)) for name, array in foreign.weights(shapes).items()}


def on_meta(kind: str, **settings: Any) -> nn.Module:
    with torch.device("meta"):
        return networks.build(kind, **settings)


def recognised(preset: str, left_out: dict[str, tuple[int, ...]], **settings: Any) -> recognise.Recognised:
    """By names and shapes alone: no tensor has memory."""
    network = on_meta(preset, **settings)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} | left_out
    stored = {name: recognise.Stored(Path("x"), "<f4", shape, (), 0) for name, shape in shapes.items()}
    return recognise.recognise(Path("x"), stored)


@pytest.mark.parametrize("name", CASES)
def test_an_imported_network_is_the_one_built_directly(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    network = case.network()
    path, out = case.saved(tmp_path, network), tmp_path / "net.safetensors"
    report = import_checkpoint(path, out=out, front_end=case.front_end if case.asked else None)
    assert (report["toolkit"], report["front_end"]) == (case.layout, case.front_end)
    assert sorted(report["dropped"]) == sorted(case.left_out)
    there = checkpoints.load(out).network
    assert there.config == network.config
    expected, found = (imports.embed(net, case.front_end, foreign.wave()) for net in (network, there))
    assert np.abs(found - expected).max() < 1e-6


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_sizes_are_recognised_by_shapes_alone(preset: str) -> None:
    layout, front_ends = PUBLISHED[preset]
    left_out = {"resnetse34l": PLAIN, "resnetse34v2": EMPHASISED}.get(preset, {})
    found = recognised(preset, left_out)
    assert found.layout.name == layout
    assert recognise.fitting(found) == front_ends
    assert found.dropped == list(left_out)
    front_end = "3dspeaker" if preset == "campplus-3dspeaker" else front_ends[0]
    assert on_meta(**recognise.settled(found, front_end).settings).config == on_meta(preset).config


def test_whether_the_attention_of_a_redimnet_has_context_is_seen() -> None:
    assert recognised("redimnet-b1", {}).settings["context"]
    assert not recognised("redimnet-b1", {}, context=False).settings["context"]


def test_a_shared_architecture_needs_its_front_end_and_the_floor_follows(tmp_path: Path) -> None:
    case, out, folder = CASES["campplus of 3dspeaker"], tmp_path / "net.safetensors", tmp_path / "published"
    folder.mkdir()
    case.saved(folder, case.network(), "campplus_cn_common.bin")
    with pytest.raises(BadInput, match="--front-end: wespeaker or 3dspeaker"):
        import_checkpoint(folder, out=out)
    floors = {}
    for front_end, text in (
        ("3dspeaker", '{"task": "speaker-verification", "sample_rate": 16000}'),
        ("wespeaker", "frontend: fbank"),
    ):
        (folder / "configuration.json").write_text(text)
        assert import_checkpoint(folder, out=out)["front_end"] == front_end
        floors[front_end] = checkpoints.load(out).network.config.floor
    assert floors == {"3dspeaker": 1e-16, "wespeaker": 1e-7}


def test_mels_that_no_tensor_tells_are_those_of_the_front_end(tmp_path: Path) -> None:
    network = CASES["resnetse34l"].network()
    torch.save(network.state_dict(), tmp_path / "net.model")
    out = tmp_path / "net.safetensors"
    with pytest.raises(BadInput, match="voxceleb_trainer or voxceleb_trainer-40 or voxceleb_trainer-plain"):
        import_checkpoint(tmp_path / "net.model", out=out)
    for front_end, mels in (("voxceleb_trainer", 64), ("voxceleb_trainer-40", 40), ("voxceleb_trainer-plain", 40)):
        report = import_checkpoint(tmp_path / "net.model", out=out, front_end=front_end)
        assert report["network"]["mels"] == checkpoints.load(out).network.config.mels == mels


@pytest.mark.parametrize(
    ("kind", "settings", "left_out", "message"),
    [
        ("resnetse34v2", SMALL, PLAIN, "reads 64 rows; torchfb.spectrogram.window is stored with it"),
        ("redimnet", {"stages": STAGES, "width": 4, "mels": 48}, {}, "wespeaker-72, .* none of which fits: .* 48 rows"),
    ],
)
def test_a_network_that_no_front_end_fits_is_refused(
    tmp_path: Path, kind: str, settings: dict[str, Any], left_out: dict[str, tuple[int, ...]], message: str
) -> None:
    network = networks.build(kind, **settings)
    torch.save({**network.state_dict(), **random_tensors(left_out)}, tmp_path / "net.pt")
    with pytest.raises(BadInput, match=message):
        import_checkpoint(tmp_path / "net.pt", out=tmp_path / "net.safetensors")
    assert not (tmp_path / "net.safetensors").exists()


@pytest.mark.parametrize("name", ["campplus of wespeaker", "redimnet gated", "eres2netv2", "resnetse34v2"])
def test_a_changed_tensor_is_named_with_the_nearest_kind(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    tensors = case.network().state_dict()
    *_, last = (n for n, t in tensors.items() if t.ndim)
    tensors[last] = torch.zeros(3, 5)
    torch.save(tensors, tmp_path / "net.pt")
    with pytest.raises(UnknownCheckpoint, match=rf"{last} is \[3, 5\]".replace(".", r"\.")) as raised:
        import_checkpoint(tmp_path / "net.pt", out=tmp_path / "net.safetensors", front_end=case.front_end)
    assert case.layout in str(raised.value)


@pytest.mark.parametrize("name", ["redimnet basic", "redimnet convnext", "resnetse34l"])
def test_the_file_computes_the_front_ends_that_came_with_them(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    network = case.network()
    import_checkpoint(case.saved(tmp_path, network), out=tmp_path / "net.safetensors")
    export(tmp_path / "net.safetensors", out=tmp_path / "float.onnx")
    found = load(tmp_path / "float.onnx").embed(foreign.wave())
    assert np.abs(found - imports.embed(network, case.front_end, foreign.wave())).max() < 5e-4


def test_an_imported_campplus_compresses(tmp_path: Path) -> None:
    case = CASES["campplus of 3dspeaker"]
    network = case.network()
    import_checkpoint(case.saved(tmp_path, network), out=tmp_path / "net.safetensors", front_end=case.front_end)
    compress(tmp_path / "net.safetensors", out=tmp_path / "net.onnx", bits=8, method="nearest")
    model = load(tmp_path / "net.onnx")
    assert model.metadata["front_end"]["name"] == "3dspeaker"
    assert model.embed(foreign.wave()) @ imports.embed(network, case.front_end, foreign.wave()) > 0.95
