"""Margin loss against its formula, margin schedule, teacher loss."""

import math

import pytest
import torch
from torch import nn

from sottovoce.lab.losses import MarginSoftmax, cosine_distance, margin_at, squared_distance, turn


def test_margin_softmax_equals_the_formula() -> None:
    torch.manual_seed(0)
    head, x, labels = MarginSoftmax(8, 5, scale=16.0), torch.randn(6, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    loss, _ = head(x, labels, 0.3)
    total = 0.0
    for row, label in zip(x, labels, strict=True):
        angle = [math.acos(float(torch.cosine_similarity(row, w, dim=0))) for w in head.weight]
        logits = [16.0 * math.cos(a + (0.3 if k == label else 0.0)) for k, a in enumerate(angle)]
        total += math.log(sum(math.exp(v) for v in logits)) - logits[int(label)]
    assert float(loss) == pytest.approx(total / 6, rel=1e-5)


def test_without_margin_it_is_cross_entropy_of_cosines() -> None:
    torch.manual_seed(1)
    head, x, labels = MarginSoftmax(8, 5, scale=4.0), torch.randn(6, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    cosines = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(head.weight).T
    loss, correct = head(x, labels, 0.0)
    assert float(loss.detach()) == pytest.approx(
        float(torch.nn.functional.cross_entropy(4.0 * cosines, labels)), rel=1e-5
    )
    assert float(correct) == pytest.approx(float((cosines.argmax(1) == labels).float().mean()))


def test_gradient_is_finite_at_the_ends_of_the_cosine() -> None:
    head = MarginSoftmax(4, 2)
    x = torch.stack([head.weight[0].detach(), -head.weight[0].detach()]).requires_grad_()
    head(x, torch.tensor([0, 0]), 0.2)[0].backward()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(head.weight.grad).all()


def test_margin_schedule() -> None:
    assert [margin_at(p, 0.2, 0.25, 0.75) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx([0, 0, 0.1, 0.2, 0.2])
    assert margin_at(0.5, 0.2, 0.0, 0.0) == 0.2


def test_teacher_loss_sees_direction_only() -> None:
    x = torch.randn(4, 8)
    assert float(cosine_distance(x, 3 * x)) == pytest.approx(0.0, abs=1e-6)
    assert float(cosine_distance(x, -x)) == pytest.approx(2.0, abs=1e-6)


def test_the_l2_distance_sees_size_too() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert float(squared_distance(x, 2 * x)) == pytest.approx(25 / 4)


def test_additive_margin_equals_the_formula() -> None:
    torch.manual_seed(2)
    head, x, labels = MarginSoftmax(8, 5, scale=16.0, kind="am"), torch.randn(6, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    cosines = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(head.weight).T
    total = 0.0
    for row, label in zip(cosines.tolist(), labels.tolist(), strict=True):
        others = sum(math.exp(16.0 * v) for k, v in enumerate(row) if k != label)
        true = math.exp(16.0 * (row[label] - 0.3))
        total -= math.log(true / (true + others))
    assert float(head(x, labels, 0.3)[0].detach()) == pytest.approx(total / 6, rel=1e-5)


def test_a_rotation_is_found_back() -> None:
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0]
    teacher = nn.functional.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(1)))
    found = turn(teacher.T @ (teacher @ rotation))
    assert torch.allclose(found, rotation, atol=1e-5)
    assert torch.allclose(found @ found.T, torch.eye(6), atol=1e-5)
