"""The built file: equal to its plain twin, integer where it must be, near the network it was made from."""

import re
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from sottovoce.audio.features import preset
from sottovoce.audio.talker import talker
from sottovoce.bits.formats import FORMATS, Coded
from sottovoce.bits.plan import Spec
from sottovoce.errors import BadInput
from sottovoce.export import build, plain, read_weights, save
from sottovoce.export import metadata as about
from sottovoce.export.assemble import LARGEST_BIAS, _integer_bias
from sottovoce.export.twin import unrounded
from sottovoce.networks import build as build_network
from sottovoce.networks.frontend import FrontEnd

FRONT_END = preset("wespeaker")
PLANS = [
    "*=uniform8",
    "*=kmeans4",
    "*=kmeans3",
    "*=uniform2",
    "*=kmeans1",
    "*=kmeans4/layer",
    "*1*=float; *=kmeans2",
]
NAMES = ["resnet", "ecapa", "dfresnet"]


def optimised(model: onnx.ModelProto, folder) -> Counter:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def embed(encoder: nn.Module, wave: np.ndarray, front_end: str = "wespeaker") -> np.ndarray:
    with torch.no_grad():
        return nn.functional.normalize(encoder(FrontEnd(front_end)(torch.from_numpy(wave)[None])))[0].numpy()


