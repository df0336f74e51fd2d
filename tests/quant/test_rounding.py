"""Rounding on data: against exhaustive search, brute-force formulas and autograd; never worse than the nearest."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from sottovoce import quant
from sottovoce.bits.plan import Plan
from sottovoce.quant.rounding import (
    Rounded,
    corrected_target,
    course,
    damage,
    damped,
    descend,
    nearest,
    patches,
    propagate,
    refitted_levels,
    refitted_scale,
    round_to_data,
    upper_factor,
)
from sottovoce.quant.sequential import moments, round_network

SHAPES = [(1, 5, 12, 4), (1, 3, 70, 8), (4, 2, 9, 2), (6, 1, 9, 4)]  # groups, rows, columns, levels


def problem(shape: tuple[int, int, int, int], per_row: bool = False, seed: int = 0) -> tuple:
    """Target, moment of correlated inputs, start at the nearest level; float64."""
    groups, rows, columns, size = shape
    torch.manual_seed(seed)
    x = torch.randn(groups, 3 * columns, columns, dtype=torch.float64) @ torch.randn(groups, columns, columns).double()
    moment = damped(x.mT @ x / x.shape[1], 0.01)
    target = torch.randn(groups, rows, columns, dtype=torch.float64)
    levels = torch.linspace(-127, 127, size, dtype=torch.float64).round().expand(1, 1, size).contiguous()
    levels = levels.expand(groups, rows, size).contiguous() if per_row else levels
    scale = target.abs().amax(dim=2, keepdim=True) / 127
    return x, target, moment, Rounded(nearest(target, scale, levels), scale, levels)


def loss(found: Rounded, target: torch.Tensor, moment: torch.Tensor) -> float:
    return damage(found.decode() - target, moment)


def test_damage_is_the_change_of_the_output() -> None:
    x, target, _, start = problem(SHAPES[0])
    outputs = x @ (start.decode() - target).mT
    assert damage(start.decode() - target, x.mT @ x / x.shape[1]) == pytest.approx(
        float(outputs.square().sum(2).mean())
    )


def test_the_factor_is_upper_and_gives_the_moment_back() -> None:
    _, _, moment, _ = problem(SHAPES[2])
    factor = upper_factor(moment)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor @ factor.mT, moment)


@pytest.mark.parametrize("shape", SHAPES)
def test_propagation_is_the_rule_of_gptq(shape: tuple[int, int, int, int]) -> None:
    """The rule as published: errors divided by, and spread along, rows of the Cholesky factor of the inverse of H."""
    _, target, moment, start = problem(shape)
    found = propagate(target, course(moment), start.scale, start.levels)
    for group in range(shape[0]):
        order = moment[group].diagonal().argsort(descending=True)
        spread = torch.linalg.cholesky(torch.linalg.inv(moment[group][order][:, order]), upper=True)
        work = target[group][:, order].clone()
        for j in range(shape[2]):
            code = nearest(work[None, :, j : j + 1], start.scale[group : group + 1], start.levels[:1])
            assert torch.equal(code[0, :, 0], found[group][:, order[j]])
            value = (start.levels[0, 0][code[0]] * start.scale[group])[:, 0]
            work[:, j:] -= ((work[:, j] - value) / spread[j, j])[:, None] * spread[j, j:]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_every_step_is_at_least_as_good(shape: tuple[int, int, int, int], per_row: bool, learned: bool) -> None:
    _, target, moment, start = problem(shape, per_row)
    before = loss(start, target, moment)
    assert loss(replace(start, codes=descend(target, moment, start)), target, moment) < before
    assert loss(replace(start, scale=refitted_scale(target, moment, start)), target, moment) <= before
    found = round_to_data(target, moment, start, learned)
    assert loss(found, target, moment) < 0.75 * before
    assert found.levels.shape == start.levels.shape
    assert torch.equal(found.levels, found.levels.round())
    assert bool((found.levels.diff(dim=2) > 0).all())
    assert found.levels.abs().max() <= 127
    assert bool((found.scale > 0).all())


def test_a_shared_scale_stays_shared() -> None:
    _, target, moment, start = problem(SHAPES[0])
    start = replace(start, scale=start.scale.mean().reshape(1, 1, 1))
    found = round_to_data(target, moment, start, learned=True)
    assert found.scale.shape == (1, 1, 1)


def test_descent_ends_where_no_single_code_helps() -> None:
    _, target, moment, start = problem((1, 2, 6, 4))
    found = replace(start, codes=descend(target, moment, start, sweeps=30))
    least = loss(found, target, moment)
    for row, column, code in itertools.product(range(2), range(6), range(4)):
        other = found.codes.clone()
        other[0, row, column] = code
        assert loss(replace(found, codes=other), target, moment) >= least - 1e-12


def test_weakly_correlated_inputs_get_the_codes_of_exhaustive_search() -> None:
    torch.manual_seed(3)
    x = torch.randn(1, 4000, 6, dtype=torch.float64)
    moment = x.mT @ x / 4000
    target = torch.randn(1, 1, 6, dtype=torch.float64)
    levels = torch.tensor([[[-127.0, -42.0, 42.0, 127.0]]], dtype=torch.float64)
    start = Rounded(nearest(target, torch.full((1, 1, 1), 0.01), levels), torch.full((1, 1, 1), 0.01).double(), levels)
    every = torch.tensor(list(itertools.product(range(4), repeat=6)))[:, None, None, :]
    losses = [loss(replace(start, codes=codes), target, moment) for codes in every]
    best = replace(start, codes=propagate(target, course(moment), start.scale, levels))
    best = replace(best, codes=descend(target, moment, best))
    assert loss(best, target, moment) == pytest.approx(min(losses))


@pytest.mark.parametrize("per_row", [False, True])
def test_the_scale_and_the_codebook_solve_their_least_squares(per_row: bool) -> None:
    _, target, moment, start = problem((2, 3, 40, 4), per_row)
    scale = refitted_scale(target, moment, start).requires_grad_()
    seen = start.levels.expand(2, 3, 4).gather(2, start.codes)
    error = seen * scale - target
    ((error @ moment) * error).sum().backward()
    assert float(scale.grad.abs().max()) < 1e-9 * float((seen @ moment).abs().max() ** 2)
    fitted = refitted_levels(target, moment, start)
    before = loss(replace(start, scale=refitted_scale(target, moment, start)), target, moment)
    assert loss(fitted, target, moment) < before


def test_the_corrected_target_is_the_least_squares_weight() -> None:
    torch.manual_seed(0)
    seen, change = torch.randn(1, 50, 6).double(), 0.3 * torch.randn(1, 50, 6).double()
    weight = torch.randn(1, 4, 6).double()
    moment, drift = seen.mT @ seen / 50, change.mT @ seen / 50
    wanted = torch.linalg.lstsq(seen[0], (seen + change)[0] @ weight[0].T).solution.T
    torch.testing.assert_close(corrected_target(weight, moment, drift)[0], wanted)


LAYERS = [
    (nn.Linear(7, 5), (6, 7)),
    (nn.Linear(7, 5), (2, 3, 7)),
    (nn.Conv1d(6, 8, 3, padding=4, dilation=2, stride=2), (2, 6, 15)),
    (nn.Conv1d(6, 6, 5, padding=2, groups=6), (2, 6, 15)),
    (nn.Conv2d(4, 6, 3, stride=(1, 2), padding=(1, 0), groups=2), (2, 4, 7, 9)),
    (nn.Conv2d(3, 4, (1, 3)), (2, 3, 5, 6)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_patches_times_weight_is_the_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    out = layer(x)
    wanted = out.reshape(-1, out.shape[-1]) if isinstance(layer, nn.Linear) else out.movedim(1, -1).flatten(0, -2)
    positions = torch.arange(len(wanted))
    rows = patches(layer, x, positions)
    groups = getattr(layer, "groups", 1)
    weight = layer.weight.detach().reshape(groups, layer.weight.shape[0] // groups, -1)
    found = (rows @ weight.mT).movedim(0, 1).flatten(1) + layer.bias
    torch.testing.assert_close(found, wanted)


def test_moments_are_centred_without_loss_of_digits() -> None:
    layer = nn.Conv1d(3, 2, 3)
    torch.manual_seed(0)
    x = torch.randn(4, 3, 50) + 3000.0
    found, _, count = moments(layer, x, x, 9, True, torch.Generator())
    rows = patches(layer, x, torch.arange(4 * 48))[0].double()
    assert count == len(rows)
    torch.testing.assert_close(found[0].double(), torch.cov(rows.T, correction=0), rtol=1e-3, atol=1e-3)


class Odd(nn.Module):
    """A layer used twice, one never used, a grouped and a plain one, with and without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(6, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(12)
        self.grouped = nn.Conv1d(12, 12, 3, padding=1, groups=4)
        self.twice = nn.Conv1d(12, 12, 1)
        self.never = nn.Linear(3, 3)
        self.last = nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.grouped(x))
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        return self.last(x.mean(dim=2))


