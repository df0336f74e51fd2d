"""Layers that more than one architecture uses: pooling over time, squeeze-and-excitation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mean_and_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation over the last axis, kept with length 1 (WeSpeaker: variance + 1e-7)."""
    mean = x.mean(dim=-1, keepdim=True)
    centred = x - mean
    variance = (centred * centred).sum(dim=-1, keepdim=True) / (x.shape[-1] - 1)
    return mean, torch.sqrt(variance + 1e-7)


class StatisticsPool(nn.Module):
    """Temporal statistics pooling: (batch, ..., frames) → (batch, 2 · features). NaN for a single frame."""

    def forward(self, x: Tensor) -> Tensor:
        mean, std = mean_and_std(x)
        return torch.cat([mean.flatten(1), std.flatten(1)], dim=1)


class AttentivePool(nn.Module):
    """Attentive statistics pooling (Okabe 2018; ECAPA-TDNN, section 3.1).

    x: (batch, channels, frames)   returns: (batch, 2 · channels).

    With `context` the attention also sees mean and standard deviation of the whole recording. Names as in WeSpeaker.
    """

    def __init__(self, channels: int, bottleneck: int = 128, context: bool = False) -> None:
        super().__init__()
        self.context = context
        self.linear1 = nn.Conv1d(channels * (3 if context else 1), bottleneck, kernel_size=1)
        self.linear2 = nn.Conv1d(bottleneck, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        if self.context:
            mean, std = mean_and_std(x)
            seen = torch.cat([x, mean.expand_as(x), std.expand_as(x)], dim=1)
        weight = torch.softmax(self.linear2(torch.tanh(self.linear1(seen))), dim=2)
        mean = (weight * x).sum(dim=2)
        variance = (weight * x * x).sum(dim=2) - mean * mean
        return torch.cat([mean, torch.sqrt(variance.clamp(min=1e-7))], dim=1)


class SqueezeExcite(nn.Module):
    """Channel gains from the mean over time (SE): (batch, channels, frames) → same shape. Names as WeSpeaker's."""

    def __init__(self, channels: int, bottleneck: int = 128) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, bottleneck)
        self.linear2 = nn.Linear(bottleneck, channels)

    def forward(self, x: Tensor) -> Tensor:
        gain = torch.sigmoid(self.linear2(torch.relu(self.linear1(x.mean(dim=2)))))
        return x * gain.unsqueeze(2)
