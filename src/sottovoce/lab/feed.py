"""Batches → what a training step takes: features, labels, and what a teacher says of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sottovoce.lab import keep
from sottovoce.lab.augment import masked
from sottovoce.lab.data import Batch, Batches, Corpus
from sottovoce.lab.parallel import Team
from sottovoce.lab.recipe import Recipe
from sottovoce.networks.frontend import FrontEnd


@dataclass(frozen=True)
class Fed:
    """What one step trains on; features with the masks of SpecAugment on them."""

    features: Tensor  # (batch, channels, frames)
    labels: Tensor  # (batch,)
    followed: Tensor | None  # embeddings of the teacher, which sees features without masks, or clean: (batch, dim)


class Feed:
    """Makes features on the device, from waves or kept ones; asks the teacher; hides what SpecAugment hides.

    corpora: everything that batches are made of   cache: where batches are kept, if the recipe wants them kept
    amp: none or bf16, for the teacher.
    """

    def __init__(
        self,
        recipe: Recipe,
        batches: Batches,
        corpora: list[Corpus | None],
        teacher: nn.Module | None,
        team: Team,
        cache: Path,
        amp: str,
    ) -> None:
        self.recipe, self.batches, self.team, self.amp = recipe, batches, team, amp
        self.front_end = FrontEnd(recipe.front_end).to(team.device)
        self.teacher = teacher.to(team.device) if teacher else None
        self.kept = self._kept(cache, corpora) if recipe.data.keep_epochs else None

    def run(self, epoch: int, first: int = 0) -> Iterator[Fed]:
        """What each step of an epoch takes, from step `first` on."""
        for step, batch in enumerate((self.kept or self.batches).run(epoch, first), start=first):
            features = self._features(batch, epoch, step)
            followed = self._followed(batch, features, epoch, step)
            labels = torch.from_numpy(batch.labels).to(self.team.device, non_blocking=True)
            yield Fed(self._masked(features, epoch, step), labels, followed)

    @torch.no_grad()
    def features_of(self, waves: NDArray[np.float32]) -> Tensor:
        """(batch, samples) → (batch, channels, frames), on the device."""
        features: Tensor = self.front_end(torch.from_numpy(waves).to(self.team.device, non_blocking=True))
        return features

    def _kept(self, cache: Path, corpora: list[Corpus | None]) -> keep.Kept:
        recipe = self.recipe
        shapes = {crop: self.features_of(np.zeros((1, crop), np.float32)).shape[1:] for crop in self.batches.crops}
        kept = keep.Kept(
            cache / "kept" / keep.key(self.front_end.config, recipe.augment, self.batches, corpora),
            self.batches,
            {crop: (channels, frames) for crop, (channels, frames) in shapes.items()},
            min(recipe.data.keep_epochs, recipe.optim.epochs),
            self._teacher_name() if self.teacher else "",
            int(self.teacher.dim) if self.teacher else 0,  # type: ignore[arg-type]
        )
        if self.team.leads:
            size, steps = kept.size_bytes / 1e9, kept.epochs * self.batches.steps
            print(f"kept batches: {kept.folder}, {size:.2f} GB, {kept.count()} of {steps} steps there", file=sys.stderr)
        return kept

    def _teacher_name(self) -> str:
        """What embeddings are kept under."""
        heard = ".clean" if self.batches.clean else ""
        return f"{keep.file_hash(self.recipe.loss.teacher)}.{self.amp}{heard}"

    def _features(self, batch: Batch, epoch: int, step: int) -> Tensor:
        """The features of a batch; where batches are kept they are rounded to float16, at the first reading too."""
        if batch.features is not None:
            return torch.from_numpy(batch.features).to(self.team.device, non_blocking=True).float()
        assert batch.waves is not None
        features = self.features_of(batch.waves)
        if self.kept is None:
            return features
        half = features.half()
        self.kept.add(epoch, step, half.cpu().numpy(), batch.labels)
        return half.float()

    @torch.no_grad()
    def _followed(self, batch: Batch, features: Tensor, epoch: int, step: int) -> Tensor | None:
        if self.teacher is None:
            return None
        if batch.followed is not None:
            return torch.from_numpy(batch.followed).to(self.team.device, non_blocking=True)
        if self.batches.clean:
            assert batch.clean is not None
            features = self.features_of(batch.clean)
        with casting(self.team.device, self.amp):
            seen: Tensor = self.teacher(features).float()
        if self.kept is not None:
            self.kept.add_followed(epoch, step, seen.cpu().numpy())
        return seen

    def _masked(self, features: Tensor, epoch: int, step: int) -> Tensor:
        """The same masks for one and for several processes."""
        augment, team = self.recipe.augment, self.team
        if not augment.mask_probability:
            return features
        rows, channels, frames = features.shape
        rng = np.random.default_rng([self.recipe.seed, epoch, step, 3])
        hidden = masked(augment, (rows * team.world, channels, frames), rng)[team.rank :: team.world]
        return features.masked_fill(torch.from_numpy(hidden).to(team.device), 0.0)


def casting(device: torch.device, amp: str) -> AbstractContextManager[Any]:
    """Autocast to bf16 where `amp` says so, nothing otherwise."""
    return torch.autocast(device.type, torch.bfloat16) if amp == "bf16" else nullcontext()


def precision(asked: str, device: torch.device) -> str:
    """`asked`, but float32 ("none") for bf16 on a processor that only emulates it, which is 20 times slower."""
    return "none" if asked == "bf16" and device.type == "cpu" and not has_bf16() else asked


def has_bf16() -> bool:
    """Whether this processor multiplies bf16 in hardware; no, where torch cannot say."""
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(check()) for check in checks if check is not None)
