"""Sensitivity: traces are those of explicit Hessians, harm is that of one layer, networks come back as lent."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from sottovoce import quant
from sottovoce.bits.plan import Plan, Spec
from sottovoce.errors import BadInput, BadPlan
from sottovoce.quant import sensitivity
from sottovoce.quant.sensitivity import (
    drift_from,
    embedding_traces,
    evaluating,
    hessian_traces,
    measured,
    omega,
    one_at_a_time,
    quantized,
    selective_retention,
    squared_errors,
)


class Tiny(nn.Module):
    """Convolution, batch norm, tanh, mean over time, linear layer; one layer is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 2, bias=False)
        self.bn = nn.BatchNorm1d(3)
        self.idle = nn.Linear(2, 2)
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.tanh(self.bn(self.conv(x))).mean(dim=2))


@pytest.fixture
def tiny() -> Tiny:
    torch.manual_seed(0)
    network = Tiny()
    network.bn.running_mean.uniform_(-0.5, 0.5)
    network.bn.running_var.uniform_(0.5, 2.0)
    return network.train()


@pytest.fixture
def batch() -> Tensor:
    return torch.randn(5, 2, 6, generator=torch.Generator().manual_seed(1))


def explicit_trace(network: nn.Module, layer: str, loss: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Trace of the Hessian by autograd over the whole weight of one layer."""
    network = copy.deepcopy(network).eval()
    weight = network.get_submodule(layer).weight.detach()
    of = lambda w: loss(functional_call(network, {f"{layer}.weight": w.reshape(weight.shape)}, (x,)))
    return float(torch.autograd.functional.hessian(of, weight.reshape(-1)).trace())


def cross_entropy(embeddings: Tensor) -> Tensor:
    return nn.functional.cross_entropy(3 * embeddings, torch.tensor([0, 1, 2, 3, 0]))


@pytest.fixture
def orthogonal_signs(monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows of a Hadamard matrix in place of random signs: over all of them the mean of v vᵀ is exactly the identity.

    returns: how many draws make the estimates exact.
    """
    rows = torch.ones(1, 1)
    for _ in range(5):
        rows = torch.cat([torch.cat([rows, rows], dim=1), torch.cat([rows, -rows], dim=1)])
    left: list[Tensor] = []
    waiting = iter(rows)

    def signs(like: Tensor, _: torch.Generator) -> Tensor:
        if not left or len(left[0]) < like.numel():  # the last vector is used up
            left[:] = [next(waiting)]
        taken, left[0] = left[0][: like.numel()], left[0][like.numel() :]
        return taken.reshape(like.shape)

    monkeypatch.setattr(sensitivity, "_signs", signs)
    return len(rows)


def test_hutchinson_finds_the_trace_of_the_hessian(tiny: Tiny, batch: Tensor, orthogonal_signs: int) -> None:
    """12 + 4 + 12 weights: a vector of 32 signs serves one draw."""
    found = hessian_traces(tiny, lambda network: cross_entropy(network(batch)), draws=orthogonal_signs, tolerance=0.0)
    for layer in ("conv", "linear"):
        exact = explicit_trace(tiny, layer, cross_entropy, batch)
        assert found[layer].total == pytest.approx(exact, rel=1e-4)
        assert found[layer].mean == found[layer].total / tiny.get_submodule(layer).weight.numel()
        assert found[layer].draws == 32
    assert found["idle"].total == 0.0


def test_random_signs_are_plus_and_minus_one_alike_often() -> None:
    drawn = sensitivity._signs(torch.zeros(100, 100), torch.Generator().manual_seed(0))
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(drawn.mean())) < 0.04
    assert drawn.dtype == torch.float32


def test_one_draw_is_exact_for_a_diagonal_hessian(tiny: Tiny) -> None:
    loss = lambda network: 1.5 * network.conv.weight.square().sum() - network.linear.weight.pow(3).sum()
    found = hessian_traces(tiny, loss, draws=1)
    assert found["conv"].total == pytest.approx(3.0 * tiny.conv.weight.numel(), rel=1e-5)
    assert found["linear"].total == pytest.approx(-6.0 * float(tiny.linear.weight.detach().sum()), rel=1e-4)


