"""Every architecture: parameter counts and tensor names as published, shapes, shortest input."""

from __future__ import annotations

import pytest
import torch

from sottovoce import networks
from sottovoce.errors import BadInput


def count(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def build(kind: str, **settings: object) -> torch.nn.Module:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return networks.build(kind, **settings)


@pytest.mark.parametrize(
    ("kind", "settings", "parameters", "tensors"),
    [
        ("resnet34", {}, 6_634_336, 218),
        ("resnet18", {}, 4_105_440, None),
        ("resnet50", {}, 11_131_360, None),
        ("resnet101", {}, 15_892_448, None),
        ("resnet152", {}, 19_814_880, None),
        ("resnet221", {}, 23_792_224, None),
        ("resnet293", {}, 28_626_016, None),
        ("ecapa512", {}, 6_190_720, 221),
        ("ecapa512", {"context": False}, 5_797_504, None),
        ("ecapa1024", {}, 14_657_088, None),
        ("ecapa1024", {"context": False}, 14_263_872, None),
        ("ecapa1024-speechbrain", {}, 20_767_552, 231),  # of SpeechBrain
        ("resnet34", {"dim": 192, "two_layers": True}, 6_343_648, None),  # of 3D-Speaker: 6.34 M
        ("gemini60", {}, 4_047_840, None),
        ("gemini114", {}, 6_531_552, 680),
        ("gemini183", {}, 9_196_384, None),
        ("gemini237", {}, 11_680_096, None),
    ],
)
def test_counts_equal_the_toolkits(kind: str, settings: dict, parameters: int, tensors: int | None) -> None:
    network = build(kind, **settings)
    assert count(network) == parameters
    assert tensors is None or len(network.state_dict()) == tensors


@pytest.mark.parametrize(
    ("kind", "millions"),
    [
        ("ecapa256-c", 3.11),
        ("ecapa512-c", 5.95),
        ("ecapa1024-c", 14.38),
        ("resnet34-c", 6.9),
        ("resnet18-c", 4.37),
        ("dfresnet56", 4.70),  # with our reading of its strides; published: 4.5
        ("dfresnet110", 7.19),
        ("dfresnet179", 9.85),
        ("dfresnet233", 12.34),  # published: 12.3
        ("resnet36-d", 14.925),
        ("resnet200-d", 59.94),
    ],
)
def test_counts_equal_the_papers_to_the_last_digit_given(kind: str, millions: float) -> None:
    digits = len(str(millions).partition(".")[2])
    assert round(count(build(kind)) / 1e6, digits) == millions


def test_the_variant_of_paper_a_has_its_parameters() -> None:
    network = build("ecapa1024-a")
    assert count(network) == 15_444_544
    sizes = {name: t.numel() for name, t in network.state_dict().items() if t.ndim >= 2}
    assert sizes["layer1.conv.weight"] == 409_600
    assert sizes["conv.weight"] == 4_718_592
    assert sizes["pool.linear1.weight"] + sizes["pool.linear2.weight"] == 1_572_864
    assert sum(size for name, size in sizes.items() if name.startswith("layer3.")) == 2_703_360


@pytest.mark.parametrize(
    ("kind", "weights", "modules", "rows"),
    [("resnet36-d", 14_894_208, 53, 12_160), ("resnet200-d", 59_835_520, 259, None)],
)
def test_quantizable_weights_equal_those_of_paper_d(kind: str, weights: int, modules: int, rows: int | None) -> None:
    kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Linear)
    found = [module.weight for module in build(kind).modules() if isinstance(module, kinds)]
    assert (sum(w.numel() for w in found), len(found)) == (weights, modules)
    assert rows is None or sum(len(w) for w in found) == rows


