"""How fast is a file on this machine, beside its peers, in the same run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.audio.talker import talker
from sottovoce.errors import BadInput, MissingExtra
from sottovoce.runtime.engine import SHIPPED, load

if TYPE_CHECKING:
    import onnx
    from torch import nn

MODEL = "this file"
BUDGET_S = 2.0  # of measuring, for each peer and length
FEWEST, MOST = 7, 200  # rounds

Wave = NDArray[np.float32]
Peer = Callable[[Wave], object]
Facts = dict[str, dict[str, Any]]


def bench(
    path: str | Path | None = None,
    *,
    seconds: Sequence[float] = (3.0,),
    threads: int = 1,
    peers: bool = False,
    encoder: nn.Module | None = None,
) -> dict[str, Any]:
    """Time a file on `seconds` of audio, waveform in, embedding out; returns {rows: [...], machine, versions, ...}.

    Peers are made from the file itself: its twin with plain int8 weights, onnxruntime's own static quantization, float
    in onnxruntime, OpenVINO on the file where installed, and torch float when the file names its network or `encoder`
    is given. All take turns in every round. A row: {name, seconds, median_ms, min_ms, cpu_ms, ratio, bytes, load_ms};
    median and least are of wall time, cpu_ms is the least processor time, ratio is the time over this file's
    (processor time for one thread, else wall time). Raises BadModel, MissingExtra.
    """
    if not seconds or min(seconds) <= 0:
        raise BadInput(f"seconds is {seconds}; give lengths above 0")
    place = Path(path) if path is not None else SHIPPED
    runners, facts = {}, {}
    for name, make in _makers(place, threads, peers, encoder).items():
        began = time.perf_counter()
        made = make()
        if made is not None:
            runners[name], size = made
            facts[name] = {"bytes": size, "load_ms": 1e3 * (time.perf_counter() - began)}
    rows = [row for length in seconds for row in _rows(runners, facts, length, threads)]
    return {
        "model": str(place),
        "sha256": hashlib.sha256(place.read_bytes()).hexdigest(),
        "bytes": place.stat().st_size,
        "threads": threads,
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
    }


def machine() -> dict[str, Any]:
    """Processor and system that a measurement was made on."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        vnni = any("vnni" in line for line in lines if line.startswith("flags"))
    except (OSError, StopIteration):
        vnni = None
    return {"processor": name, "cores": os.cpu_count(), "vnni": vnni, "system": platform.platform()}


def versions() -> dict[str, str]:
    """Versions of what runs the models."""
    found = {"python": platform.python_version()}
    for name in ("onnxruntime", "openvino", "torch", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def interleave(runners: dict[str, Peer], wave: Wave) -> dict[str, list[tuple[float, float]]]:
    """Let all take turns, round by round; returns (wall, processor) seconds of every turn by name."""
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    for run in runners.values():
        run(wave)
    began = time.perf_counter()
    for count in range(MOST):
        if count >= FEWEST and time.perf_counter() - began > BUDGET_S * len(runners):
            break
        for name, run in runners.items():
            wall, processor = time.perf_counter(), time.process_time()
            run(wave)
            turns[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return turns


def _rows(runners: dict[str, Peer], facts: Facts, seconds: float, threads: int) -> list[dict[str, Any]]:
    rows = []
    for name, turns in interleave(runners, talker(seconds, seed=1)).items():
        wall, processor = zip(*turns, strict=True)
        rows.append(
            {
                "name": name,
                "seconds": seconds,
                "median_ms": 1e3 * statistics.median(wall),
                "min_ms": 1e3 * min(wall),
                "cpu_ms": 1e3 * min(processor),
                "rounds": len(turns),
                **facts[name],
            }
        )
    deciding = "cpu_ms" if threads == 1 else "median_ms"
    return [{**row, "ratio": row[deciding] / rows[0][deciding]} for row in rows]


Made = Callable[[], "tuple[Peer, int] | None"]


def _makers(path: Path, threads: int, peers: bool, encoder: nn.Module | None) -> dict[str, Made]:
    """Peers by name, the file itself first; one that cannot be had here makes None."""
    makers: dict[str, Made] = {MODEL: lambda: (load(path, threads=threads).embed, path.stat().st_size)}
    if not peers:
        return makers
    try:
        import onnx

        from sottovoce.export.twin import plain, unrounded
    except ImportError:
        raise MissingExtra("peers are made with onnx; install it with: pip install 'sottovoce[lab]'") from None
    model = onnx.load_model_from_string(path.read_bytes())
    return {
        **makers,
        "onnxruntime, plain int8 weights": lambda: _session(plain(model), threads),
        "onnxruntime static int8, Conv Add Relu": lambda: _session(
            _static(unrounded(model), ["Conv", "Add", "Relu"]), threads
        ),
        "onnxruntime static int8, all operators": lambda: _session(_static(unrounded(model), None), threads),
        "onnxruntime float": lambda: _session(unrounded(model), threads),
        "OpenVINO, this file": lambda: _openvino(path, threads),
        "torch float": lambda: _torch(path, threads, encoder),
    }


def _session(model: onnx.ModelProto, threads: int) -> tuple[Peer, int]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda wave: session.run(None, {"wave": wave[None]}), len(content)


def _openvino(path: Path, threads: int) -> tuple[Peer, int] | None:
    try:
        return load(path, engine="openvino", threads=threads).embed, path.stat().st_size
    except (MissingExtra, BadInput):  # not installed, or wrong on this processor
        return None


def _torch(path: Path, threads: int, encoder: nn.Module | None) -> tuple[Peer, int] | None:
    """The network that the file was made from, in float; only its speed matters, so the weights may be random."""
    import torch

    from sottovoce.networks import build
    from sottovoce.networks.frontend import FrontEnd

    metadata = load(path).metadata
    named = metadata.get("provenance", {}).get("network")
    if encoder is None and named is None:
        return None
    network = (build(**named) if encoder is None else encoder).eval()
    features = FrontEnd(metadata["front_end"]["name"])
    torch.set_num_threads(threads)

    def run(wave: Wave) -> object:
        with torch.inference_mode():
            return torch.nn.functional.normalize(network(features(torch.from_numpy(wave)[None])))

    return run, 4 * sum(p.numel() for p in network.parameters())


def _static(model: onnx.ModelProto, operators: list[str] | None) -> onnx.ModelProto:
    """onnxruntime's own static quantization: uint8 activations, int8 weights per channel; the front end stays float."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Talkers(CalibrationDataReader):
        def __init__(self) -> None:
            self.waves = iter([talker(3.0, seed=seed) for seed in range(4)])

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
