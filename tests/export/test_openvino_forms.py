"""Forms of a file in OpenVINO beside onnxruntime: all of two architectures, two of every other."""

from __future__ import annotations

import io

import numpy as np
import onnx
import onnxruntime
import pytest

from sottovoce.audio.features import FrontEndConfig
from sottovoce.audio.talker import talker
from sottovoce.export import metadata as about
from sottovoce.export.forms import Form, shaped
from sottovoce.export.twin import unrounded
from sottovoce.runtime import engine

openvino = pytest.importorskip("openvino", reason="an optional engine")


NAMES = ["resnet", "ecapa", "dfresnet", "campplus", "simam", "eres2net", "eres2netv2", "sbresnet", "redimnet"]
NAMES += ["redimnet gated", "resnetse34l", "resnetse34v2", "resnet36"]
SECONDS, FRAMES = 1.0, 98
FORMS = {
    "waveform in": Form(),
    "features in": Form(features_in=True),
    "int8 weights": Form(int8_weights=True),
    "one length": Form(seconds=SECONDS),
    "one length, features in": Form(features_in=True, frames=FRAMES),
    "batch": Form(features_in=True, batch=True),
    "batch, int8 weights, opset 17": Form(features_in=True, batch=True, int8_weights=True, opset=17),
}
WHOLE = ("resnet", "campplus")  # architectures whose forms are all tried; all of every one agree, and take minutes
FEW = ("waveform in", "batch, int8 weights, opset 17")
PAIRS = [(name, form) for name in NAMES for form in (FORMS if name in WHOLE else FEW)]
LEAST = 0.995  # cosine: values between two steps of uint8 are rounded to either, and small networks magnify that


def given(model: onnx.ModelProto, form: Form) -> np.ndarray:
    if not form.features_in:
        return talker(SECONDS, seed=9)[None]
    rows = FrontEndConfig(**about.read(model)["front_end"]).rows
    return np.random.default_rng(0).standard_normal((3 if form.batch else 1, rows, FRAMES)).astype(np.float32)


def in_openvino(model: onnx.ModelProto, fed: np.ndarray) -> np.ndarray:
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(io.BytesIO(model.SerializeToString())), "CPU", settings)
    return np.array(compiled.create_infer_request().infer([fed])[compiled.output(0)])


def in_onnxruntime(model: onnx.ModelProto, fed: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: fed})[0])


@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_openvino_computes_what_onnxruntime_does(name: str, form: str, make_model) -> None:
    if engine._sums_overflow():
        pytest.skip("without VNNI OpenVINO adds 8-bit products in 16 bits, which `load` refuses")
    model = shaped(make_model(name, "*=kmeans4"), FORMS[form])
    fed = given(make_model(name, "*=kmeans4"), FORMS[form])
    ours, theirs = in_onnxruntime(model, fed), in_openvino(model, fed)
    assert theirs.shape == ours.shape == (len(fed), 16)
    assert np.sum(ours * theirs, axis=1).min() > LEAST


@pytest.mark.parametrize("name", WHOLE)
def test_the_float_graph_is_the_same_to_the_last_digits(name: str, make_model) -> None:
    model = unrounded(make_model(name, "*=kmeans4"))
    fed = talker(SECONDS, seed=9)[None]
    np.testing.assert_allclose(in_openvino(model, fed), in_onnxruntime(model, fed), atol=2e-5)