def test_parts_of_resnet36_have_the_weights_of_paper_d() -> None:
    sizes = {name: t.numel() for name, t in build("resnet36-d").state_dict().items() if t.ndim >= 2}
    parts = {"layer1": 0.983, "layer2": 1.327, "layer3": 6.816, "layer4": 3.604, "pool": 0.721, "seg_1": 1.442}
    for part, millions in parts.items():
        assert round(sum(size for name, size in sizes.items() if name.startswith(f"{part}.")) / 1e6, 3) == millions


def test_gemini_names_and_shapes_equal_wespeaker() -> None:
    shapes = {name: tuple(t.shape) for name, t in build("gemini114").state_dict().items()}
    downs = [shapes[f"downsample_layers.{i}.0.weight"][:2] for i in range(5)]
    assert downs == [(32, 1), (32, 32), (64, 32), (128, 64), (256, 128)]
    assert shapes["downsample_layers.4.1.running_var"] == (256,)
    assert shapes["stages.2.26.conv1.weight"] == (512, 128, 1, 1)
    assert shapes["stages.2.26.conv2.weight"] == (512, 1, 3, 3)
    assert shapes["stages.2.26.conv3.weight"] == (128, 512, 1, 1)
    assert shapes["stages.0.0.bn2.weight"] == (128,)
    assert shapes["seg_1.weight"] == (256, 2560)


def test_resnet_names_and_shapes_equal_wespeaker() -> None:
    shapes = {name: tuple(t.shape) for name, t in networks.build("resnet34").state_dict().items()}
    assert shapes["conv1.weight"] == (32, 1, 3, 3)
    assert shapes["bn1.running_var"] == (32,)
    assert shapes["layer3.5.conv2.weight"] == (128, 128, 3, 3)
    assert shapes["layer2.0.shortcut.0.weight"] == (64, 32, 1, 1)
    assert shapes["layer2.0.shortcut.1.num_batches_tracked"] == ()
    assert shapes["seg_1.weight"] == (256, 5120)
    assert "layer1.0.shortcut.0.weight" not in shapes


def test_ecapa_names_and_shapes_equal_wespeaker() -> None:
    shapes = {name: tuple(t.shape) for name, t in networks.build("ecapa512").state_dict().items()}
    assert shapes["layer1.conv.weight"] == (512, 80, 5)
    assert shapes["layer2.se_res2block.0.conv.weight"] == (512, 512, 1)
    assert shapes["layer3.se_res2block.1.convs.6.weight"] == (64, 64, 3)
    assert shapes["layer3.se_res2block.1.bns.6.running_mean"] == (64,)
    assert shapes["layer4.se_res2block.3.linear1.weight"] == (128, 512)
    assert shapes["conv.weight"] == (1536, 1536, 1)
    assert shapes["pool.linear1.weight"] == (128, 4608, 1)
    assert shapes["pool.linear2.weight"] == (1536, 128, 1)
    assert shapes["bn.weight"] == (3072,)
    assert shapes["linear.weight"] == (192, 3072)


PLAIN = {
    "resnet": ("resnet", {"blocks": (1, 1, 1, 1), "width": 8}),
    "ecapa": ("ecapa", {"width": 32, "aggregate": 64}),
    "gemini": ("dfresnet", {"depths": (1, 1, 2, 1), "dims": (8, 8, 16, 32, 64), "dim": 32}),
}
VARIANTS = {
    "bottleneck": ("resnet", {"blocks": (1, 1), "width": 4, "block": "bottleneck"}),
    "speechbrain": ("ecapa1024-speechbrain", {"width": 32, "aggregate": 64}),
    "taoruijie": ("ecapa1024-a", {"width": 32, "aggregate": 64, "statistics": "taoruijie"}),
    "two layers": ("resnet", {"blocks": (1, 1), "width": 4, "two_layers": True}),
    "paper-a": ("ecapa1024-a", {"width": 32, "aggregate": 64}),
    "paper-c": ("ecapa256-c", {"width": 32, "aggregate": 64, "mels": 80}),
    "resnet of paper-c": ("resnet18-c", {"width": 4, "mels": 80}),
    "resnet36": ("resnet36-d", {"blocks": (1, 1, 1, 1), "width": 4, "mels": 80}),
    "resnet200": ("resnet200-d", {"blocks": (1, 2, 1, 1), "width": 4, "mels": 80}),
}


