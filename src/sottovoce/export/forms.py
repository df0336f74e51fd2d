"""A file of ours in the forms that other places want: features in, for sherpa-onnx, fixed length, batch, another opset.

Each is made from the file alone and keeps its packed weights; `twin.plain` makes the one with plain int8 weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import shape_inference

from sottovoce.audio.features import FrontEndConfig
from sottovoce.errors import BadInput, BadModel
from sottovoce.export import metadata as about
from sottovoce.export.graph import NEWEST_OPSET, OPSET, Graph
from sottovoce.export.source import to_opset
from sottovoce.export.standard import attributes, fold_constants, run
from sottovoce.export.trace import EMBEDDING, FEATURES
from sottovoce.export.twin import plain

OPSETS = range(OPSET, NEWEST_OPSET + 1)
BATCHES_AGREE = 2e-3  # an engine may round a value that lies between two steps of uint8 to either
SHERPA = {"window": "povey", "low_hz": 20.0, "high_hz": 7600.0}  # what sherpa-onnx computes whatever the model says
SHERPA_ENGINE = "sherpa-onnx"
SHERPA_INPUT = "feats"


@dataclass(frozen=True)
class Form:
    """What a file is to be turned into; the defaults change nothing."""

    features_in: bool = False  # front end left out
    engine: str = ""  # "sherpa-onnx": its input and metadata, features in
    frames: int | None = None  # the only length it takes, of features
    seconds: float | None = None  # the only length it takes, of audio
    batch: bool = False  # any number of recordings at once, features in
    opset: int = OPSET
    int8_weights: bool = False  # plain, for engines that dislike the look-up
    notes: tuple[tuple[str, str], ...] = ()  # further metadata: language, url, comment


def check_form(form: Form) -> None:
    """Refuse what contradicts itself. Raises BadInput."""
    if form.engine not in ("", SHERPA_ENGINE):
        raise BadInput(f"engine {form.engine!r} is unknown; known: {SHERPA_ENGINE}")
    inside = not (form.features_in or form.engine)
    if form.batch and inside:
        raise BadInput("a batch needs features in: recordings of a batch have one length; add --features-in")
    if form.frames is not None and (form.seconds is not None or inside):
        raise BadInput("frames are the length of features: add --features-in, or give --seconds of audio")
    if form.opset not in OPSETS:
        raise BadInput(f"opset {form.opset} is not possible; give {OPSETS[0]} to {OPSETS[-1]}")


def shaped(model: onnx.ModelProto, form: Form) -> onnx.ModelProto:
    """A file of ours in another form, its packed weights as they are unless plain ones are asked for.

    Raises BadInput, BadModel.
    """
    check_form(form)
    config = front_end_of(model)
    if form.int8_weights:
        model = plain(model)
    if form.engine:
        model = for_sherpa(model, dict(form.notes))
    elif form.features_in:
        model = features_in(model)
    if form.batch:
        model = batched(model)
    length = form.frames
    if form.seconds is not None:
        length = round(form.seconds * config.rate)
        length = config.frames(length) if form.features_in or form.engine else length
    if length is not None:
        model = fixed(model, length)
    return in_opset(model, form.opset)


def features_in(model: onnx.ModelProto) -> onnx.ModelProto:
    """The file without its front end: features [1, rows, frames] in. One that has none is returned as it is."""
    graph = Graph.of(model)
    if FEATURES in graph.inputs:
        return model
    config = front_end_of(model)
    tensor = _features_tensor(graph)
    graph.nodes = [node for node in graph.nodes if tensor not in node.output]
    graph.redirect(tensor, FEATURES)
    graph.inputs = {FEATURES: [1, config.rows, "frames"]}
    graph.prune()
    return _with_metadata(graph, model, drop=("self_test",))


def for_sherpa(model: onnx.ModelProto, notes: Mapping[str, str]) -> onnx.ModelProto:
    """The file as sherpa-onnx reads it: `feats` (batch, frames, mels) in, its metadata beside ours.

    sherpa-onnx computes 20 … 7600 Hz behind a Povey window whatever a model was trained on. So each row is put together
    from the two rows that lie nearest to it in mel, and the mean over the recording is removed in here, which takes
    away what window and filters change in all frames alike. What remains is told in docs/sherpa-onnx.md.
    notes: language, url, comment. Raises BadInput.
    """
    config = front_end_of(model)
    _check_sherpa(config)
    graph = Graph.of(features_in(model))
    graph.inputs = {SHERPA_INPUT: [1, "frames", config.rows]}
    rows = graph.add("MatMul", SHERPA_INPUT, graph.constant(resampled_rows(config), "rows"))
    if config.remove_mean:
        rows = graph.add("Sub", rows, graph.add("ReduceMean", rows, axes=[1], keepdims=1))
    turned = graph.add("Transpose", rows, perm=[0, 2, 1])
    graph.redirect(FEATURES, turned)
    made = _with_metadata(graph, model, drop=("self_test",))
    dim = about.read(model)["dim"]
    told = {
        "framework": "wespeaker" if config.input_scale > 1 else "3d-speaker",
        "language": "unknown",
        "url": "",
        "comment": "made by sottovoce",
        **notes,
        "sample_rate": str(config.rate),
        "output_dim": str(dim),
        "normalize_samples": "0" if config.input_scale > 1 else "1",
        "feature_normalize_type": "global-mean" if config.remove_mean else "",
    }
    for key, value in told.items():
        made.metadata_props.add(key=key, value=value)
    return made


def resampled_rows(config: FrontEndConfig) -> np.ndarray:
    """Features of sherpa-onnx × this = features at our mels, by linear interpolation: (mels, mels) float32."""

    def mel(hz: float) -> float:
        return float(1127.0 * np.log1p(hz / 700.0))

    step = (mel(SHERPA["high_hz"]) - mel(SHERPA["low_hz"])) / (config.mels + 1)  # type: ignore[arg-type]
    ours = np.linspace(mel(config.low_hz), mel(config.high_hz), config.mels + 2)[1:-1]
    places = np.clip((ours - mel(SHERPA["low_hz"])) / step - 1, 0, config.mels - 1)  # type: ignore[arg-type]
    below = np.minimum(places.astype(int), config.mels - 2)
    share = places - below
    matrix = np.zeros((config.mels, config.mels))
    matrix[below, np.arange(config.mels)] = 1 - share
    matrix[below + 1, np.arange(config.mels)] = share
    return matrix.astype(np.float32)


def fixed(model: onnx.ModelProto, length: int) -> onnx.ModelProto:
    """The file for inputs of one length only, samples or frames, every shape in it a constant. Raises BadInput."""
    graph = Graph.of(model)
    ((name, shape),) = graph.inputs.items()
    least = about.read(model)["min_samples"] if len(shape) == 2 else 1
    if length < least:
        raise BadInput(f"length {length} is shorter than the model's minimum of {least}")
    graph.inputs = {name: [length if isinstance(axis, str) and axis != "batch" else axis for axis in shape]}
    for _ in range(4):  # each round makes shapes known that the next needs
        before = len(graph.nodes)
        _shapes_as_constants(graph)
        fold_constants(graph, shapes_only=True)
        if len(graph.nodes) == before:
            break
    return _with_metadata(graph, model)


def batched(model: onnx.ModelProto) -> onnx.ModelProto:
    """A features-in file that takes any number of recordings of one length. Raises BadInput where its graph cannot."""
    graph = Graph.of(model)
    ((name, shape),) = graph.inputs.items()
    if len(shape) != 3:
        raise BadInput("a batch needs features in: recordings of a batch have one length; add --features-in")
    graph.inputs = {name: ["batch", *shape[1:]]}
    graph.outputs = {EMBEDDING: ["batch", graph.outputs[EMBEDDING][-1]]}
    made = _with_metadata(graph, model)
    frames = next((axis for axis in shape[1:] if isinstance(axis, int) and axis != _rows(model)), 200)
    sizes = [frames if isinstance(axis, str) else axis for axis in shape[1:]]
    several = np.random.default_rng(0).standard_normal((3, *sizes)).astype(np.float32)
    try:
        (together,) = run(graph, [EMBEDDING], {name: several})
        alone = np.concatenate([run(graph, [EMBEDDING], {name: one[None]})[0] for one in several])
    except BadModel as error:
        raise BadInput(f"the network cannot take a batch: {error}") from None
    if together.shape != alone.shape or np.abs(together - alone).max() > BATCHES_AGREE:
        raise BadInput("the network mixes the recordings of a batch; give them one by one")
    return made


def in_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The file in another opset, 13 to 17. Raises BadInput, BadModel."""
    if opset not in OPSETS:
        raise BadInput(f"opset {opset} is not possible; give {OPSETS[0]} to {OPSETS[-1]}")
    return to_opset(model, "this file", opset, opset)


