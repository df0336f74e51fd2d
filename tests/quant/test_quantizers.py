"""Quantizers against their equations, against known optima, and against a slow search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.bits.formats import FORMATS
from sottovoce.bits.plan import RULES, Spec, every_spec
from sottovoce.errors import BadInput
from sottovoce.quant.levels import FEW, lloyd, nearest_code, nearest_value, refreshed, snap
from sottovoce.quant.quantizers import QUANTIZERS, Quantized

EDGES = ("uniform1", "lsq1", "kmeans1", "binary", "ternary", "kmeans8", "lsq8")  # the other signs are those of uniform1
SPECS = [spec for spec in every_spec() if spec.bits == 3 or spec.format in EDGES]


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
    for many in (1, FEW):  # by search, by table
        rows = seen.repeat(many, 1)
        assert bool((nearest_code(rows, grid) == torch.tensor(expected)).all())
        assert bool((nearest_value(rows, grid) == grid[expected]).all())


@pytest.mark.parametrize("many", [1, FEW])
def test_half_way_between_two_levels_the_upper_one_is_taken_in_every_row(many):
    books = torch.tensor([[-127.0, -2.0, 1.0], [-3.0, 0.0, 127.0]]).repeat(many, 1)
    at = torch.tensor([[-64.5, -0.5, 200.0], [-1.5, 63.5, -200.0]]).repeat(many, 1)
    assert torch.equal(nearest_code(at, books), torch.tensor([[1, 2, 2], [1, 2, 0]]).repeat(many, 1))
    assert torch.equal(nearest_value(at, books), torch.tensor([[-2.0, 1, 1], [0, 127, -3]]).repeat(many, 1))


@pytest.mark.parametrize("granularity", ["layer", "channel"])
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


@pytest.mark.parametrize("granularity", ["layer", "channel"])
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
@pytest.mark.parametrize("granularity", ["layer", "channel"])
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


@pytest.mark.parametrize("granularity", ["layer", "channel"])
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
    if quantized.shift is not None:
        torch.nn.init.normal_(quantized.shift, std=0.1)
    before = quantized.codebook.clone()
    for seed in range(3):
        original = original + 0.3 * weight(8, 60, seed=seed + 5)
        quantized.refresh(original)
    levels = quantized.levels()
    assert bool((levels.diff(dim=-1) > 0).all()) or spec.format == "kmeans8"  # 256 levels, 255 places
    assert torch.equal(before, quantized.codebook) != quantized.free
    if quantized.free:
        outermost = quantized.codebook.abs().amax(dim=-1)
        torch.testing.assert_close(outermost, torch.full_like(outermost, 127))


def test_refreshing_a_network_that_has_moved_lowers_the_damage():
    original = weight(8, 500)
    quantized = Quantized(original, Spec("kmeans2"))
    moved = original.sign() * original.abs().sqrt()
    before = decibels(moved, quantized(moved).detach())
    for _ in range(30):
        quantized.refresh(moved)
    assert decibels(moved, quantized(moved).detach()) > before + 0.5


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
    seen = quantized(original).detach()
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
    if quantized.gain.requires_grad:
        assert bool(torch.isfinite(quantized.gain.grad).all())


def seen_and_grads(spec: str, original: torch.Tensor, change: float = 1.0):
    """The quantizer, what it sees, the upstream gradient, and that of the weight."""
    original = original.clone().requires_grad_()
    quantized = Quantized(original, Spec.parse(spec))
    with torch.no_grad():
        quantized.gain.mul_(change)
    upstream = weight(*original.shape, seed=1)
    seen = quantized(original)
    (seen * upstream).sum().backward()
    return quantized, seen.detach(), upstream, original.grad


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_lsq_levels_and_gradients_are_those_of_the_paper(bits):
    """Autograd of the authors' expression: round straight-through, clamp, scale with gradient / √(N Q_P)."""
    rows, low, high = weight(6, 40), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    quantized, seen, upstream, grad = seen_and_grads(f"lsq{bits}/layer", rows, 0.5)
    torch.testing.assert_close(quantized.unit, 2 * rows.abs().mean().reshape(1, 1) / high**0.5)
    step, v = (0.5 * quantized.unit).requires_grad_(), rows.clone().requires_grad_()
    share = (rows.numel() * high) ** -0.5
    scaled = step * share + (step - step * share).detach()
    at = (v / scaled).clamp(low, high)
    expected = (at + (at.round() - at).detach()) * scaled
    (expected * upstream).sum().backward()
    torch.testing.assert_close(seen, expected.detach(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(grad, v.grad)
    assert 0 < int((grad == 0).sum()) < grad.numel()
    torch.testing.assert_close(quantized.gain.grad, step.grad * quantized.unit, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("form", ["pot3", "pot4", "apot4"])
@pytest.mark.parametrize("rule", ["clip3", "mse"])
def test_powers_project_and_learn_their_clip_as_equations_3_to_5(form, rule):
    rows = weight(5, 60) + 0.01
    quantized, seen, upstream, grad = seen_and_grads(f"{form}/layer/{rule}", rows, 0.5)
    w = rows.double().numpy()
    mean = w.mean() if rule == "clip3" else 0.0
    std = np.sqrt(np.mean((w - mean) ** 2))
    steps = {"pot3": 2, "pot4": 6}.get(form)
    powers = [0, *(2.0**-k for k in range(steps + 1))] if steps else [k / 10 for k in (0, 1, 2, 3, 4, 6, 8, 10)]
    ladder = np.array(sorted({sign * power for power in powers for sign in (-1, 1)}))
    alpha, normal = float(quantized.gain), (w - mean) / std
    projected = alpha * ladder[np.abs(normal[..., None] / alpha - ladder).argmin(axis=-1)]
    np.testing.assert_allclose(seen.numpy(), projected * std, rtol=1e-4, atol=1e-8)
    slope = np.where(np.abs(normal) > alpha, np.sign(normal), (projected - normal) / alpha)
    expected = (upstream.double().numpy() * slope).sum() * std
    np.testing.assert_allclose(quantized.gain.grad.item(), expected, rtol=1e-3, atol=1e-6)
    assert torch.equal(grad, upstream)


def test_apot_by_rule_clipped_gives_nothing_to_clipped_weights():
    rows = weight(5, 60)
    quantized, _, upstream, grad = seen_and_grads("apot4/layer/clipped", rows, 0.4)
    inside = ((rows - rows.mean()) / rows.std(correction=0)).abs() <= quantized.gain.item()
    assert 0.02 < inside.float().mean() < 0.98
    assert torch.equal(grad, upstream * inside)


@pytest.mark.parametrize("granularity", ["layer", "channel", "codebook"])
def test_a_learned_codebook_gets_the_summed_gradient_of_its_weights(granularity):
    rows = weight(6, 40)
    quantized, _, upstream, grad = seen_and_grads(f"kmeans2/{granularity}/learned", rows)
    codes, levels, scale = quantized.encode(rows)
    books = levels.float().clone().requires_grad_()
    decoded = (books[codes.long()] if books.dim() == 1 else books.gather(1, codes.long())) * scale.reshape(-1, 1)
    (decoded * upstream).sum().backward()
    torch.testing.assert_close(quantized.shift.grad, books.grad * 127, rtol=1e-4, atol=1e-6)
    assert torch.equal(grad, upstream)


def test_codebooks_of_channels_are_at_least_as_near_as_a_shared_one():
    rows = torch.cat([weight(4, 300), weight(4, 300, seed=1).abs() - 0.02])
    own, shared = (Quantized(rows, Spec("kmeans2", kind))(rows).detach() for kind in ("codebook", "channel"))
    assert decibels(rows[4:], own[4:]) > decibels(rows[4:], shared[4:]) + 1.5  # those have one long side
    assert bool(((own - rows).norm(dim=1) <= 1.01 * (shared - rows).norm(dim=1)).all())


def test_rule_mass_on_each_channel_follows_the_steps_of_its_code():
    rows = weight(3, 400)
    quantized = Quantized(rows, Spec("kmeans3", "codebook", "mass"))
    for row, book in zip(rows.double().numpy(), quantized.codebook.numpy(), strict=True):
        ordered = np.sort(row)
        kept = np.clip(ordered, ordered[round(0.05 * 399)], ordered[round(0.95 * 399)])
        means = np.array([part.mean() for part in np.split(kept, 8)])
        np.testing.assert_allclose(book, 127 * means / np.abs(means).max(), rtol=1e-4)


def test_static_binary_weights_are_signs_times_the_present_mean_with_the_gradient_of_xnor():
    rows = weight(4, 30) * 20  # some beyond 1
    quantized, seen, upstream, grad = seen_and_grads("binary/channel/static", rows)
    mean = rows.abs().mean(dim=1, keepdim=True)
    torch.testing.assert_close(seen, rows.sign() * mean)
    torch.testing.assert_close(grad, upstream * (1 / 30 + mean * (rows.abs() < 1)))
    assert quantized.gain.grad is None
    torch.testing.assert_close(quantized(3 * rows), 3 * seen)


def test_a_binary_threshold_moves_signs_and_learns_by_the_soft_sign():
    rows = weight(4, 30)
    quantized = Quantized(rows, Spec("binary", "channel", "threshold"))
    with torch.no_grad():
        quantized.threshold.fill_(0.4)
    upstream = weight(4, 30, seed=1)
    seen = quantized(rows)
    (seen * upstream).sum().backward()
    unit = rows.abs().mean(dim=1, keepdim=True)
    torch.testing.assert_close(seen.detach(), torch.where(rows >= 0.4 * unit, unit, -unit))
    x = (rows / unit - 0.4).requires_grad_()
    soft = torch.where(x < 0, 2 * x + x**2, 2 * x - x**2)  # ReActNet's approximation of sign between -1 and 1
    soft = torch.where(x.abs() < 1, soft, x.sign())
    (soft * unit * upstream).sum().backward()
    torch.testing.assert_close(quantized.threshold.grad, -x.grad.sum(dim=1, keepdim=True), rtol=1e-3, atol=1e-6)


def test_ternary_weights_are_cut_at_seven_tenths_of_the_mean_magnitude():
    rows = weight(4, 50)
    _, seen, _, _ = seen_and_grads("ternary/channel", rows)
    for row, found in zip(rows, seen, strict=True):
        beyond = row.abs() > 0.7 * row.abs().mean()
        torch.testing.assert_close(found, row.sign() * beyond * row.abs()[beyond].mean())


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.rule not in ("clip3", "clipped")], ids=str)
def test_placed_scales_and_levels_are_seen_again(spec):
    rows = weight(4, 40, seed=3)
    quantized = Quantized(weight(4, 40), spec)
    levels, unit = quantized.levels(), quantized.unit
    if quantized.free:
        levels = snap(levels + 2)
    codes = torch.randint(0, levels.shape[-1], rows.shape, generator=torch.Generator().manual_seed(0))
    scale = torch.linspace(0.01, 0.02, unit.numel()).reshape(unit.shape)
    decoded = (levels[codes] if levels.dim() == 1 else levels.gather(1, codes)) * scale
    quantized.place(decoded, scale, levels)
    torch.testing.assert_close(quantized(decoded).detach(), decoded, rtol=1e-6, atol=0)
    assert torch.equal(quantized.encode(decoded)[1].float(), levels)
    if spec.format != "kmeans8":  # two of its codes may stand for one level
        assert torch.equal(quantized.encode(decoded)[0].long(), codes)


def test_what_cannot_be_placed_is_refused():
    quantized = Quantized(weight(4, 40), Spec("uniform4"))
    with pytest.raises(BadInput, match="1 scales for 4"):
        quantized.place(weight(4, 40), torch.ones(1, 1), quantized.levels())
    with pytest.raises(BadInput, match="levels"):
        quantized.place(weight(4, 40), torch.ones(4, 1), quantized.levels() * 2)
    centred = Quantized(weight(4, 40), Spec("uniform4", "channel", "clip3"))
    with pytest.raises(BadInput, match="rule mse"):
        centred.place(weight(4, 40), torch.ones(4, 1), centred.levels())


@pytest.mark.parametrize("spec", ["kmeans2/codebook", "kmeans2/channel/learned", "uniform3", "ternary"])
def test_held_codes_stay_until_they_are_assigned_again(spec):
    first, moved = weight(4, 40), weight(4, 40, seed=7)
    quantized = Quantized(first, Spec.parse(spec))
    codes = quantized.encode(first)[0]
    quantized.hold(first)
    assert torch.equal(quantized.encode(moved)[0], codes)
    _, levels, scale = quantized.encode(moved)
    at = levels.float()[codes.long()] if levels.dim() == 1 else levels.float().gather(1, codes.long())
    assert torch.equal(quantized(moved).detach(), at * scale.reshape(-1, 1))
    assert "codes" in quantized.state_dict()
    quantized.hold(moved, False)
    assert not torch.equal(quantized.encode(moved)[0], codes)
    assert "codes" not in quantized.state_dict()
