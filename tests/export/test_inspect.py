"""What `describe` reads back, and what it refuses."""

import hashlib
import json

import onnx
import pytest

from sottovoce.errors import BadModel
from sottovoce.export import describe, read_weights, save


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