def test_draws_stop_when_the_mean_has_settled(tiny: Tiny, batch: Tensor) -> None:
    diagonal = lambda network: network.conv.weight.square().sum() + network.linear.weight.square().sum()
    assert hessian_traces(tiny, diagonal, draws=50)["conv"].draws == sensitivity.LEAST_DRAWS
    loose = hessian_traces(tiny, lambda network: cross_entropy(network(batch)), draws=300, tolerance=0.1)
    assert sensitivity.LEAST_DRAWS < loose["conv"].draws < 300


def test_a_loss_may_draw_another_batch_each_time(tiny: Tiny) -> None:
    """H is 2 for odd and 4 for even calls: the mean over draws is 3 a weight."""
    calls = []

    def loss(network: nn.Module) -> Tensor:
        calls.append(1)
        return (1 + (len(calls) + 1) % 2) * network.conv.weight.square().sum()

    assert hessian_traces(tiny, loss, draws=6, tolerance=0.0)["conv"].mean == pytest.approx(3.0)


def test_embedding_traces_are_those_of_one_minus_cosine(tiny: Tiny, batch: Tensor, orthogonal_signs: int) -> None:
    """5 embeddings of 4 numbers: a vector of 32 signs serves one draw."""
    reference = copy.deepcopy(tiny).eval()(batch).detach()
    loss = lambda embeddings: (1 - nn.functional.cosine_similarity(embeddings, reference)).mean()
    found = embedding_traces(tiny, lambda network: network(batch), draws=orthogonal_signs, tolerance=0.0)
    for layer in ("conv", "linear"):
        assert found[layer].total == pytest.approx(explicit_trace(tiny, layer, loss, batch), rel=1e-4)
    assert found["idle"].total == 0.0


def test_traces_that_are_not_finite_are_refused(tiny: Tiny) -> None:
    with pytest.raises(BadInput, match="not finite"):
        hessian_traces(tiny, lambda network: (network.conv.weight * float("nan")).square().sum(), draws=1)


SPECS = [Spec("kmeans2"), Spec("kmeans4"), Spec("uniform8")]


def test_squared_errors_are_those_of_the_decoded_weights(tiny: Tiny) -> None:
    errors = squared_errors(tiny, SPECS)
    for spec in SPECS:
        other = copy.deepcopy(tiny)
        quant.attach(other, Plan((("*", spec),)))
        for name, entry in quant.coded(other).items():
            seen = torch.from_numpy(entry.decode()) - tiny.get_submodule(name).weight
            assert errors[name][spec] == pytest.approx(
                float(seen.detach().double().square().sum()), rel=1e-6, abs=1e-12
            )
    assert all(row[SPECS[0]] > row[SPECS[1]] > row[SPECS[2]] for row in [errors["conv"], errors["linear"]])


def test_omega_adds_products() -> None:
    two, four = SPECS[:2]
    errors = {"a": {two: 4.0, four: 1.0}, "b": {two: 2.0, four: 0.5}}
    assert omega({"a": 10.0, "b": 3.0}, errors, {"a": four, "b": two}) == 16.0


def test_drift_is_one_minus_cosine(tiny: Tiny, batch: Tensor) -> None:
    drift = drift_from(tiny, [batch[:2], batch[2:]])
    tiny.eval()
    reference = tiny(batch)
    assert drift(tiny) == 0.0
    plan = Plan.parse("conv=kmeans1; *=float")
    other = copy.deepcopy(tiny)
    quant.attach(other, plan)
    expected = float((1 - nn.functional.cosine_similarity(other(batch), reference)).mean())
    assert expected > 1e-4
    assert measured(tiny, plan, drift) == pytest.approx(expected, rel=1e-3)


