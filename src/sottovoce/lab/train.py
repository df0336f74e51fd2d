"""One training loop for float and quantized training: a plan attached before it starts is the only difference."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sottovoce import networks, quant
from sottovoce.audio.features import preset
from sottovoce.bits.plan import Plan
from sottovoce.errors import BadCheckpoint, BadInput, BadRecipe
from sottovoce.lab import checkpoint, parallel
from sottovoce.lab.augment import Augmenter
from sottovoce.lab.average import Average
from sottovoce.lab.data import RATE, Batches, Corpus, load_corpus
from sottovoce.lab.feed import Fed, Feed, casting, precision
from sottovoce.lab.learner import Learner, optimiser, pack, unpack
from sottovoce.lab.losses import MarginSoftmax, margin_at, turn
from sottovoce.lab.recipe import Recipe, read_recipe
from sottovoce.lab.run import Run
from sottovoce.lab.schedule import Stage, ramp, rate, stages
from sottovoce.networks.frontend import FrontEnd

HEAD = "head.safetensors"
NORM = nn.modules.batchnorm._BatchNorm


def train(
    recipe_path: str | Path,
    run: str | Path,
    data: str | Path = ".",
    *,
    cache: str | Path | None = None,
    save_every_s: float = 120.0,
) -> dict[str, Any]:
    """Train as a recipe says, in a run folder; goes on where a killed run stopped.

    data: folder that the recipe's paths are relative to   cache: folder of decoded recordings and kept batches, which
    several runs may share; the run's own where none is named. Returns a report with steps, loss, seconds and the path
    of the result. Raises BadRecipe, BadPlan, BadList, BadCheckpoint before anything long starts.
    """
    recipe = read_recipe(recipe_path)
    team = parallel.join()
    try:
        folder = Run(run)
        return Trainer(recipe, folder, Path(data), team, Path(cache or folder.cache), save_every_s).run()
    finally:
        parallel.leave()


@dataclass
class Trainer:
    """State and steps of one training."""

    recipe: Recipe
    folder: Run
    data: Path
    team: parallel.Team
    cache: Path
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
            stage = next(stage for stage in reversed(self.stages) if stage.first <= epoch)
            if not first or stage is not self.stage:
                self._enter(stage)
            loss = self._epoch(epoch, max(0, first - epoch * self.batches.steps))
            if self.recipe.quant.refresh == "epoch":
                quant.refresh(self.network)
            first = (epoch + 1) * self.batches.steps
            self._save(first)
        self._finish()
        return {
            "model": str(self.folder.model),
            "recipe_sha256": self.recipe.sha256(),
            "steps": self.total,
            "stages": [str(stage) for stage in self.stages],
            "classes": self.batches.classes,
            "amp": self.amp,
            "loss": loss,
            "seconds": round(time.monotonic() - began, 1),
            "excluded": self.corpus.excluded,
        }

    def _prepare(self) -> None:
        recipe = self.recipe
        self.amp = precision(recipe.optim.amp, self.team.device)
        if self.amp != recipe.optim.amp and self.team.leads:
            print("this processor has no bf16 instructions: training in float32, which is faster", file=sys.stderr)
        self.network, teacher = self._networks()
        self.stages = self._stages()
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
            clean=teacher is not None and recipe.loss.teacher_hears == "clean",
        )
        self.total = self.batches.steps * recipe.optim.epochs
        self.feed = Feed(recipe, self.batches, [self.corpus, noises, rooms], teacher, self.team, self.cache, self.amp)
        torch.manual_seed(recipe.seed + 1)
        learner = Learner(recipe, self.network, self.batches.classes).to(self.team.device)
        self._start_head(learner.head)
        if any(isinstance(m, nn.Conv2d) for m in self.network.modules()) and (
            self.team.device.type == "cuda" or self.amp == "bf16"
        ):
            learner = learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.team.world > 1:
            parallel.share_batch_norm(learner.network)
        self.learner = learner

    def _networks(self) -> tuple[nn.Module, nn.Module | None]:
        """The network to train, in float, and the teacher."""
        recipe = self.recipe
        self.about: dict[str, Any] = {
            "network": _listed(recipe.network),
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
        _check_rows(network, recipe.front_end)
        return network, self._teacher(int(network.dim)) if recipe.loss.teacher else None  # type: ignore[arg-type]

    def _teacher(self, dim: int) -> nn.Module:
        """The network of any architecture that is followed; it must see the same features and say as much."""
        loaded = checkpoint.load(self.recipe.loss.teacher)
        seen, said = loaded.about["front_end"], int(loaded.network.dim)  # type: ignore[arg-type]
        if seen != self.recipe.front_end:
            raise BadCheckpoint(
                f"{loaded.path}: the teacher has front end {seen!r}, the recipe {self.recipe.front_end!r}; "
                f"take a teacher with that front end or set front_end = {seen!r}"
            )
        if said != dim:
            raise BadCheckpoint(f"{loaded.path}: the teacher's embeddings have {said} numbers, the network's {dim}")
        return loaded.network.requires_grad_(False)

    def _stages(self) -> list[Stage]:
        """What is trained in turn; makes the gains of a network that gets a plan positive."""
        asked, shapes, plan = self.recipe.quant, quant.quantizable(self.network), None
        if asked.plan or asked.bits:
            plan = Plan.parse(asked.plan) if asked.plan else Plan.of_bits(asked.bits, shapes)
        found = stages(asked, plan, shapes, self.recipe.optim.epochs)
        if plan is not None:
            waves = torch.randn(2, preset(self.recipe.front_end).samples(64))
            quant.positive_gains(self.network, FrontEnd(self.recipe.front_end)(waves))
        if self.team.leads:
            for index, stage in enumerate(found):
                print(f"stage {index + 1} of {len(found)}: {stage}", file=sys.stderr)
        return found

    def _corpora(self) -> tuple[Corpus, Corpus | None, Corpus | None]:
        if not self.team.leads:
            torch.distributed.barrier()  # the leading process decodes first
        data, cache = self.recipe.data, self.cache
        speech = load_corpus(data.manifest, self.data, cache, "decoding speech")
        noises = load_corpus(data.noise, self.data, cache, "decoding noise", data.noise_use) if data.noise else None
        rooms = load_corpus(data.rooms, self.data, cache, "decoding rooms", data.rooms_use) if data.rooms else None
        if self.team.leads and self.team.world > 1:
            torch.distributed.barrier()
        return speech, noises, rooms

    def _start_head(self, head: MarginSoftmax | None) -> None:
        """Take the classifier of the run that trained the float network, where it stands beside its model."""
        beside = Path(self.recipe.quant.start).with_name(HEAD) if self.recipe.quant.start else None
        if head is None or beside is None or not beside.exists():
            return
        weight = checkpoint.load_tensors(beside)[0]["weight"]
        if not self.recipe.augment.speeds and len(weight) % len(head.weight) == 0:
            weight = weight[:: len(weight) // len(head.weight)]  # of recordings at their own speed
        if weight.shape != head.weight.shape:
            raise BadCheckpoint(
                f"{beside}: a classifier of {tuple(weight.shape)}, the recipe needs {tuple(head.weight.shape)}; train "
                "with the manifest and [augment] speeds it was made with, or with speeds = []"
            )
        head.load_state_dict({"weight": weight})

    def _enter(self, stage: Stage) -> None:
        """Begin a stage: its plan on the network, weights rounded, a fresh optimiser and average, norms estimated."""
        if not stage.first:
            self._turn_teacher()
        self._attach(stage, fresh=True)
        self._estimate_norms(stage.first)

    @torch.no_grad()
    def _turn_teacher(self) -> None:
        """Turn the embeddings of a teacher with a space of its own onto those of the float network."""
        count = min(self.recipe.loss.teacher_turned, self.batches.steps)
        if not count:
            return
        assert self.learner.turn is not None
        total = torch.zeros_like(self.learner.turn, dtype=torch.float64)
        self.network.eval()
        for fed in islice(self.feed.run(0), count):
            assert fed.followed is not None
            own = nn.functional.normalize(self.network(fed.features).double())
            total += nn.functional.normalize(fed.followed.double()).T @ own
        self.learner.turn.copy_(turn(parallel.total(self.team, total)))

    def _attach(self, stage: Stage, fresh: bool = False) -> None:
        self.stage = stage
        self.about["plan"] = stage.plan
        if stage.plan:
            quant.change(self.network, Plan.parse(stage.plan))
            if fresh:
                self._round(stage.first)
        alone = self.team.world == 1
        self.step_module: nn.Module = self.learner if alone else DistributedDataParallel(self.learner)
        self.quantizer_parameters = [*quant.scales(self.network), *quant.codebooks(self.network)]
        self.optimiser = optimiser(self.recipe.optim, self.learner, self.quantizer_parameters)
        decay = self.recipe.optim.average
        self.average = Average(self.network, decay) if decay else None

    def _round(self, epoch: int) -> None:
        """Weights rounded on the first batches of an epoch so that layers keep their outputs, a start nearer to the
        float network than nearest levels. The leading process rounds on its share of the batches; others follow it."""
        count = min(self.recipe.quant.round_batches, self.batches.steps)
        if not count:
            return
        features = [fed.features for fed in islice(self.feed.run(epoch), count)]
        frames = min(one.shape[-1] for one in features)
        self.network.eval()
        quant.round_network(self.network, torch.cat([one[..., :frames] for one in features]), seed=self.recipe.seed)

    @torch.no_grad()
    def _estimate_norms(self, epoch: int) -> None:
        """Batch norm statistics as plain means over the first batches of an epoch (arXiv 2606.08078: our reading)."""
        count = min(self.recipe.quant.norm_batches, self.batches.steps)
        norms = {module: module.momentum for module in self.network.modules() if isinstance(module, NORM)}
        if not count or not norms:
            return
        self.network.train()
        for index, fed in enumerate(islice(self.feed.run(epoch), count)):
            for norm in norms:
                norm.momentum = 1.0 / (index + 1)
            with casting(self.team.device, self.amp):
                self.network(fed.features)
        for norm, momentum in norms.items():
            norm.momentum = momentum

    def _finish(self) -> None:
        """Write the model: the average where there is one, batch norm estimated."""
        quant.hold(self.network, False)
        if self.average is not None:
            self.average.put_into(self.network)
        self._estimate_norms(self.recipe.optim.epochs - 1)
        if not self.team.leads:
            return
        if self.learner.head is not None:
            about = {"head": self.recipe.loss.kind}
            checkpoint.save_tensors(self.folder.folder / HEAD, self.learner.head.state_dict(), about)
        checkpoint.save(self.folder.model, self.network, self.about)

    def _epoch(self, epoch: int, first: int) -> float:
        self.step_module.train()
        if self.recipe.quant.assign == "epoch" and not first:
            quant.hold(self.network)
        saved, total, count = time.monotonic(), 0.0, 0
        start = epoch * self.batches.steps
        for offset, fed in enumerate(self._progress(epoch, first), start=first):
            began = time.monotonic()
            loss, correct = self._step(fed, start + offset)
            total, count = total + loss, count + 1
            if self.team.leads:
                self.folder.log(
                    step=start + offset,
                    epoch=epoch,
                    stage=self.stages.index(self.stage) + 1,
                    loss=round(loss, 6),
                    correct=round(correct, 4),
                    rate=self.optimiser.param_groups[-1]["lr"],
                    amp=self.amp,
                    seconds=round(time.monotonic() - began, 3),
                )
            if time.monotonic() - saved > self.save_every_s:
                self._save(start + offset + 1)
                saved = time.monotonic()
        return total / max(1, count)

    def _progress(self, epoch: int, first: int) -> Iterator[Fed]:
        batches = self.feed.run(epoch, first)
        if not self.team.leads:
            yield from batches
            return
        label = f"epoch {epoch + 1}/{self.recipe.optim.epochs}"
        if len(self.stages) > 1:
            label += f", stage {self.stages.index(self.stage) + 1}/{len(self.stages)}"
        with click.progressbar(batches, length=self.batches.steps - first, label=label, file=sys.stderr) as bar:
            yield from bar

    def _step(self, fed: Fed, step: int) -> tuple[float, float]:
        optim, loss_of = self.recipe.optim, self.recipe.loss
        done = step - self.stage.first * self.batches.steps
        steps = self.stage.epochs * self.batches.steps
        now = rate(optim, done, steps, self.batches.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = now * group["factor"]
        if done / steps >= optim.freeze_norms:
            for norm in (module for module in self.network.modules() if isinstance(module, NORM)):
                norm.eval()
        margin = margin_at(step / self.total, loss_of.margin, loss_of.margin_from, loss_of.margin_to)
        self.optimiser.zero_grad(set_to_none=True)
        with casting(self.team.device, self.amp):
            loss, correct = self.step_module(fed, margin, loss_of.damping * ramp(done / steps))
        value, share = parallel.means(self.team, loss.detach(), correct)
        if not math.isfinite(value):
            raise BadInput(f"step {step}: the loss is {value}; lower [optim] rate. The last saved state is kept.")
        loss.backward()
        self._bound_gradients(done // self.batches.steps)
        self.optimiser.step()
        if self.about["plan"]:
            quant.clamp_gains(self.network)
        if self.average is not None:
            self.average.update(self.network, done)
        return value, share

    def _bound_gradients(self, epoch: int) -> None:
        """Clip gradients; in the first epochs of a stage, where the recipe says so, quantizers rest."""
        asked = self.recipe.quant
        if epoch < asked.gains_from:
            for parameter in self.quantizer_parameters:
                parameter.grad = None
        if asked.gain_clip:
            nn.utils.clip_grad_norm_(self.quantizer_parameters, asked.gain_clip)
        nn.utils.clip_grad_norm_(self.learner.parameters(), self.recipe.optim.clip)

    def _save(self, step: int) -> None:
        """Write everything that training needs to go on at `step`."""
        if not self.team.leads:
            return
        tensors = pack(self.learner, self.optimiser, self.average)
        stage = self.stages.index(self.stage)
        about = {**self.about, "step": step, "stage": stage, "recipe": self.recipe.text()}
        checkpoint.save_tensors(self.folder.state, tensors, about)

    def _resume(self) -> int:
        """Load the saved state, if there is one; returns the step to go on with."""
        if not self.folder.state.exists():
            if self.team.leads:
                self.folder.rewind(0)  # a run killed before its first saved state has left lines
            return 0
        tensors, about = checkpoint.load_tensors(self.folder.state)
        if not self.recipe.same(about["recipe"]):
            raise BadCheckpoint(f"{self.folder.state}: was made by another recipe; name a new run folder")
        self._attach(self.stages[about.get("stage", 0)])
        if self.recipe.quant.assign == "epoch":
            quant.hold(self.network)
        unpack(tensors, self.learner, self.optimiser, self.average)
        if self.team.leads:
            self.folder.rewind(about["step"])
        return int(about["step"])


def _crop_samples(recipe: Recipe) -> list[int]:
    front_end = preset(recipe.front_end)
    return [front_end.samples(max(1, round(seconds * RATE / front_end.hop))) for seconds in recipe.data.crop_s]


def _check_rows(network: nn.Module, front_end: str) -> None:
    """Raises BadRecipe when a network does not read what the front end makes of a frame."""
    reads, makes = int(network.config.mels), preset(front_end).rows  # type: ignore[union-attr, arg-type]
    if reads != makes:
        raise BadRecipe(
            f"[network] mels: the network reads {reads} rows a frame, front_end {front_end!r} makes {makes}; "
            f"set mels = {makes}, or the front end that the network is for"
        )


def _listed(network: Any) -> dict[str, Any]:
    """A network's description as JSON would give it back."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in network.items()}
