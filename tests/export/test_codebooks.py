"""Files with a codebook for each channel, and with every family: integer convolutions, equal to their plain twin."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from torch import nn

from sottovoce.bits.plan import Plan, plan_bytes
from sottovoce.errors import BadInput
from sottovoce.export import plain, read_weights, save
from sottovoce.quant import quantizable

PLANS = [
    "*=kmeans4/codebook",
    "*=kmeans3/codebook/learned",
    "conv1=uniform8; *=kmeans2/codebook/mass",
    "*=binary/codebook",
    "conv1=lsq8; *conv1=pot4; *conv2=apot3; *=ternary",
]


def optimised(model: onnx.ModelProto, folder) -> Counter:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


@pytest.mark.parametrize(("name", "plan"), [*(("resnet", plan) for plan in PLANS), ("ecapa", PLANS[1])])
def test_integer_convolutions_equal_to_the_plain_twin(name, plan, make_model, quantized, network, run, wave, tmp_path):
    model = make_model(name, plan)
    assert run(model, wave).tobytes() == run(plain(model), wave).tobytes()
    found = optimised(model, tmp_path)
    layers = sum(isinstance(m, (nn.Conv1d, nn.Conv2d)) for m in network(name).modules())
    assert found["QLinearConv"] == layers + (name == "ecapa")  # whose attention sees the whole recording as well
    assert found["Range"] == found["Conv"] == found["FusedConv"] == 0

    save(model, tmp_path / "m.onnx")
    back, coded = read_weights(tmp_path / "m.onnx"), quantized(name, plan)[1]
    for layer, entry in coded.items():
        assert back[layer].decode().tobytes() == entry.decode().tobytes()
        assert back[layer].levels.shape == entry.levels.shape


@pytest.mark.parametrize("plan", PLANS)
def test_the_bytes_of_the_weights_are_those_of_the_plan(plan, make_model, network):
    stored = make_model("resnet", plan).graph.initializer
    names = tuple(quantizable(network("resnet")))
    sizes = [
        onnx.numpy_helper.to_array(tensor).nbytes
        for tensor in stored
        if tensor.name.endswith((".codes", ".levels", ".scale")) and tensor.name.startswith(names)
    ]
    assert sum(sizes) == plan_bytes(Plan.parse(plan), quantizable(network("resnet")))


@pytest.mark.parametrize("plan", [PLANS[0], PLANS[3]])
def test_openvino_decodes_codebooks_of_channels(plan, make_model, wave, tmp_path):
    pytest.importorskip("openvino", reason="an optional engine")
    from sottovoce.runtime import engine
    from sottovoce.runtime.engine import load

    save(make_model("resnet", plan), tmp_path / "m.onnx")
    if engine._sums_overflow():
        with pytest.raises(BadInput, match="VNNI"):
            load(tmp_path / "m.onnx", engine="openvino")
        return
    ours, theirs = load(tmp_path / "m.onnx"), load(tmp_path / "m.onnx", engine="openvino")
    assert np.abs(ours.embed(wave) - theirs.embed(wave)).max() < 0.02  # some values lie between two steps of uint8
