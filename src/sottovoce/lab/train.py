"""One training loop for float and quantized training: a plan attached before it starts is the only difference."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sottovoce import networks, quant
from sottovoce.audio.features import preset
from sottovoce.bits.plan import Plan
from sottovoce.errors import BadCheckpoint, BadInput
from sottovoce.lab import checkpoint, parallel
from sottovoce.lab.augment import Augmenter
from sottovoce.lab.data import RATE, Batch, Batches, Corpus, load_corpus
from sottovoce.lab.losses import MarginSoftmax, margin_at, teacher_loss
from sottovoce.lab.recipe import Recipe, read_recipe
from sottovoce.lab.run import Run
from sottovoce.networks.frontend import FrontEnd

HEAD = "head.safetensors"


class Learner(nn.Module):
    """Front end, network and classifier as one module: (waves, labels) → losses."""

    def __init__(self, recipe: Recipe, network: nn.Module, classes: int, teacher: nn.Module | None) -> None:
        super().__init__()
        self.recipe = recipe
        self.front_end = FrontEnd(recipe.front_end)
        self.network = network
        self.head = MarginSoftmax(int(network.dim), classes, recipe.loss.scale)  # type: ignore[arg-type]
        self._teacher = [teacher] if teacher else []  # in a list: not a part of the state

    def forward(self, waves: Tensor, labels: Tensor, margin: float) -> tuple[Tensor, Tensor]:
        """waves: (batch, samples)  labels: (batch,)  returns: loss, share of correct classes."""
        with torch.no_grad():
            features = self.front_end(waves)
        embeddings = self.network(features)
        loss, correct = self.head(embeddings, labels, margin)
        for teacher in self._teacher:
            with torch.no_grad():
                seen = teacher(features)
            loss = loss + self.recipe.loss.teacher_weight * teacher_loss(embeddings, seen)
        return loss, correct


def train(
    recipe_path: str | Path, run: str | Path, data: str | Path = ".", *, save_every_s: float = 120.0
) -> dict[str, Any]:
    """Train as a recipe says, in a run folder; goes on where a killed run stopped.

    data: folder that the recipe's paths are relative to. Returns a report with steps, loss, seconds and the path of
    the result. Raises BadRecipe, BadList, BadCheckpoint before anything long starts.
    """
    recipe = read_recipe(recipe_path)
    team = parallel.join()
    try:
        return Trainer(recipe, Run(run), Path(data), team, save_every_s).run()
    finally:
        parallel.leave()


@dataclass
class Trainer:
    """State and steps of one training."""

    recipe: Recipe
    folder: Run
    data: Path
    team: parallel.Team
    save_every_s: float = 120.0

    def run(self) -> dict[str, Any]:
        """Train to the end; see `train`."""
        began = time.monotonic()
        torch.manual_seed(self.recipe.seed)
        if self.team.leads:
            self.folder.open(self.recipe)
        self._prepare()
        first = self._resume()
        loss: float | None = None  # of the last epoch; none when nothing was left to do
        for epoch in range(first // self.batches.steps, self.recipe.optim.epochs):
            loss = self._epoch(epoch, first - epoch * self.batches.steps if first > epoch * self.batches.steps else 0)
            if self.recipe.quant.start:
                quant.refresh(self.network)
            self._save((epoch + 1) * self.batches.steps)
        if self.team.leads:
            checkpoint.save_tensors(self.folder.folder / HEAD, self.learner.head.state_dict(), {"head": "aam"})
            checkpoint.save(self.folder.model, self.network, self.about)
        return {
            "model": str(self.folder.model),
            "recipe_sha256": self.recipe.sha256(),
            "steps": self.total,
            "classes": self.batches.classes,
            "loss": loss,
            "seconds": round(time.monotonic() - began, 1),
            "excluded": self.corpus.excluded,
        }

    def _prepare(self) -> None:
        recipe = self.recipe
        self.network, teacher = self._networks()
        self.corpus, noises, rooms = self._corpora()
        augmenter = Augmenter(recipe.augment, self.corpus, noises, rooms, recipe.seed)
        self.batches = Batches(
            self.corpus,
            augmenter,
            batch=recipe.optim.batch,
            crops=_crop_samples(recipe),
            longest_repeat_s=recipe.data.longest_repeat_s,
            seed=recipe.seed,
            rank=self.team.rank,
            world=self.team.world,
        )
        self.total = self.batches.steps * recipe.optim.epochs
        torch.manual_seed(recipe.seed + 1)
        learner = Learner(recipe, self.network, self.batches.classes, teacher).to(self.team.device)
        self._start_head(learner.head)
        if teacher:
            teacher.to(self.team.device)
        if any(isinstance(m, nn.Conv2d) for m in self.network.modules()) and (
            self.team.device.type == "cuda" or recipe.optim.amp == "bf16"
        ):
            learner = learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.team.world > 1:
            parallel.share_batch_norm(learner.network)
        self.learner = learner
        self.step_module: nn.Module = DistributedDataParallel(learner) if self.team.world > 1 else learner
        self.optimiser = self._optimiser()

    def _networks(self) -> tuple[nn.Module, nn.Module | None]:
        recipe = self.recipe
        self.about: dict[str, Any] = {
            "network": dict(recipe.network),
            "front_end": recipe.front_end,
            "recipe_sha256": recipe.sha256(),
            "note": recipe.note,
            "plan": "",
        }
        if not recipe.quant.start:
            network = networks.build(**recipe.network)
        else:
            start = checkpoint.load(recipe.quant.start)
            if {**start.about["network"]} != {**_listed(recipe.network)}:
                raise BadCheckpoint(f"{start.path}: holds {start.about['network']}, the recipe asks {recipe.network}")
            network = start.network
            if recipe.quant.plan or recipe.quant.bits:
                self.about["plan"] = str(self._attach(network))
        teacher = checkpoint.load(recipe.loss.teacher).network if recipe.loss.teacher else None
        self.about["network"] = _listed(recipe.network)
        return network, teacher.requires_grad_(False) if teacher else None

    def _attach(self, network: nn.Module) -> Plan:
        shapes = quant.quantizable(network)
        asked = self.recipe.quant
        plan = Plan.parse(asked.plan) if asked.plan else Plan.of_bits(asked.bits, shapes)
        features = torch.randn(2, preset(self.recipe.front_end).mels, 64)
        quant.positive_gains(network, features)
        quant.attach(network, plan)
        return plan

    def _corpora(self) -> tuple[Corpus, Corpus | None, Corpus | None]:
        if not self.team.leads:
            torch.distributed.barrier()  # the leading process decodes first
        data, cache = self.recipe.data, self.folder.cache
        speech = load_corpus(data.manifest, self.data, cache, "decoding speech")
        noises = load_corpus(data.noise, self.data, cache, "decoding noise", data.noise_use) if data.noise else None
        rooms = load_corpus(data.rooms, self.data, cache, "decoding rooms", data.rooms_use) if data.rooms else None
        if self.team.leads and self.team.world > 1:
            torch.distributed.barrier()
        return speech, noises, rooms

    def _start_head(self, head: MarginSoftmax) -> None:
        """Take the classifier of the run that trained the float network, where it stands beside its model."""
        if not self.recipe.quant.start:
            return
        beside = Path(self.recipe.quant.start).with_name(HEAD)
        if beside.exists():
            head.load_state_dict(checkpoint.load_tensors(beside)[0])

    def _optimiser(self) -> torch.optim.Optimizer:
        optim = self.recipe.optim
        scales = {id(p) for p in (quant.scales(self.network) if self.about["plan"] else [])}
        named = [(n, p) for n, p in self.learner.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for _, p in named if id(p) in scales], "weight_decay": 0.0, "factor": optim.scale_rate},
            {
                "params": [p for _, p in named if id(p) not in scales and p.dim() < 2],
                "weight_decay": 0.0,
                "factor": 1.0,
            },
            {"params": [p for _, p in named if id(p) not in scales and p.dim() > 1], "factor": 1.0},
        ]
        groups = [group for group in groups if group["params"]]
        if optim.name == "sgd":
            return torch.optim.SGD(
                groups, lr=optim.rate, momentum=optim.momentum, nesterov=True, weight_decay=optim.weight_decay
            )
        return torch.optim.AdamW(groups, lr=optim.rate, weight_decay=optim.weight_decay)

    def _rate(self, step: int) -> float:
        optim = self.recipe.optim
        warm = max(1, round(optim.warm_up * self.total))
        if step < warm:
            return optim.rate * (step + 1) / warm
        progress = (step - warm) / max(1, self.total - warm)
        return optim.final_rate + (optim.rate - optim.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))

    def _epoch(self, epoch: int, first: int) -> float:
        self.step_module.train()
        saved, total, count = time.monotonic(), 0.0, 0
        start = epoch * self.batches.steps
        for offset, batch in enumerate(self._progress(epoch, first), start=first):
            began = time.monotonic()
            loss, correct = self._step(batch, start + offset)
            total, count = total + loss, count + 1
            if self.team.leads:
                self.folder.log(
                    step=start + offset,
                    epoch=epoch,
                    loss=round(loss, 6),
                    correct=round(correct, 4),
                    rate=self._rate(start + offset),
                    seconds=round(time.monotonic() - began, 3),
                )
            if time.monotonic() - saved > self.save_every_s:
                self._save(start + offset + 1)
                saved = time.monotonic()
        return total / max(1, count)

    def _progress(self, epoch: int, first: int) -> Iterator[Batch]:
        batches = self.batches.run(epoch, first)
        if not self.team.leads:
            yield from batches
            return
        label = f"epoch {epoch + 1}/{self.recipe.optim.epochs}"
        with click.progressbar(batches, length=self.batches.steps - first, label=label, file=sys.stderr) as bar:
            yield from bar

    def _step(self, batch: Batch, step: int) -> tuple[float, float]:
        device, optim = self.team.device, self.recipe.optim
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate(step) * group["factor"]
        waves = torch.from_numpy(batch.waves).to(device, non_blocking=True)
        labels = torch.from_numpy(batch.labels).to(device, non_blocking=True)
        loss_of = self.recipe.loss
        margin = margin_at(step / self.total, loss_of.margin, loss_of.margin_from, loss_of.margin_to)
        amp = torch.autocast(device.type, torch.bfloat16) if optim.amp == "bf16" else nullcontext()
        self.optimiser.zero_grad(set_to_none=True)
        with amp:
            loss, correct = self.step_module(waves, labels, margin)
        value, share = parallel.means(self.team, loss.detach(), correct)
        if not math.isfinite(value):
            raise BadInput(f"step {step}: the loss is {value}; lower [optim] rate. The last saved state is kept.")
        loss.backward()
        nn.utils.clip_grad_norm_(self.learner.parameters(), optim.clip)
        self.optimiser.step()
        if self.about["plan"]:
            quant.clamp_gains(self.network)
        return value, share

    def _names(self) -> dict[int, str]:
        return {id(p): name for name, p in self.learner.named_parameters()}

    def _save(self, step: int) -> None:
        """Write everything that training needs to go on at `step`."""
        if not self.team.leads:
            return
        tensors = {f"module.{name}": tensor for name, tensor in self.learner.state_dict().items()}
        names = self._names()
        for parameter, state in self.optimiser.state.items():
            for key, value in state.items():
                tensors[f"optim.{names[id(parameter)]}:{key}"] = torch.as_tensor(value)
        about = {**self.about, "step": step, "recipe": self.recipe.text()}
        checkpoint.save_tensors(self.folder.state, tensors, about)

    def _resume(self) -> int:
        """Load the saved state, if there is one; returns the step to go on with."""
        if not self.folder.state.exists():
            return 0
        tensors, about = checkpoint.load_tensors(self.folder.state)
        if about["recipe"] != self.recipe.text():
            raise BadCheckpoint(f"{self.folder.state}: was made by another recipe; name a new run folder")
        module = {n.removeprefix("module."): t for n, t in tensors.items() if n.startswith("module.")}
        self.learner.load_state_dict(module)
        parameters = dict(self.learner.named_parameters())
        for name, tensor in tensors.items():
            if name.startswith("optim."):
                owner, key = name.removeprefix("optim.").rsplit(":", 1)
                parameter = parameters[owner]
                like = tensor if key == "step" else torch.empty_like(parameter).copy_(tensor)
                self.optimiser.state[parameter][key] = like
        if self.team.leads:
            self.folder.rewind(about["step"])
        return int(about["step"])


def _crop_samples(recipe: Recipe) -> list[int]:
    front_end = preset(recipe.front_end)
    return [front_end.samples(max(1, round(seconds * RATE / front_end.hop))) for seconds in recipe.data.crop_s]


def _listed(network: Any) -> dict[str, Any]:
    """A network's description as JSON would give it back."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in network.items()}
