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
        made = networks.build(name, **NETWORKS[name])
        for norm in made.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.weight.data.uniform_(0.5, 1.5)
                norm.bias.data.normal_(0, 0.2)
        with torch.no_grad():
            for _ in range(10):
                made(3 * torch.randn(4, 80, 50))
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
    made: dict[tuple[str, str], onnx.ModelProto] = {}

    def make(name: str, plan: str) -> onnx.ModelProto:
        if (name, plan) not in made:
            encoder, coded = quantized(name, plan)
            made[name, plan] = build(encoder, preset("wespeaker"), coded, [wave], metadata={"plan": plan})
        return made[name, plan]

    return make


@pytest.fixture(scope="session")
def run() -> Callable[[onnx.ModelProto, np.ndarray], np.ndarray]:
    """A function: what onnxruntime computes for one input."""

    def embed(model: onnx.ModelProto, value: np.ndarray) -> np.ndarray:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: value[None]})[0][0]

    return embed