@pytest.mark.parametrize("name", PLAIN)
def test_one_frame_less_than_the_shortest_input_is_not_finite(name: str) -> None:
    kind, settings = PLAIN[name]
    network = networks.build(kind, **settings).eval()
    with torch.no_grad():
        assert not torch.isfinite(network(torch.randn(2, 80, network.min_frames - 1))).all()


@pytest.mark.parametrize("name", [*PLAIN, *VARIANTS])
def test_the_shortest_input_is_finite_and_trains(name: str) -> None:
    kind, settings = {**PLAIN, **VARIANTS}[name]
    network = networks.build(kind, **settings)
    network(torch.randn(3, 80, 50)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    network.eval()
    with torch.no_grad():
        assert torch.isfinite(network(torch.randn(2, 80, network.min_frames))).all()
        assert network(torch.randn(3, 80, 50)).shape == (3, network.dim)


def test_blocks_of_a_dense_ecapa_read_the_sum_of_all_before() -> None:
    network = networks.build("ecapa512-a", width=32, aggregate=64).eval()
    seen: dict[str, torch.Tensor] = {}
    for name in ("layer1", "layer2", "layer3", "layer4"):
        layer = network.get_submodule(name)
        layer.register_forward_hook(lambda _, x, y, name=name: seen.update({name: y, f"{name} read": x[0]}))
    with torch.no_grad():
        network(torch.randn(1, 80, 20))
    assert torch.equal(seen["layer2 read"], seen["layer1"])
    assert torch.equal(seen["layer3 read"], seen["layer1"] + seen["layer2"])
    assert torch.equal(seen["layer4 read"], seen["layer1"] + seen["layer2"] + seen["layer3"])


@pytest.mark.parametrize(("context", "inputs"), [(0, 6), (1, 12), (2, 18)])
def test_attention_sees_as_much_of_the_recording_as_asked(context: int, inputs: int) -> None:
    pool = networks.ecapa.AttentivePool(6, 4, context).eval()
    assert pool.linear1.in_channels == inputs
    x = torch.randn(2, 3, 2, 9)
    assert torch.equal(pool(x), pool(x.reshape(2, 6, 9)))


def test_standard_deviation_is_the_unbiased_one() -> None:
    x = torch.randn(2, 3, 7)
    mean, std = networks.resnet.StatisticsPool()(x).chunk(2, dim=1)
    assert torch.allclose(mean, x.mean(-1), atol=1e-6)
    assert torch.allclose(std, (x.var(-1) + 1e-7).sqrt(), atol=1e-6)


def test_unknown_networks_and_settings_name_the_nearest() -> None:
    with pytest.raises(BadInput, match="resnet34"):
        networks.build("resnet43")
    with pytest.raises(BadInput, match="width"):
        networks.build("resnet", widht=16)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("resnet", {"block": "bottlenek"}, "bottleneck"),
        ("resnet", {"blocks": (1, 1, 1, 1, 1)}, "growth"),
        ("ecapa", {"padding": "mirror"}, "zeros, reflect"),
        ("ecapa", {"statistics": "kaldi"}, "wespeaker, speechbrain, taoruijie"),
        ("dfresnet", {"dims": (8, 8)}, "4 depths need 5 dims"),
        ("dfresnet", {"strides": [[2, 2]]}, "and 1$"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(kind: str, settings: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        networks.build(kind, **settings)


def test_lists_from_a_recipe_become_tuples() -> None:
    network = networks.build("dfresnet", depths=[1], dims=[8, 8], strides=[[2, 1]])
    assert network.config.strides == ((2, 1),)
