"""The look-up pattern, decoded by onnxruntime, against NumPy's decode: equal bit for bit."""

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.bits.formats import FORMATS, WIDTHS, Coded
from sottovoce.bits.plan import Spec, every_spec, stored_bytes
from sottovoce.export.graph import Graph
from sottovoce.export.weights import float_weight, look_ups, quantized_weight, read


def make_coded(name: str, shape: tuple[int, ...], granularity: str = "channel", seed: int = 0) -> Coded:
    rng, form = np.random.default_rng(seed), FORMATS[name]
    rows = (shape[0],) if granularity == "codebook" else ()
    grid = np.arange(-127, 128)
    books = [rng.choice(grid, 2**form.bits, replace=form.bits == 8) for _ in range(*rows or (1,))]
    levels = np.array(form.levels) if form.levels and not rows else np.sort(books).reshape(*rows, -1)
    codes = rng.integers(0, levels.shape[-1], shape).astype(np.uint8)
    scale = rng.uniform(1e-3, 1, 1 if granularity == "layer" else shape[0]).astype(np.float32)
    return Coded(Spec(name, granularity), shape, codes, levels.astype(np.int8), scale)


def evaluate(graph: Graph, tensor: str) -> np.ndarray:
    graph.outputs = {tensor: []}
    model = graph.model()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return onnxruntime.InferenceSession(model.SerializeToString()).run([tensor], {})[0]


FORMS = sorted({(spec.format, spec.granularity) for spec in every_spec()})
ODD = [
    (f"kmeans{bits}", granularity, shape)
    for bits in WIDTHS
    for granularity, shape in (("channel", (4, 3, 3, 3)), ("codebook", (4, 3, 3, 3)), ("layer", (1, 1)))
]


@pytest.mark.parametrize(("name", "granularity", "shape"), [*((*form, (7, 11)) for form in FORMS), *ODD])
def test_onnxruntime_decodes_what_numpy_decodes(name, granularity, shape):
    coded = make_coded(name, shape, granularity)
    for write in (quantized_weight, float_weight):
        graph = Graph()
        written = write(graph, "a.b", coded, None)
        tensor = written if isinstance(written, str) else written[0]
        found = evaluate(graph, tensor)
        assert found.shape == shape
        assert found.tobytes() == coded.decode().tobytes()
        back = read(graph, {"a.b": str(coded.spec)})["a.b"]
        assert (back.spec, back.shape) == (coded.spec, coded.shape)
        for part in ("codes", "levels", "scale"):
            np.testing.assert_array_equal(getattr(back, part), getattr(coded, part), strict=True)
        own = sum(array.nbytes for place, array in graph.constants.items() if place.startswith("a.b."))
        assert own == stored_bytes(coded.spec, shape)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["kmeans1", "kmeans2", "kmeans3", "kmeans4"]),
    st.sampled_from(["channel", "codebook"]),
    st.integers(1, 70),
    st.integers(0, 99),
)
def test_any_number_of_codes_survives_padding(name, granularity, count, seed):
    coded, graph = make_coded(name, (count, 1), granularity, seed=seed), Graph()
    assert evaluate(graph, float_weight(graph, "w", coded, None)).tobytes() == coded.decode().tobytes()


def test_a_gain_multiplies_the_scale_and_leaves_the_trained_one_readable():
    coded, graph = make_coded("kmeans4", (6, 2, 3)), Graph()
    gain = np.linspace(0.1, 3, 6).astype(np.float32)
    _, scale = quantized_weight(graph, "w", coded, gain)
    assert evaluate(graph, scale).tobytes() == (coded.scale * gain).tobytes()
    assert read(graph, {"w": "kmeans4"})["w"].scale.tobytes() == coded.scale.tobytes()


def test_layers_of_one_width_share_their_tables():
    graph = Graph()
    for layer in "ab":
        float_weight(graph, layer, make_coded("kmeans2", (8, 8)), None)
    assert sum(array.size for name, array in graph.constants.items() if name.startswith("digits")) == 256 * 4
    assert set(look_ups(graph)) == {"a", "b"}
