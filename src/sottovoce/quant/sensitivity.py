"""How much harm a format does to a layer: Hessian traces, weight errors, and whatever is measured one layer at a time.

A network is lent: it is given back with its own weights, modes and gradient flags, also when something fails.
Layers are those of `attach.quantizable`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sottovoce.bits.plan import Plan, Spec
from sottovoce.errors import BadInput
from sottovoce.quant.attach import attach, detach, quantizable, stored
from sottovoce.quant.quantizers import Quantized

DRAWS = 100  # most random vectors (PyHessian)
TOLERANCE = 1e-3  # stop when no running mean changes by more than this share of itself (PyHessian)
LEAST_DRAWS = 4  # a chance agreement of two or three draws is not a mean that has settled

Measure = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Trace:
    """Trace of the part of a Hessian that belongs to one layer's weight."""

    total: float
    mean: float  # total / number of weights
    draws: int  # random vectors it is a mean over


# ---- Hessian traces


def hessian_traces(
    network: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    *,
    draws: int = DRAWS,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> dict[str, Trace]:
    """Hutchinson's estimate of every layer's Hessian trace: mean of vᵀHv over Rademacher vectors v.

    loss: network → scalar; called once a draw, so it may take another batch each time. Batch norm uses its running
    statistics. One vector goes through all layers at once: terms between layers vanish in the mean, and a draw costs
    one double backward pass whatever the number of layers. May be negative. HAWQ-V2 (arXiv 1911.03852), PyHessian.
    """
    generator = torch.Generator().manual_seed(seed)

    def sample(weights: list[Tensor]) -> list[Tensor]:
        first = torch.autograd.grad(
            loss(network), weights, create_graph=True, allow_unused=True, materialize_grads=True
        )
        vectors = [_signs(weight, generator) for weight in weights]
        second = torch.autograd.grad(first, weights, vectors, allow_unused=True, materialize_grads=True)
        return [(vector * column).sum() for vector, column in zip(vectors, second, strict=True)]

    return _traces(network, sample, draws, tolerance)


def embedding_traces(
    network: nn.Module,
    embed: Callable[[nn.Module], Tensor],
    *,
    draws: int = DRAWS,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> dict[str, Trace]:
    """Hessian traces of the mean of 1 − cosine to the embeddings of the weights as they are; needs no labels.

    At those weights 1 − cosine = |u − u₀|² / 2 is at its minimum, so its Hessian is exactly the mean of JᵀJ, J the
    Jacobian of a unit embedding u: the Gauss-Newton term, positive semidefinite. Its trace is |J|², estimated as
    |∇ Σ z·u|² with Rademacher z: one single backward pass a draw, and never negative.
    embed: network → embeddings (recordings, dim), of any length; called once a draw.
    """
    generator = torch.Generator().manual_seed(seed)

    def sample(weights: list[Tensor]) -> list[Tensor]:
        unit = nn.functional.normalize(embed(network))
        seen = (unit * _signs(unit, generator)).sum()
        slopes = torch.autograd.grad(seen, weights, allow_unused=True, materialize_grads=True)
        return [slope.square().sum() / len(unit) for slope in slopes]

    return _traces(network, sample, draws, tolerance)


def _traces(
    network: nn.Module, sample: Callable[[list[Tensor]], list[Tensor]], draws: int, tolerance: float
) -> dict[str, Trace]:
    """Running means of a sample of every layer's trace, until none of them moves."""
    refuse_attached(network)
    layers = {name: stored(network.get_submodule(name)) for name in quantizable(network)}
    weights, means, done = list(layers.values()), torch.zeros(len(layers), dtype=torch.float64), 0
    with evaluating(network), _differentiable(weights), torch.enable_grad():
        for done in range(1, max(1, draws) + 1):
            drawn = torch.stack([value.detach().double().cpu() for value in sample(weights)])
            change = (drawn - means) / done
            means = means + change
            if done >= LEAST_DRAWS and bool((change.abs() <= tolerance * means.abs()).all()):
                break
    if not bool(torch.isfinite(means).all()):
        raise BadInput("a Hessian trace is not finite; the loss or the embeddings hold NaN or infinite values")
    totals = dict(zip(layers, means.tolist(), strict=True))
    return {name: Trace(total, total / layers[name].numel(), done) for name, total in totals.items()}


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """A Rademacher vector, +1 and -1 alike often, in the shape of `like`."""
    drawn = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return (2 * drawn - 1).to(like)


# ---- weight errors


@torch.no_grad()
def squared_error(weight: Tensor, spec: Spec) -> float:
    """E = |Q(W) − W|², the squared error of a weight stored as `spec`."""
    return float((Quantized(weight, spec)(weight) - weight).double().square().sum())


def squared_errors(network: nn.Module, specs: Sequence[Spec]) -> dict[str, dict[Spec, float]]:
    """E of every layer and spec: layer → spec → |Q(W) − W|²."""
    weights = {name: stored(network.get_submodule(name)).detach() for name in quantizable(network)}
    return {name: {spec: squared_error(weight, spec) for spec in specs} for name, weight in weights.items()}


def omega(
    sensitivity: Mapping[str, float], errors: Mapping[str, Mapping[Spec, float]], chosen: Mapping[str, Spec]
) -> float:
    """Ω = Σ sensitivity · E over the layers of `chosen`, layer → spec.

    The sensitivity is the mean trace in HAWQ-V2 and V3, the total trace in arXiv 2406.05359 (our reading).
    """
    return math.fsum(sensitivity[name] * errors[name][spec] for name, spec in chosen.items())


# ---- one layer at a time


def one_at_a_time(
    network: nn.Module, specs: Sequence[Spec], measure: Measure, known: Container[tuple[str, Spec]] = ()
) -> Iterator[tuple[str, Spec, float]]:
    """Measure a network in which one layer alone is quantized: (layer, spec, value), all pairs that are not `known`."""
    for name in quantizable(network):
        for spec in specs:
            if (name, spec) not in known:
                yield name, spec, measured(network, Plan(((name, spec), ("*", None))), measure)


def selective_retention(
    network: nn.Module, plan: Plan, groups: Mapping[str, Sequence[str]], measure: Measure
) -> Iterator[tuple[str, float]]:
    """Measure a network that is quantized but for one group of layers: (group, value).

    groups: name → layers or patterns, for example one entry a layer or a stage. What float weights there win back says
    how much of the damage of a plan sits there (the layer recovery of arXiv 2606.08078). Raises BadPlan for patterns
    that fit no layer.
    """
    for group, layers in groups.items():
        yield group, measured(network, Plan((*((layer, None) for layer in layers), *plan.entries)), measure)


def measured(network: nn.Module, plan: Plan, measure: Measure) -> float:
    """What `measure` says of a network with a plan on it, in evaluation mode and without gradients."""
    with quantized(network, plan), evaluating(network), torch.no_grad():
        return float(measure(network))


def drift_from(network: nn.Module, batches: Sequence[Tensor]) -> Measure:
    """A measure: the mean of 1 − cosine to the embeddings that the network gives as it is now, without labels.

    batches: features (batch, mels, frames) each. Computed as half the squared distance of unit embeddings, which is
    the same and loses no digits where the drift is small.
    """
    with evaluating(network):
        reference = _unit_embeddings(network, batches)
    return lambda other: float((_unit_embeddings(other, batches) - reference).square().sum(dim=1).mean() / 2)


@torch.no_grad()
def _unit_embeddings(network: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    """(recordings, dim), float64."""
    return nn.functional.normalize(torch.cat([network(batch) for batch in batches]).double())


# ---- a network is lent


@contextmanager
def quantized(network: nn.Module, plan: Plan) -> Iterator[dict[str, Spec | None]]:
    """A plan on a network for as long as the block lasts; afterwards the weights are exactly those of before.

    Raises BadInput when a plan is attached already, BadPlan when this one does not fit the network.
    """
    refuse_attached(network)
    specs = plan.resolve(quantizable(network))
    layers = [network.get_submodule(name) for name, spec in specs.items() if spec is not None]
    kept = [stored(layer).detach().clone() for layer in layers]
    order = [[name for name, _ in layer.named_parameters(recurse=False)] for layer in layers]
    try:
        yield attach(network, plan)
    finally:
        detach(network)
        for layer, weight, names in zip(layers, kept, order, strict=True):
            with torch.no_grad():
                layer.weight.copy_(weight)
            _reorder(layer, names)


def _reorder(layer: nn.Module, names: Sequence[str]) -> None:
    """Put a layer's parameters back in an order; taking a plan off leaves the weight behind the bias."""
    for name in names:
        parameter = getattr(layer, name)
        delattr(layer, name)
        layer.register_parameter(name, parameter)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for as long as the block lasts, for every module of its own."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _differentiable(weights: Sequence[Tensor]) -> Iterator[None]:
    flags = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for weight, flag in zip(weights, flags, strict=True):
            weight.requires_grad_(flag)


def refuse_attached(network: nn.Module) -> None:
    """Raises BadInput when a plan is attached: what is asked here is asked of float weights."""
    if any(parametrize.is_parametrized(layer, "weight") for layer in network.modules()):
        raise BadInput("the network has a plan attached already; detach it first")
