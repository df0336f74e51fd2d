"""Plans on networks: what the forward pass sees is what is stored, bit for bit."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sottovoce import quant
from sottovoce.bits.plan import Plan, Spec, every_spec
from sottovoce.errors import BadInput, BadPlan

SPECS = [spec for spec in every_spec() if spec.bits == 3 or spec.format in ("uniform1", "kmeans1", "binary", "ternary")]


class Small(nn.Module):
    """One layer of each kind: (batch, 1, 8, 8) → (batch, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.plane = nn.Conv2d(1, 6, 3, padding=1)
        self.line = nn.Conv1d(48, 16, 3)
        self.linear = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.relu(self.line(torch.relu(self.plane(x)).flatten(1, 2))).mean(dim=2))


@pytest.fixture
def network() -> Small:
    torch.manual_seed(0)
    return Small()


def features() -> torch.Tensor:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def train(network: nn.Module, steps: int = 3) -> None:
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        optimiser.zero_grad()
        network(features()).square().sum().backward()
        optimiser.step()


def assert_stored_is_seen(network: nn.Module) -> None:
    stored = quant.coded(network)
    assert stored
    for name, coded in stored.items():
        np.testing.assert_array_equal(
            coded.decode().view(np.int32), network.get_submodule(name).weight.detach().numpy().view(np.int32)
        )


def test_quantizable_lists_every_layer_in_order_attached_or_not(network):
    shapes = {"plane": (6, 1, 3, 3), "line": (16, 48, 3), "linear": (5, 16)}
    assert list(quant.quantizable(network).items()) == list(shapes.items())
    quant.attach(network, Plan.parse("*=kmeans4"))
    assert list(quant.quantizable(network).items()) == list(shapes.items())


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_forward_weight_is_the_decoded_one_bit_for_bit(network, spec):
    assert set(quant.attach(network, Plan.parse(f"*={spec}")).values()) == {spec}
    assert_stored_is_seen(network)
    before = {name: coded.scale for name, coded in quant.coded(network).items()}
    train(network)
    assert_stored_is_seen(network)
    quant.refresh(network)
    assert_stored_is_seen(network)
    for name, coded in quant.coded(network).items():
        assert coded.spec == spec
        assert coded.scale.shape == ((1,) if spec.granularity == "layer" else coded.shape[:1])
        assert not np.array_equal(coded.scale, before[name]), "training did not move the scale"


def test_training_lowers_the_loss_and_moves_weights_and_gains(network):
    quant.attach(network, Plan.parse("*=kmeans2"))
    before = [p.detach().clone() for p in network.parameters()]
    loss = network(features()).square().sum().item()
    train(network, 5)
    assert network(features()).square().sum().item() < 0.8 * loss
    assert all(not torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))


@pytest.mark.parametrize("text", ["kmeans2/codebook/learned", "kmeans4/layer/learned", "binary/codebook"])
def test_learned_codebooks_move_and_with_them_the_stored_levels(network, text):
    quant.attach(network, Plan.parse(f"*={text}"))
    for entry in [*quant.attached(network).values(), network]:  # nothing but the codebooks is trained
        entry.requires_grad_(False)
    shifts = quant.codebooks(network)
    assert len(shifts) == 3
    for shift in shifts:
        shift.requires_grad_()
    before, loss = quant.coded(network), network(features()).square().sum().item()
    train(network, 10)
    for shift in shifts:
        assert shift.grad is not None
        assert bool((shift.grad != 0).any())
    assert network(features()).square().sum().item() < 0.95 * loss
    for name, coded in quant.coded(network).items():
        assert not np.array_equal(coded.levels, before[name].levels), name
        np.testing.assert_array_equal(coded.scale, before[name].scale)
    seen = network(features()).detach()
    quant.refresh(network)  # takes over what was learned: the outermost level back to 127, so rounding differs
    assert all(not bool(shift.any()) for shift in shifts)
    torch.testing.assert_close(network(features()).detach(), seen, rtol=0.05, atol=0.05)
    assert_stored_is_seen(network)