def odd(seed: int = 0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network, its correlated inputs, and others of the same kind."""
    torch.manual_seed(seed)
    network, mixing = Odd(), torch.randn(6, 6)
    fit, others = (torch.einsum("ij,bjt->bit", mixing, torch.randn(40, 6, 30)) + 0.5 for _ in range(2))
    network.train()
    network(fit)
    return network.eval(), fit, others


@pytest.mark.parametrize(
    "spec", ["kmeans2", "kmeans2/codebook", "kmeans3/layer", "uniform3", "pot3", "lsq3", "ternary", "binary", "kmeans4"]
)
def test_a_rounded_network_is_nearer_to_the_float_one(spec: str) -> None:
    network, fit, others = odd()
    wanted = network(others).detach()
    quant.attach(network, Plan.parse(f"*={spec}"))
    nearest_change = float((network(others) - wanted).square().mean().detach())
    done = round_network(network, fit)
    assert done.rounded == ["first", "grouped", "twice", "last"]
    assert (done.again, done.unvisited, done.kept) == (["twice"], ["never"], [])
    assert float((network(others) - wanted).square().mean().detach()) < 0.7 * nearest_change
    for name, coded in quant.coded(network).items():
        layer = network.get_submodule(name)
        decoded = torch.from_numpy(coded.decode())
        assert torch.equal(decoded, layer.weight)
        if name != "never":  # training can go on from here: the latent weight is the decoded one
            torch.testing.assert_close(layer.parametrizations.weight.original, decoded, rtol=1e-5, atol=0)


def test_without_rounding_codes_stay_and_means_are_matched() -> None:
    network, fit, _ = odd()
    wanted = network(fit).mean(dim=0).detach()
    quant.attach(network, Plan.parse("*=kmeans2"))
    before, first = quant.coded(network), float((network(fit).mean(dim=0) - wanted).abs().max().detach())
    round_network(network, fit, rounding=False)
    assert all((c.codes == before[name].codes).all() for name, c in quant.coded(network).items())
    assert float((network(fit).mean(dim=0) - wanted).abs().max().detach()) < 1e-5 < first


def test_rules_that_say_more_than_the_nearest_level_are_left_alone() -> None:
    network, fit, _ = odd()
    quant.attach(network, Plan.parse("first=uniform3/channel/clip3; last=uniform8; *=kmeans3"))
    before = quant.coded(network)
    done = round_network(network, fit)
    assert done.kept == ["first", "last"]
    assert (quant.coded(network)["first"].decode() == before["first"].decode()).all()


def test_the_same_seed_gives_the_same_codes() -> None:
    found = []
    for _ in range(2):
        network, fit, _ = odd()
        quant.attach(network, Plan.parse("*=kmeans2"))
        round_network(network, fit, seed=4)
        found.append(quant.coded(network))
    assert all((c.codes == found[1][name].codes).all() for name, c in found[0].items())