def test_one_at_a_time_quantizes_one_layer(tiny: Tiny) -> None:
    seen: list[dict[str, str]] = []

    def measure(network: nn.Module) -> float:
        assert not network.training
        seen.append({name: str(entry.spec) for name, entry in quant.coded(network).items()})
        return float(len(seen))

    rows = list(one_at_a_time(tiny, SPECS[:2], measure, known={("idle", SPECS[0]), ("idle", SPECS[1])}))
    assert [(name, spec) for name, spec, _ in rows] == [(n, s) for n in ("conv", "linear") for s in SPECS[:2]]
    assert [value for *_, value in rows] == [1.0, 2.0, 3.0, 4.0]
    assert seen == [{name: str(spec)} for name, spec, _ in rows]


def test_selective_retention_keeps_one_group_in_float(tiny: Tiny) -> None:
    layers = lambda network: float(sum(len(name) for name in quant.coded(network)))
    plan = Plan.parse("*=kmeans2")
    rows = dict(selective_retention(tiny, plan, {"first": ["conv"], "rest": ["i*", "linear"]}, layers))
    assert rows == {"first": len("idlelinear"), "rest": len("conv")}
    with pytest.raises(BadPlan, match="fits no layer"):
        list(selective_retention(tiny, plan, {"none": ["nothing.*"]}, layers))


def state(network: nn.Module) -> tuple[dict[str, Tensor], list[bool], list[bool], list[int]]:
    parameters = list(network.parameters())
    return (
        {name: tensor.clone() for name, tensor in network.state_dict().items()},
        [module.training for module in network.modules()],
        [parameter.requires_grad for parameter in parameters],
        [id(parameter) for parameter in parameters],
    )


def broken(network: nn.Module) -> float:
    raise RuntimeError("stop here")


@pytest.mark.parametrize(
    "ask",
    [
        lambda network: list(one_at_a_time(network, SPECS, broken)),
        lambda network: list(selective_retention(network, Plan.parse("*=kmeans1"), {"a": ["conv"]}, broken)),
        lambda network: hessian_traces(network, broken),
        lambda network: embedding_traces(network, broken),
        lambda network: quantized(network, Plan.parse("*=kmeans1")).__enter__() and 1 / 0,
    ],
    ids=["one", "retention", "hessian", "embedding", "block"],
)
def test_a_network_comes_back_as_it_was(tiny: Tiny, ask: Callable[[nn.Module], object]) -> None:
    tiny.bn.eval()
    tiny.conv.weight.requires_grad_(False)
    before = state(tiny)
    with pytest.raises((RuntimeError, ZeroDivisionError)):
        ask(tiny)
    after = state(tiny)
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[0].keys() == after[0].keys()
    assert before[1:] == after[1:]


def test_the_same_when_attaching_fails_half_way(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(tiny)
    real = quant.attach

    def fails(network: nn.Module, plan: Plan) -> None:
        real(network, Plan.parse("conv=kmeans1; *=float"))
        raise RuntimeError("out of memory")

    monkeypatch.setattr(sensitivity, "attach", fails)
    with pytest.raises(RuntimeError, match="memory"), quantized(tiny, Plan.parse("*=kmeans1")):
        pass
    after = state(tiny)
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1:] == after[1:]


def test_an_attached_network_is_refused_and_left_alone(tiny: Tiny) -> None:
    quant.attach(tiny, Plan.parse("conv=kmeans2; *=float"))
    for ask in (
        lambda: list(one_at_a_time(tiny, SPECS, broken)),
        lambda: hessian_traces(tiny, broken),
    ):
        with pytest.raises(BadInput, match="detach it first"):
            ask()
    assert list(quant.coded(tiny)) == ["conv"]


def test_modes_are_restored(tiny: Tiny) -> None:
    tiny.bn.eval()
    with evaluating(tiny):
        assert not tiny.conv.training
    assert tiny.conv.training
    assert not tiny.bn.training
