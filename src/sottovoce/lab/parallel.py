"""Several training processes: who we are, and batch norm whose statistics are those of the global batch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


@dataclass(frozen=True)
class Team:
    """This process among those that torchrun started."""

    rank: int
    world: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0


def join() -> Team:
    """Join the processes that torchrun started, or be alone; one CUDA device a process where there are any."""
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", 0))
    if cuda:
        torch.cuda.set_device(local)
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(minutes=10))
    return Team(rank, world, torch.device("cuda", local) if cuda else torch.device("cpu"))


def leave() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def means(team: Team, *values: Tensor) -> list[float]:
    """Each scalar, averaged over the processes."""
    together = torch.stack([value.float() for value in values])
    if team.world > 1:
        dist.all_reduce(together)
    return (together / team.world).tolist()


def total(team: Team, value: Tensor) -> Tensor:
    """The sum of a tensor over the processes."""
    if team.world > 1:
        dist.all_reduce(value)
    return value


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the batches of all processes; torch's own SyncBatchNorm does this on CUDA only."""

    def _check_input_dim(self, x: Tensor) -> None:  # any shape (batch, channels, ...)
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dtype, axes = x.dtype, [0, *range(2, x.dim())]
        x = x.float()
        count = x.numel() / x.shape[1] * dist.get_world_size()
        mean = all_reduce(x.sum(axes)) / count
        centred = x - _as(mean, x)
        variance = all_reduce((centred * centred).sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        out = centred * _as(torch.rsqrt(variance + self.eps) * self.weight, x) + _as(self.bias, x)
        return out.to(dtype)


def _as(vector: Tensor, x: Tensor) -> Tensor:
    return vector.view(1, -1, *[1] * (x.dim() - 2))


def share_batch_norm(network: nn.Module) -> nn.Module:
    """Make every batch norm count the global batch; tensor names stay."""
    if next(network.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                shared = SharedBatchNorm(child.num_features, child.eps, child.momentum)
                shared.load_state_dict(child.state_dict())
                setattr(parent, name, shared)
    return network