def convolutions(encoder: nn.Module, model: onnx.ModelProto) -> int:
    """Convolutions that a file has: those of the network, and another where one of them is computed in two parts."""
    layers = sum(isinstance(module, (nn.Conv1d, nn.Conv2d)) for module in encoder.modules())
    scaled = {node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return layers + sum(node.op_type == "Split" and set(node.output) <= scaled for node in model.graph.node)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", NAMES)
def test_equal_to_the_plain_twin_bit_for_bit(name, plan, make_model, run):
    model = make_model(name, plan)
    for seed in (1, 2):
        wave = talker(0.7, seed=seed)
        assert run(model, wave).tobytes() == run(plain(model), wave).tobytes()


@pytest.mark.parametrize("plan", PLANS[:5])
@pytest.mark.parametrize("name", NAMES)
def test_every_convolution_runs_in_integers(name, plan, make_model, network, tmp_path):
    model = make_model(name, plan)
    found = optimised(model, tmp_path)
    assert found["QLinearConv"] == convolutions(network(name), model)
    assert found["Conv"] == found["FusedConv"] == found["ConvInteger"] == 0


VARIANTS = {
    "ecapa of paper-a": "wespeaker",
    "ecapa of paper-c": "paper-c",
    "resnet of paper-c": "paper-c",
    "bottleneck": "wespeaker",
    "ecapa of speechbrain": "speechbrain",
    "ecapa of taoruijie": "taoruijie",
    "two layers": "3dspeaker",
    "resnet36": "kiwano",
    "resnet200": "kiwano",
    "campplus": "wespeaker",
    "simam": "wespeaker",
    "eres2net": "wespeaker",
    "eres2netv2": "wespeaker",
    "sbresnet": "wespeaker",
    "redimnet": "wespeaker",
    "redimnet gated": "wespeaker",
    "resnetse34l": "wespeaker",
    "resnetse34v2": "paper-c",
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_runs_in_integers_and_equals_its_twin(name, make_model, quantized, run, wave, tmp_path):
    model, encoder = make_model(name, "*=kmeans3"), quantized(name, "*=kmeans3")[0]
    found = optimised(model, tmp_path)
    assert found["QLinearConv"] == convolutions(encoder, model)
    assert found["Conv"] == found["FusedConv"] == found["ConvInteger"] == 0
    assert run(model, wave).tobytes() == run(plain(model), wave).tobytes()
    expected = embed(encoder, wave, VARIANTS[name])
    assert np.abs(run(model, wave) - expected).max() < 0.05  # 8 bits of activations give 0.01
    peer = unrounded(make_model(name, "*=kmeans3", centred=False))
    np.testing.assert_allclose(run(peer, wave), expected, atol=1e-3)  # biases stay rounded


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", NAMES)
def test_weights_come_back_from_the_file(name, plan, make_model, quantized, tmp_path):
    save(make_model(name, plan), tmp_path / "m.onnx")
    back, coded = read_weights(tmp_path / "m.onnx"), quantized(name, plan)[1]
    assert list(back) == list(coded)
    for layer, entry in coded.items():
        assert back[layer].decode().tobytes() == entry.decode().tobytes()
        assert str(back[layer].spec) == str(entry.spec)


@pytest.mark.parametrize("name", [*NAMES, *VARIANTS])
def test_float_file_equals_the_network(name, network, wave, run):
    front_end = VARIANTS.get(name, "wespeaker")
    model = build(network(name), preset(front_end), {}, [], metadata={}, activations="float")
    for part in (wave, wave[:9000]):  # traced on another number of frames
        expected = embed(network(name), part, front_end)
        np.testing.assert_allclose(run(model, part), expected, atol=2e-5)  # order of float32 sums


@pytest.mark.parametrize("name", NAMES)
def test_coded_weights_without_rounded_activations_equal_the_network(name, quantized, wave, run):
    encoder, coded = quantized(name, "*=kmeans3")
    model = build(encoder, FRONT_END, coded, [], metadata={}, activations="float")
    np.testing.assert_allclose(run(model, wave), embed(encoder, wave), atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_rounded_activations_stay_near_the_network(name, make_model, quantized, wave, run):
    found, expected = run(make_model(name, "*=kmeans4"), wave), embed(quantized(name, "*=kmeans4")[0], wave)
    assert np.abs(found - expected).max() < 0.05  # of a unit vector with 16 numbers, each near 0.25; 8 bits give 0.01
    assert np.abs(found - expected).max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_float_peer_made_from_a_file_equals_the_network(name, make_model, quantized, wave, run):
    model = unrounded(make_model(name, "*=kmeans2", centred=False))
    # biases were rounded to integers in the file, and keep that rounding
    np.testing.assert_allclose(run(model, wave), embed(quantized(name, "*=kmeans2")[0], wave), atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_openvino_agrees_within_its_rounding(name, make_model, tmp_path):
    pytest.importorskip("openvino", reason="an optional engine")
    from sottovoce.runtime import engine
    from sottovoce.runtime.engine import load

    save(make_model(name, "*=kmeans2"), tmp_path / "m.onnx")
    if engine._sums_overflow():
        with pytest.raises(BadInput, match="VNNI"):
            load(tmp_path / "m.onnx", engine="openvino")
        return
    ours, theirs = load(tmp_path / "m.onnx"), load(tmp_path / "m.onnx", engine="openvino")
    wave = talker(1.0, seed=9)
    assert np.abs(ours.embed(wave) - theirs.embed(wave)).max() < 0.02  # some values lie between two steps of uint8
    assert theirs.self_test()["cosine"] > 0.99  # and not below what the file demands


@pytest.mark.parametrize("name", NAMES)
def test_the_self_test_allows_for_what_the_network_makes_of_roundings(name, make_model, run):
    model = make_model(name, "*=kmeans4")
    least = about.read(model)["self_test"]["least_cosine"]
    assert 0.98 <= least <= 0.999
    noise = np.random.default_rng(1).standard_normal(32000).astype(np.float32)
    signal = talker(2.0, seed=1)
    assert float(run(model, signal) @ run(model, signal * (1 + np.float32(1e-5) * noise))) > least


def test_features_in(network, quantized, wave, run):
    encoder, coded = quantized("resnet", "*=kmeans4")
    whole = build(encoder, FRONT_END, coded, [wave], metadata={})
    model = build(encoder, FRONT_END, coded, [wave], metadata={}, front_end_inside=False)
    assert [value.name for value in model.graph.input] == ["features"]
    features = FrontEnd()(torch.from_numpy(wave)[None])[0].numpy()
    assert np.abs(run(model, features) - run(whole, wave)).max() < 0.02  # the same but for roundings at a step's edge


@pytest.mark.parametrize("name", NAMES)
def test_the_shortest_input_gives_a_finite_embedding(name, make_model, network, run):
    shortest = FRONT_END.samples(network(name).min_frames)
    assert np.isfinite(run(make_model(name, "*=kmeans4"), talker(1.0, seed=1)[:shortest])).all()


def test_metadata_tell_what_is_needed(make_model, network):
    entries = {entry.key: entry.value for entry in make_model("resnet", "*=kmeans4").metadata_props}
    for name in ("format_version", "front_end", "dim", "rate", "min_samples", "weights_sha256", "self_test", "plan"):
        assert f"sottovoce.{name}" in entries
    assert entries["sottovoce.min_samples"] == str(FRONT_END.samples(network("resnet").min_frames))


def test_gains_that_are_not_positive_are_refused(quantized, wave):
    encoder, coded = quantized("resnet", "*=kmeans4")
    encoder.bn1.weight.data[2] = -1
    with pytest.raises(BadInput, match=r"1 batch-norm gains after conv1\.weight.*positive_gains"):
        build(encoder, FRONT_END, coded, [wave], metadata={})


def test_ranges_need_recordings(quantized):
    encoder, coded = quantized("resnet", "*=kmeans4")
    with pytest.raises(BadInput, match="no recordings"):
        build(encoder, FRONT_END, coded, [], metadata={})


def test_unknown_names_are_refused(quantized, wave):
    encoder, coded = quantized("resnet", "*=kmeans4")
    with pytest.raises(BadInput, match="uint8, float"):
        build(encoder, FRONT_END, coded, [wave], metadata={}, activations="int4")
    with pytest.raises(BadInput, match=re.escape("ghost.weight")):
        build(encoder, FRONT_END, {**coded, "ghost": coded["conv1"]}, [wave], metadata={})


def test_a_bias_that_would_not_fit_raises_its_gain():
    scale, step = np.full(2, 1e-3, dtype=np.float32), np.float32(0.01)
    bias, gain = _integer_bias(np.float32([0.5, 0.5]), scale, np.float32([1e-6, 1.0]), step)
    assert bias.tolist() == [pytest.approx(LARGEST_BIAS, rel=1e-5), 50000]
    assert gain[0] == pytest.approx(0.5 / (1e-5 * LARGEST_BIAS))
    assert gain[1] == 1
    with pytest.raises(BadInput, match="billion"):
        _integer_bias(np.float32([1e9, 0]), scale, None, step)


def test_save_leaves_only_the_file(make_model, tmp_path):
    save(make_model("resnet", "*=kmeans4"), tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def one_bit(encoder: nn.Module) -> dict[str, Coded]:
    """Signs of the weights as codes, quickly."""
    coded = {}
    for layer, module in encoder.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            weight = module.weight.detach().numpy()
            scale = np.abs(weight).reshape(len(weight), -1).mean(axis=1).astype(np.float32)
            levels = np.array(FORMATS["uniform1"].levels, dtype=np.int8)
            coded[layer] = Coded(Spec("uniform1"), weight.shape, (weight > 0).astype(np.uint8), levels, scale)
    return coded


@pytest.mark.parametrize("name", ["resnet34", "ecapa512"])
def test_all_but_the_codes_takes_less_than_250_kb(name):
    encoder = build_network(name).eval()
    coded = one_bit(encoder)
    model = build(encoder, FRONT_END, coded, [talker(0.3, seed=1)], metadata={})
    weights = sum(entry.codes.size for entry in coded.values())
    assert model.ByteSize() <= 1.03 * weights / 8 + 250_000
