"""What a plan does to each layer: to its weights, and to the activations behind it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sottovoce import quant
from sottovoce.bits.plan import Plan
from sottovoce.quant.attach import stored
from sottovoce.quant.quantizers import Quantized
from sottovoce.quant.sensitivity import quantized

BARS, WIDEST = 60, 1.5  # of a histogram of weights, and its end in units of the outermost level
MOST_LEVELS = 16  # more are not listed: a figure cannot tell them apart

Figures = dict[str, Any]


@torch.no_grad()
def weight_figures(network: nn.Module, plan: Plan) -> dict[str, Figures]:
    """Weights of each layer that the plan quantizes, and their distance to what is stored: layer → figures.

    kurtosis: fourth standardised moment, 3 for a normal distribution.   relative_error: |W − Ŵ| / |W|, and cosine of W
    and Ŵ, the distortions that arXiv 2606.08078 most likely uses (our reading).   squared_error: |W − Ŵ|².
    mean_error: mean |W − Ŵ| in units of the outermost level, as weights are drawn in arXiv 2210.17326, Figure 3 (our
    reading).   histogram: weights in the same unit, each by its own channel's scale where it has one, with the levels.
    The network is given back as it was. Raises BadPlan.
    """
    with quantized(network, plan):
        return {name: _figures(stored(network.get_submodule(name)), q) for name, q in quant.attached(network).items()}


def _figures(weight: Tensor, layer: Quantized) -> Figures:
    _, levels, scale = layer.encode(weight)
    w, seen = (x.double().reshape(len(weight), -1) for x in (weight, layer(weight)))
    levels = levels.double()
    outermost = levels.abs().amax(dim=-1)
    clip = (outermost * scale.double()).reshape(-1, 1)
    error, centred = w - seen, w - w.mean()
    return {
        "spec": str(layer.spec),
        "bits": layer.spec.bits,
        "kurtosis": float((centred**4).mean() / (centred**2).mean().clamp_min(1e-300) ** 2),
        "relative_error": float(error.norm() / w.norm().clamp_min(1e-300)),
        "cosine": float((w * seen).sum() / (w.norm() * seen.norm()).clamp_min(1e-300)),
        "squared_error": float(error.square().sum()),
        "mean_error": float((error.abs() / clip).mean()),
        "histogram": _histogram(w / clip, levels / outermost[..., None]),
    }


def _histogram(scaled: Tensor, levels: Tensor) -> Figures:
    """Counts over -WIDEST..WIDEST, how many weights lie outside, and the levels (means over codebooks; not many)."""
    values = scaled.numpy().reshape(-1)
    counts, _ = np.histogram(values, BARS, (-WIDEST, WIDEST))
    shown = levels.mean(dim=0) if levels.dim() == 2 else levels
    return {
        "unit": "the outermost level",
        "from": -WIDEST,
        "to": WIDEST,
        "counts": counts.tolist(),
        "outside": int(len(values) - counts.sum()),
        "levels": shown.tolist() if len(shown) <= MOST_LEVELS else None,
    }


# ---- activations


@torch.no_grad()
def activation_drift(
    network: nn.Module, plan: Plan, features: Sequence[Tensor], each: Callable[[], None] = lambda: None
) -> dict[str, dict[str, Figures]]:
    """How far the output of each convolution and linear layer is from that of the float network.

    features: inputs (1, mels, frames); figures are means over them.   each: told of every one that is done.
    returns: layer → {propagated, local}, each {relative_error |Y − Ŷ| / |Y|, cosine}: with the whole plan on the
    network, and with this layer alone quantized, on float inputs. Outputs are taken before norms and activations. A
    layer that is used twice counts with both outputs.
    """
    twin = copy.deepcopy(network)
    quant.attach(twin, plan)
    quant.detach(twin)
    names = list(quant.quantizable(network))
    found: dict[str, dict[str, list[tuple[float, float]]]] = {n: {"propagated": [], "local": []} for n in names}
    for one in features:
        with _recorded(network, names) as float_calls:
            network.eval()(one)
        with _recorded(twin, names) as seen_calls:
            twin.eval()(one)
        for name in names:
            layer = twin.get_submodule(name)
            for (x, wanted), (_, got) in zip(float_calls[name], seen_calls[name], strict=True):
                found[name]["propagated"].append(_distance(wanted, got))
                found[name]["local"].append(_distance(wanted, layer.forward(x)))
        each()
    return {name: {kind: _mean(pairs) for kind, pairs in kinds.items()} for name, kinds in found.items()}


@contextmanager
def _recorded(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Input and output of every call of these layers, by name, for as long as the block lasts."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: calls[name].append((inputs[0], output))
        )
        for name in names
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _distance(wanted: Tensor, got: Tensor) -> tuple[float, float]:
    """(relative error, cosine) of two outputs, each as one long vector."""
    y, seen = wanted.double().flatten(), got.double().flatten()
    cosine = (y @ seen) / (y.norm() * seen.norm()).clamp_min(1e-300)
    return float((y - seen).norm() / y.norm().clamp_min(1e-300)), float(cosine)


def _mean(pairs: Sequence[tuple[float, float]]) -> Figures:
    errors, cosines = zip(*pairs, strict=True)
    return {"relative_error": float(np.mean(errors)), "cosine": float(np.mean(cosines))}
