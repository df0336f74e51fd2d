"""Losses of speaker training: additive angular margin, and following a teacher's embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class MarginSoftmax(nn.Module):
    """AAM-softmax (ArcFace, Deng 2019, arXiv 1801.07698, eq. 3): cross-entropy with cos(θ + margin) at the true class.

    Beyond θ = π − margin, where cos(θ + margin) would rise again, the usual linear continuation is used.
    """

    def __init__(self, dim: int, classes: int, scale: float = 32.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(classes, dim))
        nn.init.xavier_normal_(self.weight)

    def forward(self, embeddings: Tensor, labels: Tensor, margin: float) -> tuple[Tensor, Tensor]:
        """embeddings: (batch, dim)  labels: (batch,)  margin: radians  returns: mean loss, share of correct classes."""
        with torch.autocast(embeddings.device.type, enabled=False):
            unit = nn.functional.normalize(embeddings.float())
            cosine = nn.functional.linear(unit, nn.functional.normalize(self.weight.float()))
            true = cosine.gather(1, labels[:, None])
            sine = torch.sqrt((1.0 - true * true).clamp(min=1e-9))
            moved = true * math.cos(margin) - sine * math.sin(margin)
            straight = true - math.sin(math.pi - margin) * margin
            moved = torch.where(true > math.cos(math.pi - margin), moved, straight)
            logits = self.scale * cosine.scatter(1, labels[:, None], moved)
            correct = (cosine.argmax(dim=1) == labels).float().mean()
            return nn.functional.cross_entropy(logits, labels), correct


def margin_at(progress: float, margin: float, start: float, stop: float) -> float:
    """Margin that is 0 until `start` and grows linearly until `stop` (fractions of the training)."""
    if stop <= start:
        return margin if progress >= start else 0.0
    return margin * min(1.0, max(0.0, (progress - start) / (stop - start)))


def teacher_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 − cosine between the embeddings of student and teacher, both (batch, dim)."""
    return (1.0 - nn.functional.cosine_similarity(student.float(), teacher.float())).mean()
