"""Small networks with random weights, their codes, and the files made of them."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from sottovoce import networks, quant
from sottovoce.audio.features import preset
from sottovoce.audio.talker import talker
from sottovoce.bits.formats import Coded
from sottovoce.bits.plan import Plan
from sottovoce.export import build

NETWORKS = {
    "resnet": {"blocks": (1, 1), "width": 8, "dim": 16},
    "ecapa": {"width": 32, "aggregate": 48, "dim": 16, "scale": 4},
    "dfresnet": {"depths": (1, 1), "dims": (8, 8, 16), "strides": ((2, 1), (4, 2)), "dim": 16},
}
SMALL_RESNET = {"blocks": (1, 1), "width": 8, "dim": 16}
SMALL_KIWANO = {**SMALL_RESNET, "attention": 8, "excited": 1}
SMALL_CAMPPLUS = {"growth": 8, "bottleneck": 2, "width": 16, "head": 8, "segment": 20, "dim": 16}
SMALL_STAGES = {"blocks": (1, 1), "gated": 1, "dim": 16}
SMALL_REDIMNET = {"width": 4, "mels": 80, "dim": 16}
SMALL_RESNETSE = {"blocks": (1, 1, 1, 1), "widths": (8, 8, 8, 16), "dim": 16}
VARIANTS = {  # name: kind, settings, front end
    "ecapa of paper-a": ("ecapa1024-a", NETWORKS["ecapa"], "wespeaker"),
    "ecapa of paper-c": ("ecapa256-c", NETWORKS["ecapa"], "paper-c"),
    "ecapa of speechbrain": ("ecapa512-speechbrain", NETWORKS["ecapa"], "speechbrain"),
    "ecapa of taoruijie": ("ecapa512-a", {**NETWORKS["ecapa"], "statistics": "taoruijie"}, "taoruijie"),
    "two layers": ("resnet34", {**SMALL_RESNET, "two_layers": True}, "3dspeaker"),
    "resnet of paper-c": ("resnet18-c", SMALL_RESNET, "paper-c"),
    "bottleneck": ("resnet50", SMALL_RESNET, "wespeaker"),
    "resnet36": ("resnet36-d", SMALL_KIWANO, "kiwano"),
    "resnet200": ("resnet200-d", {**SMALL_KIWANO, "blocks": (1, 2)}, "kiwano"),
    "campplus": ("campplus", {**SMALL_CAMPPLUS, "layers": (2, 2), "dilations": (1, 2)}, "wespeaker"),
    "simam": ("simam34", SMALL_RESNET, "wespeaker"),
    "eres2net": ("eres2net", {"blocks": (1, 1, 1, 1), "width": 8, "dim": 16}, "wespeaker"),
    "eres2netv2": ("eres2netv2", {"blocks": (1, 1, 1, 1), "width": 16, "dim": 16}, "wespeaker"),
    "sbresnet": ("resnet-speechbrain", {**SMALL_STAGES, "widths": (8, 16), "strides": (1, 2)}, "wespeaker"),
    "redimnet": ("redimnet", {"stages": ((1, 1, 1, 0), (2, 1, 2, 8)), **SMALL_REDIMNET}, "wespeaker"),
    "redimnet gated": (
        "redimnet",
        {"stages": ((1, 1, 1, 0), (2, 1, 1, 0)), **SMALL_REDIMNET, "block": "gated", "group": 2},
        "wespeaker",
    ),
    "resnetse34l": ("resnetse34l", {**SMALL_RESNETSE, "mels": 80}, "wespeaker"),
    "resnetse34v2": ("resnetse34v2", SMALL_RESNETSE, "paper-c"),
}


@pytest.fixture(scope="session")
def wave() -> np.ndarray:
    """One second of a synthetic voice: (16000,)."""
    return talker(1.0, seed=5)


@pytest.fixture(scope="session")
def network() -> Callable[[str], nn.Module]:
    """A function: a small network by name, its batch norms away from their defaults."""

    def make(name: str) -> nn.Module:
        torch.manual_seed(1)
        kind, settings, front_end = VARIANTS[name] if name in VARIANTS else (name, NETWORKS[name], "wespeaker")
        made = networks.build(kind, **settings)
        for norm in made.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.affine:
                norm.weight.data.uniform_(0.5, 1.5)
                norm.bias.data.normal_(0, 0.2)
        with torch.no_grad():
            for _ in range(10):
                made(3 * torch.randn(4, preset(front_end).rows, 50))
        return made.eval()

    return make


@pytest.fixture(scope="session")
def quantized(network) -> Callable[..., tuple[nn.Module, dict[str, Coded]]]:
    """A function: a small network with decoded weights in place, and its codes."""

    def make(name: str, plan: str) -> tuple[nn.Module, dict[str, Coded]]:
        made = network(name)
        quant.attach(made, Plan.parse(plan))
        coded = quant.coded(made)
        quant.detach(made)
        return made, coded

    return make


@pytest.fixture(scope="session")
def make_model(quantized, wave) -> Callable[..., onnx.ModelProto]:
    """A function: the model of a small network with a plan, built once."""
    made: dict[tuple[str, str, bool], onnx.ModelProto] = {}

    def make(name: str, plan: str, centred: bool = True) -> onnx.ModelProto:
        if (name, plan, centred) not in made:
            encoder, coded = quantized(name, plan)
            front_end = preset(VARIANTS[name][2] if name in VARIANTS else "wespeaker")
            metadata = {"plan": plan}
            made[name, plan, centred] = build(encoder, front_end, coded, [wave], metadata=metadata, centred=centred)
        return made[name, plan, centred]

    return make


@pytest.fixture(scope="session")
def run() -> Callable[[onnx.ModelProto, np.ndarray], np.ndarray]:
    """A function: what onnxruntime computes for one input."""

    def embed(model: onnx.ModelProto, value: np.ndarray) -> np.ndarray:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", "1")  # exact sums without VNNI too
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: value[None]})[0][0]

    return embed
