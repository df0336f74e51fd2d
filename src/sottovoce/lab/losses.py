"""Losses of speaker training: margin softmax, angular and additive, and following a teacher's embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def angular(true: Tensor, margin: float) -> Tensor:
    """cos(θ + margin) of cos θ (AAM-softmax, ArcFace, Deng 2019, arXiv 1801.07698, eq. 3); radians.

    Beyond θ = π − margin, where it would rise again, the usual linear continuation is used.
    """
    sine = torch.sqrt((1.0 - true * true).clamp(min=1e-9))
    moved = true * math.cos(margin) - sine * math.sin(margin)
    straight = true - math.sin(math.pi - margin) * margin
    return torch.where(true > math.cos(math.pi - margin), moved, straight)


def additive(true: Tensor, margin: float) -> Tensor:
    """cos θ − margin (AM-softmax, Wang 2018, arXiv 1801.05599, eq. 4)."""
    return true - margin


MARGINS: dict[str, Callable[[Tensor, float], Tensor]] = {"aam": angular, "am": additive}


class MarginSoftmax(nn.Module):
    """Cross-entropy of scaled cosines to one direction a class, the true class's made smaller by a margin.

    kind: a name of MARGINS.
    """

    def __init__(self, dim: int, classes: int, scale: float = 32.0, kind: str = "aam") -> None:
        super().__init__()
        self.scale, self.margined = scale, MARGINS[kind]
        self.weight = nn.Parameter(torch.empty(classes, dim))
        nn.init.xavier_normal_(self.weight)

    def forward(self, embeddings: Tensor, labels: Tensor, margin: float) -> tuple[Tensor, Tensor]:
        """embeddings: (batch, dim)  labels: (batch,)  returns: mean loss, share of correct classes."""
        with torch.autocast(embeddings.device.type, enabled=False):
            unit = nn.functional.normalize(embeddings.float())
            cosine = nn.functional.linear(unit, nn.functional.normalize(self.weight.float()))
            true = cosine.gather(1, labels[:, None])
            logits = self.scale * cosine.scatter(1, labels[:, None], self.margined(true, margin))
            correct = (cosine.argmax(dim=1) == labels).float().mean()
            return nn.functional.cross_entropy(logits, labels), correct


def margin_at(progress: float, margin: float, start: float, stop: float) -> float:
    """Margin that is 0 until `start` and grows linearly until `stop` (fractions of the training)."""
    if stop <= start:
        return margin if progress >= start else 0.0
    return margin * min(1.0, max(0.0, (progress - start) / (stop - start)))


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 − cosine between embeddings, both (batch, dim)."""
    return (1.0 - nn.functional.cosine_similarity(student.float(), teacher.float())).mean()


def squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square of the differences of embeddings, both (batch, dim): the L2 loss of arXiv 2210.17326.

    That the mean goes over batch and dimensions is our reading.
    """
    return nn.functional.mse_loss(student.float(), teacher.float())


TEACHER_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cosine": cosine_distance, "l2": squared_distance}


def turn(product: Tensor) -> Tensor:
    """The rotation (or reflection) that brings a teacher's embeddings nearest to the student's.

    product: (dim, dim), sum of teacherᵀ student over unit embeddings of the same inputs   returns: (dim, dim) float32,
    orthogonal; teacher @ turn is what is followed. Angles between the teacher's embeddings stay, so nothing that it
    knows is lost. Source: orthogonal Procrustes problem, Schönemann 1966.
    """
    left, _, right = torch.linalg.svd(product.double())
    return (left @ right).float()
