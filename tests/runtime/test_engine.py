"""Loading and running files. The file is written byte by byte here, because the base install has no onnx package."""

import base64
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from sottovoce import errors
from sottovoce.audio.talker import talker
from sottovoce.runtime import engine
from sottovoce.runtime.engine import load

SHORTEST = 400
FLOAT, INT64 = 1, 7


def field(number: int, value: bytes | int | str) -> bytes:
    """One protobuf field: a varint, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    head = b""
    while value > 127:
        head += bytes([value & 127 | 128])
        value >>= 7
    return head + bytes([value])


def node(op: str, inputs: list[str], output: str) -> bytes:
    return field(1, b"".join(field(1, name) for name in inputs) + field(2, output) + field(4, op))


def constant(name: str, values: np.ndarray) -> bytes:
    kind = FLOAT if values.dtype == np.float32 else INT64
    shape = b"".join(field(1, length) for length in values.shape)
    return field(5, shape + field(2, kind) + field(8, name) + field(9, values.tobytes()))


def value(number: int, name: str) -> bytes:
    shape = field(1, field(1, 1)) + field(1, field(2, "n"))
    return field(number, field(1, name) + field(2, field(1, field(1, FLOAT) + field(2, shape))))


def tiny_model(metadata: dict, output: str = "embedding", unit: bool = True) -> bytes:
    """wave (1, n) → its first four samples, scaled to length one."""
    graph = node("Slice", ["wave", "zero", "four", "one"], "first")
    graph += node("Mul", ["first", "first"], "square") + node("ReduceSum", ["square", "one"], "sum")
    graph += node("Sqrt", ["sum"], "length") + node("Div", ["first", "length" if unit else "two"], output)
    graph += field(2, "tiny")
    graph += b"".join(constant(n, np.array([v])) for n, v in (("zero", 0), ("one", 1), ("four", 4)))
    graph += constant("two", np.float32([2])) + value(11, "wave") + value(12, output)
    entries = b"".join(
        field(14, field(1, f"sottovoce.{name}") + field(2, json.dumps(content))) for name, content in metadata.items()
    )
    return field(1, 8) + field(7, graph) + field(8, field(2, 13)) + entries


def golden(wave: np.ndarray) -> str:
    first = wave[:4] / np.linalg.norm(wave[:4])
    return base64.b64encode(first.astype("<f4").tobytes()).decode()


SIGNAL = {"seconds": 0.1, "seed": 1}
METADATA = {
    "format_version": 1,
    "dim": 4,
    "rate": 16000,
    "min_samples": SHORTEST,
    "self_test": {"talker": SIGNAL, "embedding": golden(talker(**SIGNAL)), "least_cosine": 0.999},
}


@pytest.fixture
def write(tmp_path):
    """A function: a model file with changed metadata (None takes an entry out)."""

    def make(changes: dict | None = None, **parts) -> Path:
        metadata = {name: content for name, content in {**METADATA, **(changes or {})}.items() if content is not None}
        (tmp_path / "m.onnx").write_bytes(tiny_model(metadata, **parts))
        return tmp_path / "m.onnx"

    return make


def test_embed_gives_what_the_graph_computes(write):
    wave = talker(0.5, seed=2)
    model = load(write())
    expected = wave[:4] / np.linalg.norm(wave[:4])
    np.testing.assert_allclose(model.embed(wave), expected, rtol=1e-6)
    assert (model.dim, model.rate, model.min_samples) == (4, 16000, SHORTEST)
    assert model.embed(wave).dtype == np.float32


def test_the_id_is_that_of_the_content(write):
    first, again = load(write()), load(write())
    other = load(write({"licence": "none"}))
    assert first.id == again.id != other.id
    assert len(first.id) == 12


def test_openvino_gives_the_same(write):
    pytest.importorskip("openvino", reason="an optional engine")
    wave, path = talker(0.5, seed=2), write()
    np.testing.assert_allclose(load(path, engine="openvino").embed(wave), load(path).embed(wave), rtol=1e-5)


def test_openvino_missing_is_said(write, monkeypatch):
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.MissingExtra, match="pip install"):
        load(write(), engine="openvino")


def test_self_test_passes_and_fails(write):
    assert load(write(), check=True).self_test()["cosine"] > 0.999999
    wrong = {"self_test": {**METADATA["self_test"], "embedding": golden(talker(0.1, seed=2))}}
    load(write(wrong))
    with pytest.raises(errors.BadModel, match=r"self-test gives cosine 0\.|self-test gives cosine -0\."):
        load(write(wrong), check=True)
    with pytest.raises(errors.BadModel, match="no self-test"):
        load(write({"self_test": None}), check=True)


@pytest.mark.parametrize(
    ("wave", "error"),
    [
        (np.zeros(0, dtype=np.float32), errors.EmptyAudio),
        (np.zeros(1000, dtype=np.float32), errors.SilentAudio),
        (np.full(1000, np.nan, dtype=np.float32), errors.NonFiniteAudio),
        (talker(0.1, seed=1)[: SHORTEST - 1], errors.TooShort),
    ],
)
def test_unusable_waves_are_refused(write, wave, error):
    with pytest.raises(error):
        load(write()).embed(wave)


def test_the_shortest_wave_is_accepted(write):
    assert np.isfinite(load(write()).embed(talker(0.1, seed=1)[:SHORTEST])).all()


def test_nan_and_wrong_length_are_never_returned(write):
    wave = talker(0.5, seed=2)
    wave[:4] = 0  # 0 / 0
    with pytest.raises(errors.BadModel, match="unit length"):
        load(write()).embed(wave)
    with pytest.raises(errors.BadModel, match="unit length"):
        load(write(unit=False)).embed(talker(0.5, seed=2))
    with pytest.raises(errors.BadModel, match="says 5"):
        load(write({"dim": 5})).embed(talker(0.5, seed=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"dim": None}, "'dim'"),
        ({"rate": "fast"}, "damaged"),
        ({"min_samples": 0}, "takes and gives"),
    ],
)
def test_bad_metadata_are_named(write, changes, message):
    with pytest.raises(errors.BadModel, match=message):
        load(write(changes))


def test_a_graph_with_other_ends_is_refused(write):
    with pytest.raises(errors.BadModel, match="embedding2"):
        load(write(output="embedding2"))


@pytest.mark.parametrize("content", [b"", b"not a model", b"sottovoce.format_version and noise"])
def test_files_of_others_are_refused(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(errors.BadModel, match=r"m\.onnx"):
        load(tmp_path / "m.onnx")


def test_a_cut_file_is_refused(write):
    path = write()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(errors.BadModel, match=r"m\.onnx"):
        load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(errors.BadModel, match="no such model"):
        load(tmp_path / "none.onnx")


def test_a_file_beyond_what_protobuf_reads_is_refused(tmp_path):
    with (tmp_path / "big.onnx").open("wb") as file:
        file.truncate(2**31)  # sparse: takes no room
    with pytest.raises(errors.BadModel, match="more than an"):
        load(tmp_path / "big.onnx")


def test_unknown_settings_are_refused(write):
    with pytest.raises(errors.BadInput, match="onnxruntime, openvino"):
        load(write(), engine="tensorrt")
    with pytest.raises(errors.BadInput, match="threads"):
        load(write(), threads=0)


@pytest.mark.parametrize(
    ("flags", "version", "overflow", "asked"),
    [
        ("avx2 fma", "1.30.0", True, True),
        ("avx2 fma", "1.29.1", True, False),
        ("avx2 avx512_vnni", "1.30.0", False, False),
        ("neon", "1.30.0", False, False),
    ],
)
def test_exact_sums_are_asked_for_only_without_vnni(flags, version, overflow, asked, monkeypatch, write):
    monkeypatch.setattr(onnxruntime, "__version__", version)
    monkeypatch.setattr(Path, "read_text", lambda self, **_: f"processor : 0\nflags : {flags}\nbugs : none\n")
    assert engine._sums_overflow() is overflow
    seen = []
    real = onnxruntime.SessionOptions

    class Options(real):
        def add_session_config_entry(self, key, value):
            seen.append((key, value))

    made = []
    monkeypatch.setattr(onnxruntime, "SessionOptions", lambda: made.append(Options()) or made[-1])
    load(write())
    assert (("session.x64quantprecision", "1") in seen) is asked
    basic = made[-1].graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert basic is (overflow and not asked)  # float is the way of older versions


def test_nothing_here_imports_torch_or_onnx():
    source = Path(engine.__file__).read_text(encoding="utf-8")
    assert "import torch" not in source
    assert "import onnx\n" not in source
    assert sys.modules["sottovoce.runtime.engine"] is engine
