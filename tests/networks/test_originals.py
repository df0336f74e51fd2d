"""Architectures of other toolkits against what the toolkits' own definitions computed from the same seeded weights.

`originals.json` is written by scripts/golden_networks.py, which runs the definitions of the packages named in it in
float64 (CAM++, SimAM-ResNet, ReDimNet: wespeaker-unofficial; CAM++, ERes2Net, ERes2NetV2: modelscope; ResNet:
speechbrain) and a copy of voxceleb_trainer, which is no package, with its mel front end replaced.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sottovoce import networks
from sottovoce.errors import BadInput

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("seeded", ROOT / "scripts" / "seeded.py")
assert SPEC is not None
assert SPEC.loader is not None
seeded = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(seeded)

ORIGINALS = json.loads((Path(__file__).parent / "originals.json").read_text(encoding="utf-8"))
NARROW = {"growth": 8, "bottleneck": 2, "width": 32, "dim": 16}
FEW = {"mels": 24, "dim": 16}
THIN = {  # name in originals.json: kind or preset, settings
    "campplus": ("campplus", NARROW),
    "campplus of 3D-Speaker": ("campplus-3dspeaker", NARROW),
    "simam": ("simam34", {"width": 8, "dim": 16}),
    "eres2net": ("eres2net", {"width": 8, "dim": 16}),
    "eres2netv2": ("eres2netv2", {"width": 16, "dim": 16}),
    "eres2netv2 w24s4ep4": ("eres2netv2", {"width": 8, "base": 48, "scale": 4, "expansion": 4, "dim": 16}),
    "sbresnet": ("resnet-speechbrain", {"widths": (8, 8, 16, 16), "dim": 16}),
    "redimnet convnext": (
        "redimnet",
        {"stages": ((1, 1, 1, 0), (2, 1, 1, 4)), "width": 8, "group": 4, "context": False, **FEW},
    ),
    "redimnet basic": (
        "redimnet",
        {"stages": ((1, 1, 2, 8), (2, 1, 2, 8)), "width": 4, "group": 1, "block": "basic", **FEW},
    ),
    "redimnet gated": (
        "redimnet",
        {"stages": ((1, 1, 2, 8), (3, 1, 1, 4)), "width": 4, "group": 2, "block": "gated", **FEW},
    ),
    "resnetse34l": ("resnetse34l", {"widths": (8, 16, 16, 32), "dim": 16}),
    "resnetse34l with deviations": ("resnetse34l", {"widths": (8, 16, 16, 32), "dim": 16, "deviations": True}),
    "resnetse34v2": ("resnetse34v2", {"widths": (8, 16, 16, 32), "dim": 16}),
}


@functools.cache
def published(preset: str) -> nn.Module:
    """A network of full size without memory for its weights."""
    with torch.device("meta"):
        return networks.build(preset)


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.fixture(scope="module", params=THIN)
def thin(request: pytest.FixtureRequest) -> tuple[dict, nn.Module]:
    """What the original computed, and our network with the same weights."""
    kind, settings = THIN[request.param]
    network = networks.build(kind, **settings).eval()
    state = {name: torch.from_numpy(array) for name, array in seeded.weights(shapes(network)).items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return ORIGINALS["thin"][request.param], network


def test_every_original_has_its_counterpart() -> None:
    assert set(ORIGINALS["thin"]) == set(THIN)


@pytest.mark.parametrize("preset", ORIGINALS["full"])
def test_published_sizes_have_the_tensors_of_the_original(preset: str) -> None:
    network = published(preset)
    found = shapes(network)
    assert {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "tensors": len(found),
        "sha256": seeded.digest(found.items()),
    } == ORIGINALS["full"][preset]


@pytest.mark.parametrize(
    ("preset", "parameters", "tensors"),
    [
        ("campplus", 7_176_224, 937),
        ("campplus-3dspeaker", 6_848_544, 937),
        ("eres2net", 9_887_808, None),
        ("eres2netv2", 17_859_632, None),
        ("resnet-speechbrain", 15_438_336, None),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(
    preset: str, parameters: int, tensors: int | None
) -> None:
    network = published(preset)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert tensors is None or len(network.state_dict()) == tensors


@pytest.mark.parametrize(
    ("preset", "name", "shape"),
    [
        ("campplus", "xvector.block3.tdnnd16.cam_layer.linear_local.weight", (32, 128, 3)),
        ("campplus", "xvector.dense.linear.weight", (512, 1024, 1)),
        ("campplus", "head.layer2.0.shortcut.1.running_mean", (32,)),
        ("simam100", "front.layer3.23.bn2.weight", (256,)),
        ("simam34", "front.layer2.0.downsample.0.weight", (128, 64, 1, 1)),
        ("eres2net", "layer3.0.fuse_models.0.local_att.0.weight", (16, 128, 1, 1)),
        ("eres2netv2", "fuse34.local_att.4.bias", (1024,)),
        ("resnet-speechbrain", "layer2.0.se.fc.2.weight", (128, 128)),
        ("resnet-speechbrain", "fc_embed.weight", (256, 5120)),
        ("redimnet-b0", "backbone.inputs_weights.5", (1, 6, 600, 1)),
        ("redimnet-b3", "backbone.stage0.1.conv_block.se.exitation.weight", (72, 64)),
        ("resnetse34l", "attention", (128, 1)),
        ("resnetse34v2", "attention.3.weight", (2048, 128, 1)),
    ],
)
def test_names_and_shapes_are_those_of_checkpoints(preset: str, name: str, shape: tuple[int, ...]) -> None:
    assert shapes(published(preset))[name] == shape


def test_embeddings_equal_those_of_the_original(thin: tuple[dict, nn.Module]) -> None:
    original, network = thin
    assert seeded.digest(shapes(network).items()) == original["sha256"]
    for frames, expected in zip(seeded.FRAMES, original["embeddings"], strict=True):
        features = torch.from_numpy(seeded.features(original["rows"], frames))
        with torch.no_grad():
            single = nn.functional.normalize(network(features))[0].numpy()
            exact = nn.functional.normalize(copy.deepcopy(network).double()(features.double()))[0].numpy()
        assert np.abs(exact - expected).max() < 2e-7  # as many digits as are kept
        assert np.abs(single - expected).max() < 2e-5


def test_the_least_number_of_frames_is_that_of_the_original(thin: tuple[dict, nn.Module]) -> None:
    original, network = thin
    assert network.min_frames == original["min_frames"]
    short = torch.from_numpy(seeded.features(original["rows"], network.min_frames))
    with torch.no_grad():
        assert torch.isfinite(network(short)).all()
        with pytest.raises(BadInput, match=f"{network.min_frames - 1} frames.*at least {network.min_frames}"):
            network(short[..., 1:])


def test_every_parameter_learns(thin: tuple[dict, nn.Module]) -> None:
    original, network = thin
    network.train()
    try:
        network(torch.randn(2, original["rows"], 20)).square().sum().backward()
    finally:
        network.eval()
    learning = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
    assert not [name for name, gradient in learning.items() if gradient is None or not torch.isfinite(gradient).all()]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("eres2net", {"fused": "first"}, "all, last"),
        ("redimnet", {"block": "gate"}, "gated"),
        ("redimnet", {"stages": ((1, 1), (2, 1), (2, 1)), "mels": 70}, "35 rows before stage 2"),
        ("redimnet", {"stages": ((1, 1, 1, 5),), "width": 4}, "57 channels of attention"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(kind: str, settings: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        networks.build(kind, **settings)
