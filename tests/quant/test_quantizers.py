"""Quantizers against their equations, against known optima, and against a slow search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.bits.formats import FORMATS
from sottovoce.bits.plan import GRANULARITIES, RULES, Spec
from sottovoce.quant.quantizers import QUANTIZERS, Quantized, lloyd, nearest_code, nearest_value, refreshed, snap

SPECS = [
    Spec(entry.name, granularity, rule)
    for entry in FORMATS.values()
    for granularity in GRANULARITIES
    for rule in RULES[entry.family]
]


def weight(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.05


def decibels(float_weight: torch.Tensor, seen: torch.Tensor) -> float:
    damage = (seen - float_weight).square().sum()
    return float(10 * torch.log10(float_weight.square().sum() / damage))


def test_every_family_of_the_formats_has_a_quantizer_and_rules():
    assert {entry.family for entry in FORMATS.values()} == set(QUANTIZERS) == set(RULES)


@settings(deadline=None)
@given(st.lists(st.floats(-130, 130, width=32), min_size=2, max_size=60).map(sorted))
def test_snapped_levels_are_distinct_integers_of_the_int8_grid(values):
    levels = snap(torch.tensor(values)).tolist()
    assert all(level == int(level) for level in levels)
    assert levels == sorted(set(levels))
    assert levels[0] >= -127
    assert levels[-1] <= 127


@settings(deadline=None)
@given(st.sets(st.integers(-127, 127), min_size=2, max_size=40).map(sorted))
def test_snapping_leaves_integers_as_they_are(values):
    assert snap(torch.tensor(values, dtype=torch.float32)).tolist() == values


@settings(deadline=None)
@given(
    st.sets(st.integers(-127, 127), min_size=2, max_size=20).map(sorted),
    st.lists(st.integers(-40_000, 40_000), min_size=1, max_size=30),
)
def test_the_nearest_level_is_that_of_a_full_search(levels, steps):
    at = np.array(steps) / 256 + 1 / 1024  # never half-way between two levels
    distance = np.abs(at[:, None] - np.array(levels))
    expected = distance.argmin(axis=1)
    grid, seen = torch.tensor(levels, dtype=torch.float32), torch.tensor(at, dtype=torch.float32)
    assert nearest_code(seen, grid).tolist() == expected.tolist()
    assert nearest_value(seen, grid).tolist() == [levels[i] for i in expected]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("rule", ["clip3", "mse"])
def test_uniform_gradients_are_equations_4_and_5(bits, granularity, rule):
    """dŴ/dα = sign(W̃) beyond the clip, Ŵ/α - W̃/α inside; dŴ/dW = 1 everywhere (arXiv 2210.17326)."""
    original = weight(6, 40).requires_grad_()
    quantized = Quantized(original, Spec(f"uniform{bits}", granularity, rule))
    with torch.no_grad():
        quantized.gain.mul_(0.5)  # so that a good part is clipped
    upstream = weight(6, 40, seed=1)
    (quantized(original) * upstream).sum().backward()

    w = original.detach().double().numpy()
    axis = None if granularity == "layer" else 1
    mean = w.mean(axis=axis, keepdims=True) if rule == "clip3" else 0.0
    std = np.sqrt(np.mean((w - mean) ** 2, axis=axis, keepdims=True))
    alpha, steps = quantized.gain.detach().double().numpy(), 2 ** (bits - 1) - 1
    normal = (w - mean) / std
    projected = alpha * np.round(np.clip(normal / alpha, -1, 1) * steps) / steps
    outside = np.abs(normal) > alpha
    assert 0.02 < outside.mean() < 0.98
    slope = np.where(outside, np.sign(normal), projected / alpha - normal / alpha)
    expected = (upstream.double().numpy() * std * slope).sum(axis=axis, keepdims=True)
    np.testing.assert_allclose(
        quantized.gain.grad.numpy(), expected.reshape(quantized.gain.shape), rtol=2e-4, atol=2e-6
    )
    assert torch.equal(original.grad, upstream)
    np.testing.assert_allclose(quantized(original).detach().numpy(), projected * std, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_kmeans_gradients_are_straight_through_and_the_product_rule(granularity):
    """dL/dW = dL/dŴ and dL/dscale = Σ dL/dŴ · q (arXiv 2606.08078); the gain multiplies a kept unit."""
    original = weight(6, 40).requires_grad_()
    quantized = Quantized(original, Spec("kmeans3", granularity))
    upstream = weight(6, 40, seed=1)
    seen = quantized(original)
    (seen * upstream).sum().backward()
    product = (upstream * seen.detach()).sum(dim=1, keepdim=True)  # gains are 1, so unit · q is the weight
    expected = product.sum().reshape(1, 1) if granularity == "layer" else product
    torch.testing.assert_close(quantized.gain.grad, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(original.grad, upstream)


@pytest.mark.parametrize(("bits", "optimum"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_kmeans_reaches_the_optimum_for_gaussian_weights(bits, optimum):
    """Squared error of the best quantizer of a unit Gaussian: Max 1960, table I. The int8 grid may cost 0.05 dB."""
    gaussian = weight(300, 500)
    seen = Quantized(gaussian, Spec(f"kmeans{bits}", "layer"))(gaussian).detach()
    assert decibels(gaussian, seen) > -10 * np.log10(optimum) - 0.05


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_scale_per_channel_makes_up_for_rows_of_different_magnitude(bits):
    rows = weight(40, 300) * torch.logspace(-2, 0, 40)[:, None]
    channel, layer = (Quantized(rows, Spec(f"kmeans{bits}", granularity))(rows) for granularity in ("channel", "layer"))
    relative = [((seen - rows).norm(dim=1) / rows.norm(dim=1)).mean() for seen in (channel, layer)]
    assert relative[0] < 0.7 * relative[1]


def test_lloyd_leaves_every_centroid_at_the_mean_of_its_cell():
    ordered = weight(1, 4000).reshape(-1).sort().values
    centroids = lloyd(ordered, torch.linspace(-0.1, 0.1, 5), rounds=500)
    cells = np.abs(ordered.numpy()[:, None] - centroids.numpy()).argmin(axis=1)
    means = [ordered.numpy()[cells == k].mean() for k in range(5)]
    np.testing.assert_allclose(centroids.numpy(), means, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_clip_of_rule_mse_is_as_good_as_a_fine_search(bits, granularity):
    rows = torch.distributions.Laplace(0.0, 1.0).icdf(torch.rand(4, 600, generator=torch.Generator().manual_seed(3)))
    quantized = Quantized(rows, Spec(f"uniform{bits}", granularity, "mse"))
    steps = 2 ** (bits - 1) - 1

    def damage(clip: torch.Tensor) -> torch.Tensor:
        seen = (rows / clip * steps).round().clamp(-steps, steps) * clip / steps
        error = (seen - rows).square().sum(dim=1, keepdim=True)
        return error.sum() if granularity == "layer" else error

    searched = torch.stack([damage(rows.abs().max() * share) for share in torch.linspace(0.02, 1.0, 600)]).amin(dim=0)
    found = (quantized(rows).detach() - rows).square().sum(dim=1, keepdim=True)
    found = found.sum() if granularity == "layer" else found
    assert bool((found <= searched * 1.03).all())


@pytest.mark.parametrize("rule", ["mse", "absmax"])
def test_rows_with_a_mean_lose_nothing_at_8_bits(rule):
    rows = weight(6, 9) + 0.1
    assert decibels(rows, Quantized(rows, Spec("uniform8", "channel", rule))(rows).detach()) > 40


def test_the_units_do_not_depend_on_the_order_of_the_weights():
    rows = weight(3, 50_000)
    turned = rows[:, torch.randperm(50_000, generator=torch.Generator().manual_seed(2))]
    quantized = Quantized(rows, Spec("uniform4", "channel", "clip3"))
    assert torch.equal(quantized.encode(rows)[2], quantized.encode(turned)[2])


def test_one_bit_weights_are_signs_times_the_mean_magnitude():
    rows = weight(5, 70)
    seen = Quantized(rows, Spec("uniform1"))(rows).detach()
    torch.testing.assert_close(seen, rows.sign() * rows.abs().mean(dim=1, keepdim=True))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_clip3_clips_at_three_deviations_from_the_mean(granularity):
    rows = weight(4, 900) + 0.02
    seen = Quantized(rows, Spec("uniform4", granularity, "clip3"))(rows).detach()
    std = rows.std(dim=1 if granularity == "channel" else None, keepdim=True, correction=0)
    torch.testing.assert_close(seen.amax(dim=1), (3 * std).expand(4, 1).squeeze(1))


def test_absmax_puts_the_largest_weight_of_each_row_on_the_outermost_level():
    rows = weight(5, 70)
    quantized = Quantized(rows, Spec("uniform4", "channel", "absmax"))
    codes, levels, scale = quantized.encode(rows)
    torch.testing.assert_close(scale * 7, rows.abs().amax(dim=1))
    assert bool((levels.float()[codes.int()].abs().amax(dim=1) == 7).all())


def test_rule_mass_is_the_equal_mass_partition():
    rows = weight(1, 400)
    quantized = Quantized(rows, Spec("kmeans3", "layer", "mass"))
    ordered = np.sort(rows.double().numpy().reshape(-1))
    low, high = ordered[round(0.05 * 399)], ordered[round(0.95 * 399)]
    means = np.array([part.mean() for part in np.split(np.clip(ordered, low, high), 8)])
    np.testing.assert_allclose(quantized.codebook.numpy(), 127 * means / np.abs(means).max(), rtol=1e-4)


def test_a_refresh_moves_each_level_a_tenth_of_the_way_to_the_mean_of_its_weights():
    codebook = torch.tensor([-127.0, 0.0, 127.0])
    at = torch.tensor([[-137.0, -107.0, 10.0, 20.0], [147.0, 147.0, 0.0, 0.0]])
    free = refreshed(at, codebook, clips=False)
    torch.testing.assert_close(free, torch.tensor([-126.5, 0.75, 129.0]))
    clipped = refreshed(at, codebook, clips=True)
    torch.testing.assert_close(clipped, torch.tensor([-126.0, 0.75, 127.0]))


def test_a_refresh_moves_further_where_levels_stand_unused():
    codebook = torch.tensor([-127.0, -60.0, 0.0, 127.0])
    moved = refreshed(torch.tensor([-127.0, 10.0, 117.0]), codebook, clips=False)
    torch.testing.assert_close(moved, torch.tensor([-127.0, -60.0, 2.0, 125.0]))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_refreshing_keeps_levels_ascending_and_the_outermost_on_the_grid(spec):
    original = weight(8, 60)
    quantized = Quantized(original, spec)
    before = quantized.codebook.clone()
    for seed in range(3):
        original = original + 0.3 * weight(8, 60, seed=seed + 5)
        quantized.refresh(original)
    levels = quantized.levels()
    assert bool((levels.diff() > 0).all()) or spec.format == "kmeans8"  # 256 levels, 255 places
    if FORMATS[spec.format].levels is None:
        assert float(quantized.codebook.abs().max()) == pytest.approx(127, abs=1e-3)
        assert not torch.equal(before, quantized.codebook)
    else:
        assert torch.equal(before, quantized.codebook)


def test_refreshing_a_network_that_has_moved_lowers_the_damage():
    original = weight(8, 500)
    quantized = Quantized(original, Spec("kmeans2"))
    moved = original.sign() * original.abs().sqrt()
    before = float((quantized(moved) - moved).norm())
    for _ in range(30):
        quantized.refresh(moved)
    assert float((quantized(moved) - moved).norm()) < 0.95 * before


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("kind", ["zeros", "equal", "single", "dead row", "few", "huge", "tiny"])
def test_odd_weights_give_finite_weights_and_positive_scales(spec, kind):
    original = {
        "zeros": torch.zeros(3, 5),
        "equal": torch.full((3, 5), 0.25),
        "single": torch.tensor([[0.5]]),
        "dead row": torch.cat([torch.zeros(1, 5), weight(2, 5)]),
        "few": weight(1, 3),
        "huge": weight(3, 5) * 1e8,
        "tiny": weight(3, 5) * 1e-15,
    }[kind]
    quantized = Quantized(original, spec)
    seen = quantized(original)
    _, _, scale = quantized.encode(original)
    assert bool(torch.isfinite(seen).all())
    assert bool((scale > 0).all())
    assert float(seen.abs().max()) <= 3 * float(original.abs().max()) + 1e-7
    quantized.refresh(original)
    assert bool(torch.isfinite(quantized(original)).all())


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SPECS), st.floats(-5, 5))
def test_a_scale_stays_positive_wherever_training_takes_the_gain(spec, gain):
    original = weight(4, 30)
    quantized = Quantized(original, spec)
    with torch.no_grad():
        quantized.gain.fill_(gain)
    assert bool((quantized.encode(original)[2] > 0).all())
    (quantized(original.requires_grad_()) * original).sum().backward()
    assert bool(torch.isfinite(quantized.gain.grad).all())
