"""A file in other forms computes the same; onnxruntime, fed with the features of the torch module, is the judge."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from sottovoce.audio.features import preset
from sottovoce.audio.talker import talker
from sottovoce.errors import BadInput, BadModel
from sottovoce.export import Form, metadata, read_weights, save, turn
from sottovoce.export.forms import features_in, for_sherpa, resampled_rows, shaped
from sottovoce.networks.frontend import FrontEnd

PLAN = "*=kmeans4"
NAMES = ("resnet", "ecapa", "dfresnet")


def computed(model: onnx.ModelProto, value: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact sums without VNNI too
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: value})[0]


def features(wave: np.ndarray) -> np.ndarray:
    return FrontEnd(preset("wespeaker"))(torch.from_numpy(wave)[None]).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_features_in_is_the_same_network(make_model, wave, name):
    model = make_model(name, PLAN)
    cut = features_in(model)
    assert [value.name for value in cut.graph.input] == ["features"]
    assert (computed(cut, features(wave)) @ computed(model, wave[None]).T).item() > 0.9999
    assert features_in(cut) is cut
    assert "self_test" not in metadata.read(cut)


def test_the_front_end_of_an_older_file_is_found(make_model, wave):
    model = make_model("resnet", PLAN)
    older = onnx.ModelProto()
    older.CopyFrom(model)
    for node in older.graph.node:
        node.input[:] = ["zz" if name == "features" else name for name in node.input]
        node.output[:] = ["zz" if name == "features" else name for name in node.output]
    assert np.array_equal(computed(features_in(older), features(wave)), computed(features_in(model), features(wave)))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_recordings(make_model, name):
    batch = shaped(make_model(name, PLAN), Form(features_in=True, batch=True))
    several = np.concatenate([features(talker(0.8, seed=seed)) for seed in range(3)])
    together = computed(batch, several)
    assert together.shape == (3, 16)
    for one, expected in zip(several, together, strict=True):
        assert np.abs(computed(batch, one[None])[0] - expected).max() < 2e-3


@pytest.mark.parametrize("name", NAMES)
def test_fixed_length_has_no_shape_left_to_compute(make_model, name):
    model = make_model(name, PLAN)
    only = shaped(model, Form(features_in=True, frames=98))
    assert [axis.dim_value for axis in only.graph.input[0].type.tensor_type.shape.dim] == [1, 80, 98]
    assert "Shape" not in {node.op_type for node in only.graph.node}
    value = features(talker(1.0, seed=8))
    assert np.array_equal(computed(only, value), computed(features_in(model), value))
    with pytest.raises(Exception, match="Got invalid dimensions"):
        computed(only, value[..., :90])


def test_fixed_seconds_of_audio(make_model, wave):
    model = make_model("ecapa", PLAN)
    only = shaped(model, Form(seconds=1.0))
    assert [axis.dim_value for axis in only.graph.input[0].type.tensor_type.shape.dim] == [1, 16000]
    assert np.array_equal(computed(only, wave[None]), computed(model, wave[None]))


@pytest.mark.parametrize("opset", range(13, 18))
def test_every_opset_computes_the_same(make_model, wave, opset):
    model = make_model("ecapa", PLAN)
    other = shaped(model, Form(opset=opset))
    assert [entry.version for entry in other.opset_import] == [opset]
    assert np.array_equal(computed(other, wave[None]), computed(model, wave[None]))
    assert metadata.read(other) == metadata.read(model)


def test_plain_weights_and_the_form_keep_the_weights(make_model, wave, tmp_path):
    model = make_model("resnet", PLAN)
    save(model, tmp_path / "m.onnx")
    report = turn(tmp_path / "m.onnx", Form(int8_weights=True, opset=15), tmp_path / "p.onnx")
    assert report["bytes"] == (tmp_path / "p.onnx").stat().st_size > (tmp_path / "m.onnx").stat().st_size
    plainly = onnx.load(tmp_path / "p.onnx")
    assert np.array_equal(computed(plainly, wave[None]), computed(model, wave[None]))
    turn(tmp_path / "m.onnx", Form(features_in=True, opset=17), tmp_path / "f.onnx")
    before, after = read_weights(tmp_path / "m.onnx"), read_weights(tmp_path / "f.onnx")
    assert all(before[name].decode().tobytes() == after[name].decode().tobytes() for name in before)


def test_sherpa_gets_frames_first_and_its_metadata(make_model, wave):
    model = make_model("ecapa", PLAN)
    theirs = for_sherpa(model, {"language": "English"})
    told = {entry.key: entry.value for entry in theirs.metadata_props if not entry.key.startswith(metadata.PREFIX)}
    assert told == {
        "framework": "wespeaker",
        "language": "English",
        "url": "",
        "comment": "made by sottovoce",
        "sample_rate": "16000",
        "output_dim": "16",
        "normalize_samples": "0",
        "feature_normalize_type": "global-mean",
    }
    frames = features(wave).transpose(0, 2, 1)
    moved = frames + np.linspace(-3, 3, 80, dtype=np.float32)  # what a window changes in all frames alike
    assert np.abs(computed(theirs, frames) - computed(theirs, moved)).max() < 2e-2
    expected = computed(
        features_in(model), np.ascontiguousarray((frames @ resampled_rows(preset("wespeaker"))).transpose(0, 2, 1))
    )
    assert (computed(theirs, frames) @ expected.T).item() > 0.99


def test_rows_are_put_where_ours_lie():
    config = preset("wespeaker")
    matrix = resampled_rows(config).astype(np.float64)
    assert np.allclose(matrix.sum(axis=0), 1)

    def centres(high: float) -> np.ndarray:
        edges = np.linspace(*(1127 * np.log1p(hz / 700) for hz in (20.0, high)), 82)
        return edges[1:-1]

    inside = centres(8000.0) <= centres(7600.0)[-1]
    assert np.allclose((centres(7600.0) @ matrix)[inside], centres(8000.0)[inside], atol=1e-3)


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (Form(batch=True), "features in"),
        (Form(frames=100), "features-in"),
        (Form(features_in=True, frames=100, seconds=1.0), "seconds"),
        (Form(opset=18), "13 to 17"),
        (Form(engine="other"), "unknown"),
        (Form(seconds=0.001), "minimum"),
    ],
)
def test_what_cannot_be_is_refused(make_model, form, told):
    with pytest.raises(BadInput, match=told):
        shaped(make_model("resnet", PLAN), form)


def test_a_file_of_others_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(BadModel):
        turn(tmp_path / "m.onnx", Form(), tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()
