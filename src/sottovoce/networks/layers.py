"""Layers that more than one architecture uses: pooling over time, squeeze-and-excitation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sottovoce.errors import BadInput


def check_frames(features: Tensor, least: int) -> None:
    """Raises BadInput when features, (batch, rows, frames), are shorter than a network can embed."""
    if features.shape[-1] < least:
        raise BadInput(f"network: {features.shape[-1]} frames are too short; it needs at least {least}")


def mean_and_std(x: Tensor, floor: float = 1e-7) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation over the last axis, kept with length 1.

    floor: what is added to the variance (WeSpeaker: 1e-7).
    """
    mean = x.mean(dim=-1, keepdim=True)
    centred = x - mean
    variance = (centred * centred).sum(dim=-1, keepdim=True) / (x.shape[-1] - 1)
    return mean, torch.sqrt(variance + floor)


def weighted_statistics(x: Tensor, weight: Tensor, floor: float) -> Tensor:
    """Weighted mean and standard deviation over frames.

    x: (batch, channels, frames)   weight: the same, or (batch, 1, frames), of sum 1 over frames
    floor: the least variance   returns: (batch, 2 · channels).
    """
    mean = (weight * x).sum(dim=2)
    variance = (weight * x * x).sum(dim=2) - mean * mean
    return torch.cat([mean, torch.sqrt(variance.clamp(min=floor))], dim=1)


def _floored(floor: float, correction: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """As `mean_and_std`, of a variance that is at least `floor`; correction 0: the biased one."""

    def of(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean(dim=-1, keepdim=True)
        centred = x - mean
        variance = (centred * centred).sum(dim=-1, keepdim=True) / (x.shape[-1] - correction)
        return mean, torch.sqrt(variance.clamp(min=floor))

    return of


@dataclass(frozen=True)
class Statistics:
    """How a toolkit computes the deviations inside attentive pooling."""

    context: Callable[[Tensor], tuple[Tensor, Tensor]]  # (..., frames) → mean and deviation, (..., 1)
    floor: float  # the least variance that pooling returns the root of
    centred: bool  # that variance as the mean of squared distances, else as the mean of squares less the squared mean


STATISTICS = {
    "wespeaker": Statistics(mean_and_std, 1e-7, False),
    "speechbrain": Statistics(_floored(1e-12, 0), 1e-12, True),
    "taoruijie": Statistics(_floored(1e-4, 1), 1e-4, False),
}


class StatisticsPool(nn.Module):
    """Temporal statistics pooling: (batch, ..., frames) → (batch, 2 · features). NaN for a single frame."""

    def __init__(self, floor: float = 1e-7) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:
        mean, std = mean_and_std(x, self.floor)
        return torch.cat([mean.flatten(1), std.flatten(1)], dim=1)


def attention(channels: int, bottleneck: int = 128) -> nn.Sequential:
    """Weights of frames: (batch, channels, frames) → the same shape, of sum 1 over frames.

    The attention of voxceleb_trainer, SpeechBrain's ResNet and SimAM-ResNet: ReLU and batch norm, and no tanh.
    """
    return nn.Sequential(
        nn.Conv1d(channels, bottleneck, kernel_size=1),
        nn.ReLU(),
        nn.BatchNorm1d(bottleneck),
        nn.Conv1d(bottleneck, channels, kernel_size=1),
        nn.Softmax(dim=2),
    )


class AttentivePool(nn.Module):
    """Attentive statistics pooling (Okabe 2018; ECAPA-TDNN, section 3.1).

    x: (batch, channels, frames), or (batch, channels, mel, frames), whose rows are then channels as well.
    returns: (batch, 2 · channels).

    context: what of the whole recording the attention sees beside each frame: 0 nothing, 1 its mean, 2 mean and
    standard deviation.   norm: ReLU and batch norm before the tanh.   statistics: a name in STATISTICS.   Names of
    tensors as in WeSpeaker.
    """

    def __init__(
        self, channels: int, bottleneck: int = 128, context: int = 0, norm: bool = False, statistics: str = "wespeaker"
    ) -> None:
        super().__init__()
        self.context = context
        self.statistics = STATISTICS[statistics]
        self.linear1 = nn.Conv1d(channels * (1 + context), bottleneck, kernel_size=1)
        self.hidden = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(bottleneck)) if norm else nn.Sequential()
        self.linear2 = nn.Conv1d(bottleneck, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1, 2) if x.ndim == 4 else x
        seen = x
        if self.context:
            statistics = self.statistics.context(x)[: self.context]
            seen = torch.cat([x, *(one.expand_as(x) for one in statistics)], dim=1)
        weight = torch.softmax(self.linear2(torch.tanh(self.hidden(self.linear1(seen)))), dim=2)
        if self.statistics.centred:
            mean = (weight * x).sum(dim=2)
            distance = x - mean.unsqueeze(2)
            variance = (weight * distance * distance).sum(dim=2)
            return torch.cat([mean, torch.sqrt(variance.clamp(min=self.statistics.floor))], dim=1)
        return weighted_statistics(x, weight, self.statistics.floor)


class SqueezeExcite(nn.Module):
    """Channel gains from the mean over positions (SE): (batch, channels, ...) → same shape. Names as WeSpeaker's."""

    def __init__(self, channels: int, bottleneck: int = 128, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, bottleneck)
        self.activation = activation()
        self.linear2 = nn.Linear(bottleneck, channels)

    def forward(self, x: Tensor) -> Tensor:
        gain = torch.sigmoid(self.linear2(self.activation(self.linear1(x.mean(dim=tuple(range(2, x.ndim)))))))
        for _ in range(x.ndim - 2):
            gain = gain.unsqueeze(-1)
        return x * gain


class ChannelGate(nn.Module):
    """SqueezeExcite of maps, (batch, channels, rows, columns), with the tensor names of SpeechBrain's ResNet."""

    def __init__(self, channels: int, bottleneck: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, bottleneck), nn.ReLU(), nn.Linear(bottleneck, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean(dim=(2, 3))).unsqueeze(-1).unsqueeze(-1)
