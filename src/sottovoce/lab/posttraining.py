"""Compression without labels: round on recordings, correct means, follow the float network; keep only what helps.

Every stage is judged by the mean of 1 - cosine to the float network's embeddings, on recordings that no stage has seen.
The amount of work is set by the network's multiply-adds and not by a clock, so that a seed always gives the same file.
"""

from __future__ import annotations

import copy
import difflib
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sottovoce import quant
from sottovoce.audio.features import FrontEndConfig
from sottovoce.errors import BadInput
from sottovoce.lab.losses import cosine_distance
from sottovoce.networks.frontend import FrontEnd
from sottovoce.quant.attach import LAYERS, stored
from sottovoce.quant.sequential import round_network

RATE = 16000
CROP_S = 2.0  # of a recording that weights are rounded on
HELD_S = 3.0  # of a recording that stages are judged on
HELD_SHARE = 5  # one recording in so many is kept apart
LEAST = 10  # recordings; fewer say too little
BATCH = 8  # crops in a step of following
PASS_MACS = 0.4e12  # multiply-adds of the rounding pass
FOLLOW_MACS = 2.5e12  # of following the float network
CROPS = (32, 256)  # least and most crops of the rounding pass
STEPS = (10, 400)  # least and most steps of following
RATE_WEIGHT = 1e-4  # of Adam, for latent weights, in units of their root mean square per layer
RATE_OTHER = 1e-3  # for gains, biases and norms
METHODS: dict[str, tuple[str, ...]] = {  # the stages of each
    "nearest": (),
    "correct": ("correct",),
    "round": ("round",),
    "follow": ("round", "follow"),
}
DEFAULT = "follow"

Wave = NDArray[np.float32]


@dataclass(frozen=True)
class Stage:
    """What one stage did: drift = mean of 1 - cosine on held-out recordings after it; dropped when it did not help."""

    name: str
    drift: float
    least_cosine: float
    kept: bool
    seconds: float


def check_method(method: str) -> None:
    """Raises BadInput for a method that is not in METHODS, naming the nearest."""
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, 1, cutoff=0.3)
        told = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(METHODS)}"
        raise BadInput(f"method {method!r} is unknown; {told}")


def held_out(waves: Sequence[Wave]) -> list[Wave]:
    """The recordings that stages are judged on: every HELD_SHARE-th, the first among them."""
    return list(waves[::HELD_SHARE])


def improve(
    network: nn.Module,
    teacher: nn.Module,
    front_end: FrontEndConfig,
    waves: Sequence[Wave],
    *,
    method: str = DEFAULT,
    seed: int = 0,
    each: Callable[[Stage], None] = lambda stage: None,
) -> list[Stage]:
    """Bring a network with a plan attached nearer to its float teacher by the stages of METHODS[method], in place.

    waves: unlabelled recordings; one in HELD_SHARE is kept apart to judge by, and with fewer than LEAST nothing is done
    beyond the nearest levels.   each: told every stage, while the network is as it stands after it.
    returns: the stages, `nearest` first. Raises BadInput.
    """
    check_method(method)
    if len(waves) < LEAST and METHODS[method]:
        print(f"warning: {len(waves)} recordings are too few to round on; give at least {LEAST}", file=sys.stderr)
        method = "nearest"
    began = time.monotonic()
    rng = np.random.default_rng([seed, 5])
    front = FrontEnd(front_end)
    held = [front(torch.from_numpy(crop(wave, HELD_S, rng)[None])) for wave in held_out(waves)]
    fit = [wave for index, wave in enumerate(waves) if index % HELD_SHARE]
    wanted = embeddings(teacher, held)
    stages = [_judged("nearest", embeddings(network, held), wanted, began)]
    each(stages[0])
    for name in METHODS[method]:
        began, before = time.monotonic(), copy.deepcopy(network.state_dict())
        STAGES[name](network, teacher, front, fit, seed)
        stage = _judged(name, embeddings(network, held), wanted, began)
        if stage.drift >= min(one.drift for one in stages if one.kept):
            network.load_state_dict(before)
            stage = replace(stage, kept=False)
        stages.append(stage)
        each(stage)
    return stages


def embeddings(network: nn.Module, features: Sequence[Tensor]) -> Tensor:
    """Unit embeddings (recordings, dim) of features (1, mels, frames) each."""
    with torch.no_grad():
        return nn.functional.normalize(torch.cat([network(one) for one in features]))


