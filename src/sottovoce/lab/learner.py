"""What is trained: network and classifier with their losses, their optimiser, and the state of all three as tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sottovoce import quant
from sottovoce.lab.average import Average
from sottovoce.lab.feed import Fed
from sottovoce.lab.losses import TEACHER_LOSSES, MarginSoftmax
from sottovoce.lab.recipe import Optim, Recipe

MODULE, OPTIM, AVERAGE = "module.", "optim.", "average."  # prefixes of names in a saved state


class Learner(nn.Module):
    """Network and classifier as one module: (features, labels) → losses."""

    def __init__(self, recipe: Recipe, network: nn.Module, classes: int) -> None:
        super().__init__()
        loss, dim = recipe.loss, int(network.dim)  # type: ignore[arg-type]
        self.loss = loss
        self.network = network
        self.head = MarginSoftmax(dim, classes, loss.scale, loss.kind) if loss.weight else None
        self.turn: Tensor | None
        self.register_buffer("turn", torch.eye(dim) if loss.teacher_turned else None)

    def forward(self, fed: Fed, margin: float, damping: float) -> tuple[Tensor, Tensor]:
        """margin: of this step   damping: weight of the damping loss in this step   returns: loss, share correct."""
        embeddings = self.network(fed.features)
        loss = correct = torch.zeros((), device=embeddings.device)
        if self.head is not None:
            loss, correct = self.head(embeddings, fed.labels, margin)
            loss = self.loss.weight * loss
        if fed.followed is not None:
            followed = fed.followed if self.turn is None else fed.followed.float() @ self.turn
            distance = TEACHER_LOSSES[self.loss.teacher_kind](embeddings, followed)
            loss = loss + self.loss.teacher_weight * distance
        if damping:
            loss = loss + damping * quant.damping_loss(self.network)
        return loss, correct


def optimiser(optim: Optim, learner: nn.Module, scales: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of a stage: groups of quantizer parameters, of vectors, of matrices; only these decay."""
    own = {id(p) for p in scales}
    rest = [p for p in learner.parameters() if p.requires_grad and id(p) not in own]
    momentum = optim.momentum if optim.scale_momentum else 0.0
    moving: dict[str, Any] = {"momentum": momentum, "nesterov": momentum > 0}
    if optim.name != "sgd":
        moving = {"betas": (0.9 if optim.scale_momentum else 0.0, 0.999)}
    groups = [
        {"params": scales, "weight_decay": 0.0, "factor": optim.scale_rate, **moving},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0, "factor": 1.0},
        {"params": [p for p in rest if p.dim() > 1], "factor": 1.0},
    ]
    groups = [group for group in groups if group["params"]]
    if optim.name == "sgd":
        nesterov = optim.momentum > 0
        return torch.optim.SGD(
            groups, lr=optim.rate, momentum=optim.momentum, nesterov=nesterov, weight_decay=optim.weight_decay
        )
    kind = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=optim.rate, weight_decay=optim.weight_decay)


def pack(learner: Learner, optimiser: torch.optim.Optimizer, average: Average | None) -> dict[str, Tensor]:
    """Everything that training needs to go on, by name."""
    tensors = {MODULE + name: tensor for name, tensor in learner.state_dict().items()}
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    for parameter, state in optimiser.state.items():
        for key, value in state.items():
            tensors[f"{OPTIM}{names[id(parameter)]}:{key}"] = torch.as_tensor(value)
    if average is not None:
        tensors |= {AVERAGE + name: tensor for name, tensor in average.tensors.items()}
    return tensors


def unpack(
    tensors: dict[str, Tensor], learner: Learner, optimiser: torch.optim.Optimizer, average: Average | None
) -> None:
    """Put back what `pack` took, on the devices and in the order in memory of what is there."""
    learner.load_state_dict(_beginning(tensors, MODULE))
    parameters = dict(learner.named_parameters())
    for name, tensor in _beginning(tensors, OPTIM).items():
        owner, key = name.rsplit(":", 1)
        parameter = parameters[owner]
        like = tensor if key == "step" else torch.empty_like(parameter).copy_(tensor)
        optimiser.state[parameter][key] = like
    if average is not None:
        average.tensors = {
            name: torch.empty_like(average.tensors[name]).copy_(tensor)
            for name, tensor in _beginning(tensors, AVERAGE).items()
        }


def _beginning(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