def test_post_training_is_attach_then_detach(network):
    original = copy.deepcopy(network)
    quant.attach(network, Plan.parse("*=uniform8"))
    decoded = {name: coded.decode() for name, coded in quant.coded(network).items()}
    quant.detach(network)
    assert quant.coded(network) == {}
    assert network.state_dict().keys() == original.state_dict().keys()
    for name, weight in decoded.items():
        np.testing.assert_array_equal(network.get_submodule(name).weight.detach().numpy(), weight)
        assert isinstance(network.get_submodule(name).weight, nn.Parameter)
        before = original.get_submodule(name).weight.detach()
        assert np.abs(weight - before.numpy()).max() < 0.005 * float(before.abs().max())
    quant.attach(network, Plan.parse("*=kmeans4"))


def test_float_layers_stay_as_they_are(network):
    weight = network.line.weight
    specs = quant.attach(network, Plan.parse("line=float; *=kmeans4"))
    assert specs == {"plane": Spec("kmeans4"), "line": None, "linear": Spec("kmeans4")}
    assert network.line.weight is weight
    assert set(quant.coded(network)) == {"plane", "linear"}
    assert len(quant.scales(network)) == 2


def test_scales_are_parameters_of_the_network_near_one(network):
    quant.attach(network, Plan.parse("plane=uniform4/layer; *=kmeans4"))
    known = {id(p) for p in network.parameters()}
    found = quant.scales(network)
    assert [p.numel() for p in found] == [1, 16, 5]
    assert all(id(p) in known and p.requires_grad for p in found)
    assert all(0.5 < float(p.detach().mean()) < 5 for p in found)


@pytest.mark.parametrize("text", ["*=kmeans3", "plane=uniform8; line=uniform2/layer/clip3; *=kmeans2/channel/mass"])
def test_a_state_goes_through_safetensors_into_a_fresh_network(network, tmp_path, text):
    quant.attach(network, Plan.parse(text))
    train(network)
    quant.refresh(network)
    save_file(network.state_dict(), tmp_path / "state.safetensors")
    fresh = Small()
    quant.attach(fresh, Plan.parse(text))
    fresh.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert_stored_is_seen(fresh)
    for name, coded in quant.coded(network).items():
        other = quant.coded(fresh)[name]
        for part in ("codes", "levels", "scale"):
            np.testing.assert_array_equal(getattr(coded, part), getattr(other, part))
    assert torch.equal(fresh(features()), network(features()))


def test_codes_are_in_c_order_of_the_logical_shape_in_any_memory_format(network):
    network.plane = nn.Conv2d(4, 6, 3)
    other = copy.deepcopy(network).to(memory_format=torch.channels_last)
    plan = Plan.parse("*=uniform4/channel/clip3")
    quant.attach(network, plan)
    quant.attach(other, plan)
    mine, others = quant.coded(network)["plane"], quant.coded(other)["plane"]
    np.testing.assert_array_equal(mine.codes, others.codes)
    np.testing.assert_array_equal(mine.scale, others.scale)
    assert others.codes.flags.c_contiguous
    assert_stored_is_seen(other)


def test_the_weight_stays_float32_under_autocast(network):
    quant.attach(network, Plan.parse("*=kmeans4"))
    outside = network.line.weight.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        inside = network.line.weight
        network(features()).float().square().sum().backward()
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())


def test_a_copy_is_attached_like_its_original(network):
    quant.attach(network, Plan.parse("*=kmeans2"))
    other = copy.deepcopy(network)
    train(other)
    assert_stored_is_seen(other)
    assert not torch.equal(other.line.weight, network.line.weight)


def test_a_plan_that_does_not_fit_leaves_the_network_alone(network):
    with pytest.raises(BadPlan, match="did you mean 'linear'"):
        quant.attach(network, Plan.parse("liner=kmeans2; *=kmeans4"))
    assert quant.coded(network) == {}


def test_a_second_plan_is_refused(network):
    quant.attach(network, Plan.parse("*=kmeans4"))
    with pytest.raises(BadInput, match="detach it first"):
        quant.attach(network, Plan.parse("*=kmeans2"))
