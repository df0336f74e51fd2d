"""What a file is timed beside: the same network in other engines and precisions, each made from the file itself."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.audio.talker import talker
from sottovoce.errors import BadInput, MissingExtra, SottoError
from sottovoce.runtime.engine import load

if TYPE_CHECKING:
    import onnx
    from torch import nn

MODEL = "this file"
OURS = ", of this file's graph"  # behind the names of peers that have what was mended in it
OPENED = "onnxruntime", "openvino"  # engines that open a file of their own
CALIBRATED_ON = 4  # signals
BATCH = 16

Array = NDArray[np.float32]
Run = Callable[[Array], object]


@dataclass(frozen=True)
class Peer:
    """A name, what runs it (`ours`, `openvino-ours`, `onnxruntime`, `openvino` or `torch`), and the file it opens."""

    name: str
    engine: str
    path: Path
    bytes: int


def peers_of(
    path: Path,
    folder: Path,
    encoder: nn.Module | None = None,
    nncf: str | None = None,
    exported: Path | None = None,
) -> Iterator[Peer]:
    """Peers of a file, written to `folder`; those that cannot be had here are left out.

    encoder: the network in torch, where the file does not name it.   nncf: the interpreter that has the package, by
    default this one.   exported: the same network as a float .onnx, wave in, from which peers are made; by default they
    are made from the file's own graph, and then have what was mended in it. With it, the int8 ones are made from both.
    Raises MissingExtra without onnx.
    """
    try:
        import onnx

        from sottovoce.export.twin import plain, unrounded
    except ImportError:
        raise MissingExtra("peers are made with onnx; install it with: pip install 'sottovoce[lab]'") from None
    model = onnx.load_model_from_string(path.read_bytes())
    own = unrounded(model)
    floats = own if exported is None else onnx.load_model_from_string(exported.read_bytes())
    yield _written("onnxruntime, plain int8 weights", "onnxruntime", plain(model), folder)
    for told, operators in (("Conv Add Relu", ["Conv", "Add", "Relu"]), ("all operators", None)):
        yield _written(f"onnxruntime static int8, {told}", "onnxruntime", _static(floats, operators), folder)
    single = _written("onnxruntime float", "onnxruntime", floats, folder)
    yield single
    openvino = importlib.util.find_spec("openvino") is not None
    if openvino:
        yield Peer("OpenVINO, this file", "openvino-ours", path, path.stat().st_size)
        yield Peer("OpenVINO float", "openvino", single.path, single.bytes)
        yield from _nncf(single.path, folder, nncf)
    if exported is not None:
        yield _written(f"onnxruntime static int8, all operators{OURS}", "onnxruntime", _static(own, None), folder)
        if openvino:
            mended = _written(f"onnxruntime float{OURS}", "onnxruntime", own, folder)
            yield from _nncf(mended.path, folder, nncf, OURS)
    if encoder is not None or "network" in load(path).metadata.get("provenance", {}):
        yield Peer("torch float", "torch", path, _torch_bytes(path, encoder))


def open_peer(peer: Peer, threads: int, encoder: nn.Module | None = None) -> Run | None:
    """A function that runs a peer on a wave (samples,), or None where this machine or installation cannot."""
    if peer.engine in ("ours", "openvino-ours"):
        try:
            return load(peer.path, engine="onnxruntime" if peer.engine == "ours" else "openvino", threads=threads).embed
        except (MissingExtra, BadInput):  # not installed, or wrong on this processor
            if peer.engine == "ours":
                raise
            return None
    if peer.engine == "torch":
        return torch_runner(peer.path, threads, encoder)
    run = open_file(peer.engine, peer.path, threads)
    return lambda wave: run(wave[None])


def open_file(engine: str, path: Path, threads: int) -> Run:
    """A function that gives a file's only input to onnxruntime or OpenVINO."""
    return _onnxruntime(path, threads) if engine == "onnxruntime" else _openvino(path, threads)