def multiply_adds(network: nn.Module, features: Tensor) -> int:
    """Multiply-adds of all convolutions and linear layers for one input (1, mels, frames)."""
    total = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        total += output.numel() // channels * stored(layer).numel()

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, LAYERS)]
    try:
        embeddings(network, [features])
    finally:
        for hook in hooks:
            hook.remove()
    return total


def _round(network: nn.Module, _: nn.Module, front: FrontEnd, waves: Sequence[Wave], seed: int, **how: bool) -> None:
    rng = np.random.default_rng([seed, 6])
    one = front(torch.from_numpy(crop(waves[0], CROP_S, rng)[None]))
    count = between(CROPS, PASS_MACS / (2 * multiply_adds(network, one)))
    features = crops(front, waves, count, rng)
    layers = sum(1 for _ in quant.coded(network))
    with click.progressbar(length=layers, label="rounding on recordings", file=sys.stderr) as bar:
        round_network(network, features, seed=seed, each=lambda _: bar.update(1), **how)


def _correct(network: nn.Module, teacher: nn.Module, front: FrontEnd, waves: Sequence[Wave], seed: int) -> None:
    _round(network, teacher, front, waves, seed, rounding=False)


def _follow(network: nn.Module, teacher: nn.Module, front: FrontEnd, waves: Sequence[Wave], seed: int) -> None:
    """Label-free steps of Adam on 1 - cosine to the float network: latent weights, gains, biases, gains of norms."""
    rng = np.random.default_rng([seed, 7])
    one = front(torch.from_numpy(crop(waves[0], CROP_S, rng)[None]))
    steps = between(STEPS, FOLLOW_MACS / (4 * BATCH * multiply_adds(network, one)))
    optimiser = torch.optim.Adam(_groups(network), betas=(0.9, 0.99))
    first = [group["lr"] for group in optimiser.param_groups]
    with click.progressbar(range(steps), label="following the float network", file=sys.stderr) as bar:
        for step in bar:
            features = crops(front, waves, BATCH, rng)
            with torch.no_grad():
                wanted = teacher(features)
            optimiser.zero_grad()
            cosine_distance(network(features), wanted).backward()
            for group, rate in zip(optimiser.param_groups, first, strict=True):
                group["lr"] = rate * min(1.0, (step + 1) / 10) * (1 + math.cos(math.pi * step / steps)) / 2
            optimiser.step()
            quant.clamp_gains(network)


def _groups(network: nn.Module) -> list[dict[str, object]]:
    """Parameter groups: each latent weight with a rate in its own unit, all else together."""
    latent = [p for name, p in network.named_parameters() if name.endswith("parametrizations.weight.original")]
    known = {id(p) for p in latent}
    other = [p for p in network.parameters() if id(p) not in known]
    by_layer = [{"params": [p], "lr": RATE_WEIGHT * float(p.detach().square().mean().sqrt()) / 0.05} for p in latent]
    return [*by_layer, {"params": other, "lr": RATE_OTHER}]


STAGES: dict[str, Callable[[nn.Module, nn.Module, FrontEnd, Sequence[Wave], int], None]] = {
    "correct": _correct,
    "round": _round,
    "follow": _follow,
}


def _judged(name: str, got: Tensor, wanted: Tensor, began: float) -> Stage:
    cosine = (got * wanted).sum(dim=1)
    seconds = round(time.monotonic() - began, 1)
    return Stage(name, float(1 - cosine.mean()), float(cosine.min()), True, seconds)


def between(bounds: tuple[int, int], count: float) -> int:
    """A whole number as near to `count` as the bounds let it be."""
    return min(max(int(count), bounds[0]), bounds[1])


def crops(front: FrontEnd, waves: Sequence[Wave], count: int, rng: np.random.Generator) -> Tensor:
    """Features (count, mels, frames) of random crops, every recording in its turn."""
    order = rng.permutation(len(waves))
    cut = [crop(waves[order[index % len(waves)]], CROP_S, rng) for index in range(count)]
    with torch.no_grad():
        return front(torch.from_numpy(np.stack(cut)))


def crop(wave: Wave, seconds: float, rng: np.random.Generator) -> Wave:
    """A random piece of a recording: (seconds · RATE,) samples, a short recording repeated."""
    length = int(seconds * RATE)
    start = int(rng.integers(max(1, len(wave) - length + 1)))
    return np.resize(wave[start : start + length], length)
