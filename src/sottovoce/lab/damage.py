"""What each format would do to each layer of a checkpoint: measured on recordings, kept in a file, resumed from it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import click
import numpy as np
import torch
from torch import Tensor, nn

from sottovoce import quant
from sottovoce.audio.features import FrontEndConfig
from sottovoce.audio.wav import read
from sottovoce.bits.plan import Spec
from sottovoce.errors import BadAudio, BadInput, BadList
from sottovoce.lab import checkpoint as checkpoints
from sottovoce.lab.compress import recordings
from sottovoce.lab.evaluate import measure, readable
from sottovoce.lab.lists import locate, read_manifest
from sottovoce.lab.losses import MarginSoftmax
from sottovoce.lab.run import write_text
from sottovoce.networks.frontend import FrontEnd
from sottovoce.quant import sensitivity

HEAD = "head.safetensors"  # the classifier that training leaves beside its model
RATE = 16000
CROP_S = 3.0
BATCH = 8  # crops that go through the network together
DRAWS = 32  # random vectors for a Hessian trace
MARGIN = 0.2  # of the training loss


class FloatNetwork(Protocol):
    """What damage is done to: a network in float, from a checkpoint or a published graph."""

    @property
    def path(self) -> Path: ...
    @property
    def network(self) -> nn.Module: ...
    @property
    def front_end(self) -> FrontEndConfig: ...


Values = dict[str, dict[str, float]]  # layer → text of a spec → damage


@dataclass(frozen=True)
class Ground:
    """What damage is measured on, and how; `settings` of it is what a kept table must agree with."""

    method: str
    data: Path | None = None  # folder or manifest of recordings
    trials: tuple[Path, ...] = ()
    audio: Path | None = None
    utterances: int = 32
    seed: int = 0

    def settings(self, checkpoint: Path) -> dict[str, Any]:
        """Everything the values depend on, as plain values: files by name, checkpoint and trial lists by content."""
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        contents = {str(path): _sha256(path) for path in (checkpoint, *self.trials)}
        return {**plain, "trials": list(map(str, self.trials)), "sha256": contents, "crop_s": CROP_S, "draws": DRAWS}


@dataclass
class Damage:
    """Damage by layer and spec, and the rank of each layer where the method has one; kept in a JSON file."""

    settings: dict[str, Any]
    values: Values = field(default_factory=dict)
    rank: dict[str, float] = field(default_factory=dict)

    @classmethod
    def kept(cls, path: Path | None, settings: dict[str, Any]) -> Damage:
        """What an earlier call left in `path` under the same settings; empty otherwise, also for a damaged file."""
        try:
            found = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
            if found.get("settings") == settings:
                values = {layer: {spec: float(v) for spec, v in row.items()} for layer, row in found["values"].items()}
                return cls(settings, values, {layer: float(value) for layer, value in found["rank"].items()})
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            pass
        return cls(settings)

    def keep(self, path: Path | None) -> None:
        """Write everything known so far, whole or not at all."""
        if path is not None:
            write_text(path, json.dumps(asdict(self), indent=1))


def measure_damage(loaded: FloatNetwork, specs: Sequence[Spec], ground: Ground, cache: Path | None) -> Damage:
    """The damage of every layer and spec by one of METHODS; what `cache` holds already is not measured again.

    The network's batch-norm gains must be positive already, as in compression. Raises BadInput, BadList.
    """
    damage = Damage.kept(cache, ground.settings(loaded.path))
    layers = list(quant.quantizable(loaded.network))
    wanted = {(layer, str(spec)) for layer in layers for spec in specs}
    if wanted <= {(layer, spec) for layer, row in damage.values.items() for spec in row}:
        return damage
    METHODS[ground.method](loaded, specs, ground, damage, lambda: damage.keep(cache))
    damage.keep(cache)
    return damage


# ---- methods


def by_weights(
    loaded: FloatNetwork, specs: Sequence[Spec], ground: Ground, damage: Damage, keep: Callable[[], None]
) -> None:
    """The squared error of the weights alone."""
    _multiply(loaded.network, specs, damage, dict.fromkeys(quant.quantizable(loaded.network), 1.0))


def by_hessian(
    loaded: FloatNetwork, specs: Sequence[Spec], ground: Ground, damage: Damage, keep: Callable[[], None]
) -> None:
    """Mean Hessian trace of 1 − cosine to the float embeddings, times squared error (HAWQ-V2, without labels)."""
    batches = cycle(_batches(loaded, ground))
    with _bar(DRAWS, "Hessian traces") as tick:
        traces = sensitivity.embedding_traces(
            loaded.network, lambda network: tick(network(next(batches))), draws=DRAWS, seed=ground.seed
        )
    damage.rank = {layer: trace.mean for layer, trace in traces.items()}
    _multiply(loaded.network, specs, damage, damage.rank)


def by_training_loss(
    loaded: FloatNetwork, specs: Sequence[Spec], ground: Ground, damage: Damage, keep: Callable[[], None]
) -> None:
    """Total Hessian trace of the training loss, times squared error (arXiv 2406.05359, our reading)."""
    loss = training_loss(loaded, ground)
    with _bar(DRAWS, "Hessian traces") as tick:
        traces = sensitivity.hessian_traces(
            loaded.network, lambda network: tick(loss(network)), draws=DRAWS, seed=ground.seed
        )
    damage.rank = {layer: trace.total for layer, trace in traces.items()}
    _multiply(loaded.network, specs, damage, damage.rank)


def by_drift(
    loaded: FloatNetwork, specs: Sequence[Spec], ground: Ground, damage: Damage, keep: Callable[[], None]
) -> None:
    """Mean of 1 − cosine to the float embeddings, measured with one layer quantized at a time."""
    _one_at_a_time(
        loaded.network, specs, damage, keep, sensitivity.drift_from(loaded.network, _batches(loaded, ground))
    )


def by_eer(
    loaded: FloatNetwork, specs: Sequence[Spec], ground: Ground, damage: Damage, keep: Callable[[], None]
) -> None:
    """What one quantized layer at a time adds to the mean EER of trial lists; may be negative."""
    rate = trial_eer(loaded, ground)
    with sensitivity.evaluating(loaded.network), torch.no_grad():
        base = rate(loaded.network)
    _one_at_a_time(loaded.network, specs, damage, keep, lambda network: rate(network) - base)


Method = Callable[[FloatNetwork, Sequence[Spec], Ground, Damage, Callable[[], None]], None]
METHODS: dict[str, Method] = {
    "drift": by_drift,
    "hessian": by_hessian,
    "training-loss": by_training_loss,
    "weights": by_weights,
    "eer": by_eer,
}


def _multiply(network: nn.Module, specs: Sequence[Spec], damage: Damage, factors: dict[str, float]) -> None:
    for layer, errors in sensitivity.squared_errors(network, specs).items():
        row = damage.values.setdefault(layer, {})
        row.update({str(spec): factors[layer] * error for spec, error in errors.items()})


def _one_at_a_time(
    network: nn.Module,
    specs: Sequence[Spec],
    damage: Damage,
    keep: Callable[[], None],
    rate: sensitivity.Measure,
) -> None:
    known = {(layer, Spec.parse(spec)) for layer, row in damage.values.items() for spec in row}
    pairs = [(layer, spec) for layer in quant.quantizable(network) for spec in specs]
    left = [pair for pair in pairs if pair not in known]
    with click.progressbar(
        sensitivity.one_at_a_time(network, specs, rate, known),
        length=len(left),
        label="layers × formats",
        file=sys.stderr,
    ) as bar:
        for layer, spec, value in bar:
            damage.values.setdefault(layer, {})[str(spec)] = value
            keep()


@contextmanager
def _bar(length: int, label: str) -> Iterator[Callable[[Tensor], Tensor]]:
    """A progress bar that a value ticks by going through it."""
    with click.progressbar(length=length, label=label, file=sys.stderr) as bar:

        def tick(value: Tensor) -> Tensor:
            bar.update(1)
            return value

        yield tick


# ---- what it is measured with


def training_loss(loaded: FloatNetwork, ground: Ground) -> Callable[[nn.Module], Tensor]:
    """The AAM-softmax loss on one batch a call, with the classifier that stands beside the checkpoint.

    Raises BadInput when there is none, or when its classes are not those of the manifest: it must be the training one.
    """
    beside = loaded.path.with_name(HEAD)
    if not beside.is_file():
        raise BadInput(f"{beside}: no such classifier; the training loss needs it, --sensitivity hessian does not")
    weight = checkpoints.load_tensors(beside)[0]["weight"]
    if ground.data is None or not ground.data.is_file():
        raise BadInput("the training loss needs the manifest that the network was trained on as --data")
    rows = read_manifest(ground.data)
    names = sorted({row.speaker for row in rows})
    if len(weight) % len(names):
        raise BadInput(
            f"{beside}: has {len(weight)} classes, {ground.data} has {len(names)} speakers: not its manifest"
        )
    each = len(weight) // len(names)  # a class for every speed of a speaker; the first is the speed as recorded
    classes = {ground.data.parent / row.path: each * names.index(row.speaker) for row in rows}
    crops, paths = read_crops(ground, [*classes], loaded.front_end)
    labels = torch.tensor([classes[path] for path in paths])
    batches = cycle(list(zip(crops.split(BATCH), labels.split(BATCH), strict=True)))
    head = MarginSoftmax(weight.shape[1], len(weight))
    head.load_state_dict({"weight": weight})
    head.requires_grad_(False)

    def loss(network: nn.Module) -> Tensor:
        features, of = next(batches)
        return head(network(features), of, MARGIN)[0]

    return loss


def trial_eer(loaded: FloatNetwork, ground: Ground) -> sensitivity.Measure:
    """The mean EER of the trial lists with embeddings of a network in torch; recordings are read once.

    Raises BadList when a list cannot be measured, BadInput when there is none.
    """
    if not ground.trials or ground.audio is None:
        raise BadInput("damage by EER needs trial lists and the root folder of their audio: --trials, --audio")
    lists = [readable(path) for path in ground.trials]
    front_end, root = loaded.front_end, ground.audio
    names = list(dict.fromkeys(name for trials in lists for name in trials.utterances))
    features = {name: _features(front_end, read(locate(root, name), RATE)) for name in names}

    def rate(network: nn.Module) -> float:
        known = {name: nn.functional.normalize(network(one))[0].numpy() for name, one in features.items()}
        return float(np.mean([measure(trials, known, draws=0)["eer"] for trials in lists]))

    return rate


def _batches(loaded: FloatNetwork, ground: Ground) -> list[Tensor]:
    """Features of unlabelled crops, (batch, mels, frames) each."""
    if ground.data is None:
        raise BadInput(f"--sensitivity {ground.method} looks at recordings: give --data, or use 'weights'")
    return list(read_crops(ground, recordings(ground.data), loaded.front_end)[0].split(BATCH))


def read_crops(ground: Ground, paths: Sequence[Path], front_end: FrontEndConfig) -> tuple[Tensor, list[Path]]:
    """Features of crops from recordings drawn by seed, (utterances, mels, frames), and the paths they are from.

    A recording shorter than a crop is repeated; unusable ones are reported and passed over. Raises BadList.
    """
    rng, length = np.random.default_rng([ground.seed, 5]), int(CROP_S * RATE)
    waves, used = [], []
    for index in rng.permutation(len(paths)):
        if len(waves) == ground.utterances:
            break
        try:
            wave = read(paths[index], RATE)
        except BadAudio as error:
            print(f"passed over: {error}", file=sys.stderr)
            continue
        start = int(rng.integers(max(1, len(wave) - length + 1)))
        waves.append(np.resize(wave[start : start + length], length))
        used.append(paths[index])
    if not waves:
        raise BadList(f"{ground.data}: none of its {len(paths)} recordings can be used")
    return torch.cat([_features(front_end, wave) for wave in waves]), used


@torch.no_grad()
def _features(front_end: FrontEndConfig, wave: np.ndarray) -> Tensor:
    """(samples,) → (1, mels, frames)."""
    return FrontEnd(front_end)(torch.from_numpy(wave)[None])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
