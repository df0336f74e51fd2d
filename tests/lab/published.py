"""Networks as others publish them: made in torch with random weights, exported to .onnx, features in, dynamic time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sottovoce import networks
from sottovoce.audio.features import preset
from sottovoce.audio.talker import talker
from sottovoce.networks.frontend import FrontEnd


class PreActivation(nn.Module):
    """Batch norm and ReLU before every convolution, squeeze-and-excitation by Conv, a norm on the embedding."""

    def __init__(self, width: int = 8, dim: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=(2, 1), padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.squeezes = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in range(2))
        self.excites = nn.ModuleList(nn.Conv2d(4, width, 1) for _ in range(2))
        self.last = nn.Linear(width * 40 * 2, dim)
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.unsqueeze(1))
        for norm, conv, squeeze, excite in zip(self.norms, self.convs, self.squeezes, self.excites, strict=True):
            y = conv(torch.relu(norm(x)))
            x = x + y * torch.sigmoid(excite(torch.relu(squeeze(y.mean(dim=(2, 3), keepdim=True)))))
        x = x.flatten(1, 2)
        return self.norm(self.last(torch.cat([x.mean(dim=2), x.std(dim=2)], dim=1)))


class MatMulAttention(nn.Module):
    """(batch, frames, mels) in; causal convolutions, gates, attention by matrix products along time."""

    def __init__(self, mels: int = 80, width: int = 16, dim: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv1d(mels, width, 3, bias=False)
        self.bn = nn.BatchNorm1d(width)
        self.gate = nn.Conv1d(width, width, 1)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=bias) for bias in (False, True, True))
        self.out = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(x.transpose(1, 2), (2, 0))
        x = torch.relu(self.bn(self.first(x)))
        x = (x * torch.sigmoid(self.gate(x))).transpose(1, 2)
        scores = self.query(x) @ self.key(x).transpose(1, 2) / 4
        return self.out((torch.softmax(scores, dim=2) @ self.value(x)).mean(dim=1))


FAMILIES = {
    "resnet": lambda: networks.build("resnet", blocks=(1, 1), width=8, dim=16),
    "ecapa": lambda: networks.build("ecapa", width=32, aggregate=48, dim=16, scale=4),
    "dfresnet": lambda: networks.build("dfresnet", depths=(1, 1), dims=(8, 8, 16), strides=((2, 1), (4, 2)), dim=16),
    "pre-activation": PreActivation,
    "matmul-attention": MatMulAttention,
}
FRAMES_FIRST = ("matmul-attention",)


def network(name: str) -> nn.Module:
    """A small network, its batch norms away from their defaults and a few of their gains negative."""
    torch.manual_seed(1)
    made = FAMILIES[name]()
    for norm in made.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.weight.data.uniform_(0.5, 1.5)
            norm.weight.data[::7] *= -1
            norm.bias.data.normal_(0, 0.2)
    with torch.no_grad():
        for seed in range(8):
            made(inputs(name, np.stack([talker(0.5, seed=seed), talker(0.5, seed=seed + 8)])))
    return made.eval()


def inputs(name: str, waves: np.ndarray) -> Tensor:
    """Features as the family takes them: (batch, mels, frames), or (batch, frames, mels)."""
    features = FrontEnd(preset("wespeaker"))(torch.from_numpy(waves))
    return features.transpose(1, 2) if name in FRAMES_FIRST else features


def export(name: str, path: Path, made: nn.Module | None = None, opset: int = 17) -> nn.Module:
    """Write a family's .onnx as torch does by default, batch and time dynamic; returns the network."""
    made = network(name) if made is None else made
    time = 1 if name in FRAMES_FIRST else 2
    torch.onnx.export(
        made,
        (inputs(name, talker(1.0, seed=1)[None]),),
        str(path),
        dynamo=False,
        opset_version=opset,
        input_names=["feats"],
        output_names=["embs"],
        dynamic_axes={"feats": {0: "B", time: "T"}, "embs": {0: "B"}},
    )
    return made
