"""The mean of every layer's output stays that of the float graph, and one number is worked out by hand."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest

from sottovoce.audio.features import preset
from sottovoce.audio.talker import talker
from sottovoce.export.activations import find_region, round_tensors
from sottovoce.export.frontend import add_front_end
from sottovoce.export.graph import Graph
from sottovoce.export.norms import fold_norms_behind_relu
from sottovoce.export.ranges import minmax_range, observe
from sottovoce.export.shifts import mean_shifts, remove_shifts
from sottovoce.export.trace import FEATURES, fold_norms, trace

WAVES = [talker(0.6, seed=seed) for seed in range(4)]


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # left to itself it rounds the float weights between roundings too
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def layers(graph: Graph) -> list[str]:
    return [node.output[0] for node in graph.nodes if node.op_type in ("Conv", "Gemm")]


def run(graph: Graph, names: list[str]) -> list[list[np.ndarray]]:
    engine = session(graph.model(extra_outputs=names))
    return [engine.run(names, {"wave": wave[None]}) for wave in WAVES]


def means(graph: Graph, names: list[str]) -> list[np.ndarray]:
    """Mean over recordings and positions of each tensor, (channels,)."""
    found = [[value.mean(axis=(0, *range(2, value.ndim))) for value in values] for values in run(graph, names)]
    return [np.mean(one, axis=0) for one in zip(*found, strict=True)]


@pytest.fixture(scope="module", params=["ecapa", "ecapa of paper-a"])
def graphs(request, network):
    """A float graph, the same rounded coarsely, and rounded with the means taken back."""
    front_end = preset("wespeaker")
    plain = trace(network(request.param), front_end.rows)
    fold_norms_behind_relu(plain, fold_norms(plain))
    add_front_end(plain, front_end, FEATURES)
    weights = {name for name in plain.constants if name.endswith(".weight")}
    region, rounded, settled = find_region(plain, weights), copy.deepcopy(plain), copy.deepcopy(plain)
    grids = [minmax_range(histogram) for histogram in observe(plain, region.groups, WAVES)]
    coarse = [(np.float32(16 * scale), np.uint8(np.rint(zero / 16))) for scale, zero in grids]
    round_tensors(rounded, find_region(rounded, weights), coarse)
    round_tensors(settled, find_region(settled, weights), coarse, settled=True)
    remove_shifts(settled, mean_shifts(plain, settled, WAVES))
    return plain, rounded, settled


def test_the_mean_of_what_layers_put_out_is_that_of_the_float_graph(graphs):
    plain, rounded, settled = graphs
    names = layers(plain)
    moved = {name: moved_by(plain, name) for name in names}
    float_values = dict(zip(names, means(plain, names), strict=True))
    before = dict(zip(names, means(rounded, names), strict=True))
    after = dict(zip(names, means(settled, names), strict=True))
    left = [np.abs(after[name] - float_values[name] - moved[name]).mean() for name in names]
    shift = [np.abs(before[name] - float_values[name]).mean() for name in names]
    assert sum(left) < 0.5 * sum(shift)  # corrections are local: what the layers before put out differs a little


def moved_by(plain: Graph, layer: str) -> np.ndarray | float:
    """By how much a layer's output moves: by the bound behind it, which is added again once it is rounded."""
    bounds = [plain.constants[node.input[1]] for node in plain.consumers(layer) if node.op_type == "Max"]
    return -bounds[0].reshape(-1) if bounds else 0.0


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("group", [1, 4])
def test_what_padding_and_stride_leave_of_a_shift_is_exact(group, turned):
    rng = np.random.default_rng(3)
    graph = Graph()
    shape = [1, 8, "frames", 4] if turned else [1, 8, 4, "frames"]
    graph.inputs, graph.outputs = {"wave": [1, 4, 7, "frames"]}, {"y": shape}
    graph.constants["a.weight"] = np.eye(4, dtype=np.float32)[:, :, None, None] * 0.37
    graph.constants["b.weight"] = rng.normal(size=(8, 4 // group, 3, 3)).astype(np.float32)
    graph.constants["b.bias"] = rng.normal(size=8).astype(np.float32)
    read = graph.add("Transpose", "wave", perm=[0, 1, 3, 2]) if turned else "wave"
    graph.add("Relu", graph.add("Conv", read, "a.weight", kernel_shape=[1, 1]), output="x")
    strides = [1, 2] if turned else [2, 1]
    attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": strides, "group": group}
    graph.add("Conv", "x", "b.weight", "b.bias", output="y", **attributes)
    rounded = copy.deepcopy(graph)
    region = find_region(rounded, {"a.weight", "b.weight"})
    grids = {"wave": (np.float32(1), np.uint8(128)), "x": (np.float32(1), np.uint8(0))}
    # the input is on its grid, and the output's is fine: only what stands between the two layers is rounded
    fine = (np.float32(1e-4), np.uint8(128))
    wave = np.round(3 * rng.normal(size=(4, 7, 400))).astype(np.float32)
    wave[..., [0, -1]] = 0  # the ends, which a mean over time does not tell apart
    known = [next((grids[name] for name in group if name in grids), fine) for group in region.groups]
    round_tensors(rounded, region, known)
    rounded.outputs = {}
    (before,) = session(graph.model()).run(["y"], {"wave": wave[None]})
    sums = next(node for node in rounded.nodes if node.op_type == "Conv" and node.input[1] == "b.weight").output[0]
    (after,) = session(rounded.model(extra_outputs=[sums])).run([sums], {"wave": wave[None]})
    expected = (after - before).mean(axis=(0, 2, 3))
    assert np.abs(expected).min() > 0.001
    np.testing.assert_allclose(mean_shifts(graph, rounded, [wave])["y"], expected, atol=1e-5)


def test_a_shift_worked_out_by_hand():
    graph = Graph()
    graph.inputs, graph.outputs = {"wave": [1, 2, "frames"]}, {"y": [1, 2, "frames"]}
    graph.constants["a.weight"] = np.float32([[[2]], [[-1]]])
    graph.add("Conv", "wave", "a.weight", output="y", group=2, kernel_shape=[1])
    rounded = copy.deepcopy(graph)
    region = find_region(rounded, {"a.weight"})
    assert region.groups == [["wave"], ["y"]]
    round_tensors(rounded, region, [(np.float32(1), np.uint8(0)), (np.float32(1), np.uint8(128))])
    wave = np.float32([[0.3, 0.3, 1, 1], [0, 0.75, 0, 0.75]])  # rounding adds -0.15 and +0.125 on average
    shifts = mean_shifts(graph, rounded, [wave])
    np.testing.assert_allclose(shifts["y"], [-0.3, -0.125], rtol=1e-6)
    remove_shifts(rounded, shifts)
    np.testing.assert_allclose(rounded.constants["a.bias"], [0.3, 0.125], rtol=1e-6)


def test_nothing_rounded_shifts_nothing():
    graph = Graph()
    graph.inputs, graph.outputs = {"wave": [1, 1, "frames"]}, {"y": [1, 1, "frames"]}
    graph.constants["a.weight"] = np.ones((1, 1, 1), np.float32)
    graph.add("Conv", "wave", "a.weight", output="y")
    assert mean_shifts(graph, graph, [np.ones((1, 3), np.float32)]) == {}