def _onnxruntime(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda array: session.run(None, {name: array})


def _openvino(path: Path, threads: int) -> Run:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
    return lambda array: request.infer([array])


def torch_runner(path: Path, threads: int, encoder: nn.Module | None = None) -> Run:
    """The network that a file was made from, in float; only its speed matters, so the weights may be random."""
    import torch

    from sottovoce.networks import build
    from sottovoce.networks.frontend import FrontEnd

    metadata = load(path).metadata
    network = (build(**metadata["provenance"]["network"]) if encoder is None else encoder).eval()
    features = FrontEnd(metadata["front_end"]["name"])

    def run(wave: Array) -> object:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)  # of the process, so others get theirs back
        try:
            with torch.inference_mode():
                return torch.nn.functional.normalize(network(features(torch.from_numpy(wave)[None])))
        finally:
            torch.set_num_threads(before)

    return run


def batches(path: Path, folder: Path) -> Iterator[Peer]:
    """The file and its float peer with features in, for any number of recordings at once; none where it cannot be."""
    import onnx

    from sottovoce.export.forms import Form, shaped
    from sottovoce.export.twin import unrounded

    try:
        model = shaped(onnx.load_model_from_string(path.read_bytes()), Form(features_in=True, batch=True))
    except SottoError:
        return
    ours = _written(MODEL, "onnxruntime", model, folder, "batch-")
    yield ours
    yield _written("onnxruntime float", "onnxruntime", unrounded(model), folder, "batch-")
    if importlib.util.find_spec("openvino") is not None:
        yield Peer("OpenVINO, this file", "openvino", ours.path, ours.bytes)


def _written(name: str, engine: str, model: onnx.ModelProto, folder: Path, prefix: str = "") -> Peer:
    content = model.SerializeToString()
    path = folder / f"{prefix}{name.replace(' ', '-').replace(',', '')}.onnx"
    path.write_bytes(content)
    return Peer(name, engine, path, len(content))


def _torch_bytes(path: Path, encoder: nn.Module | None) -> int:
    from sottovoce.networks import build

    network = build(**load(path).metadata["provenance"]["network"]) if encoder is None else encoder
    return 4 * sum(p.numel() for p in network.parameters())


def _nncf(floats: Path, folder: Path, python: str | None, told: str = "") -> Iterator[Peer]:
    """NNCF's int8 of the float network, as OpenVINO's own format; made in a process of its own."""
    if python is None and importlib.util.find_spec("nncf") is None:
        return
    out, signals = floats.with_suffix(".nncf.xml"), folder / "signals.npy"
    np.save(signals, np.stack([talker(3.0, seed=seed) for seed in range(CALIBRATED_ON)]))
    script = Path(__file__).with_name("nncf_int8.py")
    command = [python or sys.executable, str(script), str(floats), str(signals), str(out)]
    if subprocess.run(command, capture_output=True, check=False).returncode == 0:
        size = out.stat().st_size + out.with_suffix(".bin").stat().st_size
        yield Peer(f"OpenVINO, NNCF int8{told}", "openvino", out, size)


def _static(model: onnx.ModelProto, operators: list[str] | None) -> onnx.ModelProto:
    """onnxruntime's own static quantization: uint8 activations, int8 weights per channel; the front end stays float."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Talkers(CalibrationDataReader):
        def __init__(self) -> None:
            self.waves = iter([talker(3.0, seed=seed) for seed in range(CALIBRATED_ON)])

        def get_next(self) -> dict[str, Any] | None:
            wave = next(self.waves, None)
            return None if wave is None else {"wave": wave[None]}

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        quantize_static(
            source,
            target,
            Talkers(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=operators,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_front_end(model),
        )
        return onnx.load(target)


def _front_end(model: onnx.ModelProto) -> list[str]:
    """Name the nodes; returns the names of those before the first convolution."""
    names = []
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"node{index}"
        names.append(node.name)
    first = next((i for i, node in enumerate(model.graph.node) if node.op_type == "Conv"), 0)
    return names[:first]