def front_end_of(model: onnx.ModelProto) -> FrontEndConfig:
    """The front end that a file's metadata describe. Raises BadModel."""
    try:
        return FrontEndConfig(**about.read(model)["front_end"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadModel(f"the file does not say what its front end is ({error}); make it with sottovoce") from None


def _rows(model: onnx.ModelProto) -> int:
    return front_end_of(model).rows


def _check_sherpa(config: FrontEndConfig) -> None:
    kaldi = config.window_length == 400 and config.hop == 160 and config.rate == 16000 and not config.energy
    if not kaldi or config.preemphasis != 0.97 or config.window not in ("hamming", "povey"):
        raise BadInput(
            f"front end {config.name!r} is too far from what sherpa-onnx computes (Kaldi's mels of 25 ms every 10 ms); "
            "use the file with the front end inside"
        )


def _features_tensor(graph: Graph) -> str:
    """The front end's last tensor, by its name or, in older files, by its shape: (frames, rows) turned."""
    for node in graph.sorted():
        if FEATURES in node.output:
            return FEATURES
    for node in graph.sorted():
        turn = graph.producer(node.input[0]) if node.op_type == "Unsqueeze" else None
        if turn is not None and turn.op_type == "Transpose" and list(attributes(turn)["perm"]) == [1, 0]:  # type: ignore[call-overload]
            return str(node.output[0])
    raise BadModel("the file's front end cannot be told from its network; export the checkpoint with --features-in")


def _shapes_as_constants(graph: Graph) -> None:
    """Replace every Shape of a tensor whose axes are known."""
    inferred = shape_inference.infer_shapes(graph.model(), data_prop=True).graph
    known = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input)
        if value.type.tensor_type.HasField("shape")
    }
    for node in [node for node in graph.nodes if node.op_type == "Shape"]:
        axes = known.get(node.input[0])
        if axes and min(axes) > 0:
            graph.remove(node)
            graph.constants[node.output[0]] = np.array(axes, dtype=np.int64)


def _with_metadata(graph: Graph, model: onnx.ModelProto, drop: tuple[str, ...] = ()) -> onnx.ModelProto:
    made = graph.model()
    made.producer_name = model.producer_name
    left_out = {about.PREFIX + name for name in drop}
    made.metadata_props.extend(entry for entry in model.metadata_props if entry.key not in left_out)
    return made
