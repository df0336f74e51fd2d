"""What `describe` reads back, and what it refuses."""

import hashlib
import json

import onnx
import pytest

from sottovoce.audio.features import preset
from sottovoce.errors import BadModel
from sottovoce.export import build, describe, read_weights, save
from sottovoce.networks.cost import macs


@pytest.fixture
def path(make_model, tmp_path):
    save(make_model("resnet", "conv1=uniform8; *=kmeans2"), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_describe(path, quantized):
    found, coded = describe(path), quantized("resnet", "conv1=uniform8; *=kmeans2")[1]
    assert json.loads(json.dumps(found)) == found
    assert found["bytes"] == path.stat().st_size
    assert found["plan"] == "conv1=uniform8; *=kmeans2"
    assert found["front_end"]["name"] == "wespeaker"
    assert found["weights_match"] is True
    digest = hashlib.sha256()
    for layer in sorted(coded):
        digest.update(f"{layer}{coded[layer].shape}".encode() + coded[layer].decode().tobytes())
    assert found["weights_sha256"] == digest.hexdigest()
    assert [row["name"] for row in found["layers"]] == list(coded)
    for row in found["layers"]:
        entry = coded[row["name"]]
        assert (row["shape"], row["bits"], row["bytes"]) == (list(entry.shape), entry.bits, entry.packed_bytes)
        assert row["levels"] == (entry.levels.tolist() if entry.bits < 8 else None)
    assert found["packed_bytes"] == sum(row["bytes"] for row in found["layers"])


def test_macs_equal_those_of_the_network(path, network):
    found, config = describe(path), preset("wespeaker")
    expected = macs(network("resnet"), config.rows, config.frames(3 * config.rate))
    assert found["seconds"] == 3
    assert {row["name"]: row["macs"] for row in found["layers"]} == expected
    assert found["macs"] == sum(expected.values())
    assert found["float_layers"] == []


def test_bit_operations_multiply_the_bits_of_both_factors(path):
    rows = {row["name"]: row for row in describe(path)["layers"]}
    assert rows["conv1"]["bit_operations"] == rows["conv1"]["macs"] * 8 * 8
    assert rows["layer2.0.conv2"]["bit_operations"] == rows["layer2.0.conv2"]["macs"] * 2 * 8
    assert rows["seg_1"]["bit_operations"] == rows["seg_1"]["macs"] * 2 * 32  # a product after pooling is in float
    assert describe(path)["bit_operations"] == sum(row["bit_operations"] for row in rows.values())


@pytest.mark.parametrize("inside", [True, False])
def test_layers_in_float_cost_32_bits_a_side(inside, quantized, tmp_path):
    encoder, coded = quantized("dfresnet", "seg_1=uniform8; *=float")
    model = build(encoder, preset("wespeaker"), coded, [], metadata={}, activations="float", front_end_inside=inside)
    save(model, tmp_path / "f.onnx")
    found = describe(tmp_path / "f.onnx")
    expected = macs(encoder, 80, 298)
    assert {row["name"]: row["macs"] for row in found["float_layers"] + found["layers"]} == expected
    assert all(row["bit_operations"] == row["macs"] * 32 * 32 for row in found["float_layers"])
    assert [row["bit_operations"] for row in found["layers"]] == [expected["seg_1"] * 8 * 32]


def test_a_changed_weight_is_noticed(path):
    model = onnx.load(path)
    codes = next(tensor for tensor in model.graph.initializer if tensor.name == "layer1.0.conv1.codes")
    codes.raw_data = bytes([codes.raw_data[0] ^ 1]) + codes.raw_data[1:]
    onnx.save(model, path)
    assert describe(path)["weights_match"] is False


@pytest.mark.parametrize("content", [b"", b"RIFF....WAVE", b"\x08\x07"])
def test_files_of_others_are_refused(content, tmp_path):
    (tmp_path / "x.onnx").write_bytes(content)
    for function in (describe, read_weights):
        with pytest.raises(BadModel, match=r"x\.onnx"):
            function(tmp_path / "x.onnx")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BadModel, match=r"none\.onnx"):
        describe(tmp_path / "none.onnx")


def test_missing_parts_are_named(path):
    model = onnx.load(path)
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "layer1.0.conv1.scale"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, path)
    with pytest.raises(BadModel, match=r"layer1\.0\.conv1\.scale"):
        read_weights(path)
