"""The file → embeddings, with onnxruntime, or OpenVINO where it is installed."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.audio import wav
from sottovoce.audio.talker import talker
from sottovoce.errors import BadInput, BadModel, MissingExtra

PREFIX = "sottovoce."  # of our entries in the file's metadata
FORMAT_VERSION = 1
LARGEST_FILE = 2**31 - 1  # bytes; protobuf cannot read more
EXACT_SUMS_FROM = (1, 30)  # first onnxruntime whose exact way on processors without VNNI does not abort
SHIPPED = Path(__file__).parent.parent / "models" / "shipped.onnx"

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Model:
    """A loaded file. Nothing in it changes after loading, so one instance serves all threads."""

    path: Path
    id: str  # first 12 hexadecimal digits of the file's sha256
    metadata: Mapping[str, Any]
    _run: Run

    @property
    def dim(self) -> int:
        """Numbers in an embedding."""
        return int(self.metadata["dim"])

    @property
    def rate(self) -> int:
        """Samples per second that `embed` takes."""
        return int(self.metadata["rate"])

    @property
    def min_samples(self) -> int:
        """Fewest samples that `embed` takes."""
        return int(self.metadata["min_samples"])

    def embed(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """The voice in a recording: (samples,) float in -1..1 at `rate` → (dim,) float32 of unit length.

        Raises TooShort, NonFiniteAudio, SilentAudio, EmptyAudio; BadModel when the file computes something else.
        """
        samples = wav.check(wave, "recording", self.min_samples, self.rate)
        embedding: NDArray[np.float32] = self._run(samples[None])[0]
        if embedding.shape != (self.dim,):
            raise BadModel(
                f"{self.path}: gave {embedding.shape[0]} numbers, its metadata says {self.dim}; export it again"
            )
        if not abs(float(np.linalg.norm(embedding)) - 1) < 1e-3:
            raise BadModel(f"{self.path}: an embedding is not finite or not of unit length; get the file again")
        return embedding

    def self_test(self) -> dict[str, float]:
        """Embed the file's golden signal; returns cosine and largest difference to the stored embedding.

        Raises BadModel when the cosine is below what the file demands, or the file has no self-test.
        """
        test = self.metadata.get("self_test")
        if not isinstance(test, dict):
            raise BadModel(f"{self.path}: has no self-test; export it again")
        stored = np.frombuffer(base64.b64decode(test["embedding"]), dtype="<f4")
        found = self.embed(talker(**test["talker"]))
        cosine, largest = float(stored @ found), float(np.abs(stored - found).max())
        if not cosine >= test["least_cosine"]:
            raise BadModel(
                f"{self.path}: self-test gives cosine {cosine:.5f} to the stored embedding, at least "
                f"{test['least_cosine']} is needed; this engine computes the file wrongly, try another version"
            )
        return {"cosine": cosine, "largest_difference": largest}


def load(path: str | Path | None = None, engine: str = "onnxruntime", threads: int = 1, check: bool = False) -> Model:
    """Load a model file; without a path, the one that the package ships.

    engine: 'onnxruntime' or 'openvino'.   threads: of one `embed`.   check: run the file's self-test.
    Raises BadModel for a file that is missing, damaged, or not ours; MissingExtra when OpenVINO is not installed;
    BadInput for OpenVINO on a processor where its sums of 8-bit products overflow.
    """
    if engine not in ENGINES:
        raise BadInput(f"engine {engine!r} is unknown; known: {', '.join(ENGINES)}")
    if threads < 1:
        raise BadInput(f"threads is {threads}; give 1 or more")
    place = Path(path) if path is not None else SHIPPED
    content = _content(place)
    metadata, run = ENGINES[engine](place, content, threads)
    if engine == "openvino" and metadata.get("activations") == "uint8" and _sums_overflow():
        raise BadInput(
            "engine 'openvino' adds pairs of 8-bit products in 16 bits on this processor, which has no VNNI: "
            "embeddings would be wrong (cosine about 0.9); use onnxruntime"
        )
    model = Model(place, hashlib.sha256(content).hexdigest()[:12], metadata, run)
    if check:
        model.self_test()
    return model


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise BadModel(f"{path}: there is no such model file; check the path")
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise BadModel(f"{path}: {size} bytes are more than an .onnx can hold ({LARGEST_FILE}); not a model of ours")
    content = path.read_bytes()
    if f"{PREFIX}format_version".encode() not in content:
        raise BadModel(f"{path}: not written by sottovoce, or cut short; make one with `sotto compress`")
    return content


def _session(path: Path, content: bytes, threads: int, optimise: bool = True) -> Any:
    """An onnxruntime session of the file. The import waits until here: commands that load no model start faster."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if _sums_overflow():
        if _version(onnxruntime.__version__) >= EXACT_SUMS_FROM:
            options.add_session_config_entry("session.x64quantprecision", "1")
        elif optimise:  # in float: slower, and right
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no public base class for its errors
        raise BadModel(
            f"{path}: onnxruntime {onnxruntime.__version__} cannot load it ({_line(error)}); get it again"
        ) from None


def _version(text: str) -> tuple[int, ...]:
    """Major and minor number of a version."""
    return tuple(int(part) for part in text.split(".")[:2])


def _sums_overflow() -> bool:
    """Whether this processor adds pairs of 8-bit products in 16 bits: an x86 without VNNI, where Linux tells.

    onnxruntime then has an exact way, half as fast, that must not be asked for where it is not needed, nor of versions
    before 1.30, which it makes abort.
    """
    try:
        flags = (
            Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").partition("flags")[2].partition("\n")[0]
        )
    except OSError:
        return False
    return "avx2" in flags and "vnni" not in flags


def _onnxruntime(path: Path, content: bytes, threads: int) -> tuple[Mapping[str, Any], Run]:
    session = _session(path, content, threads)
    metadata = _metadata(path, session)

    def run(wave: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            return np.asarray(session.run(["embedding"], {"wave": wave})[0])
        except Exception as error:
            raise BadModel(f"{path}: running it failed ({_line(error)}); get the file again") from None

    return metadata, run


def _openvino(path: Path, content: bytes, threads: int) -> tuple[Mapping[str, Any], Run]:
    if importlib.util.find_spec("openvino") is None:
        raise MissingExtra("engine 'openvino' needs OpenVINO; install it with: pip install 'sottovoce[openvino]'")
    import openvino

    metadata = _metadata(path, _session(path, content, 1, optimise=False))
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    try:
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(io.BytesIO(content)), "CPU", settings)
    except RuntimeError as error:
        raise BadModel(
            f"{path}: OpenVINO {openvino.__version__} cannot load it ({_line(error)}); use onnxruntime"
        ) from None

    own = threading.local()  # making a request takes as long as a tenth of the network; a thread makes one

    def run(wave: NDArray[np.float32]) -> NDArray[np.float32]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        return np.array(own.request.infer({"wave": wave})["embedding"])

    return metadata, run


ENGINES: dict[str, Callable[[Path, bytes, int], tuple[Mapping[str, Any], Run]]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}


def _metadata(path: Path, session: Any) -> dict[str, Any]:
    """Our entries of the file's metadata. Raises BadModel when they or the graph's input and output are not ours."""
    found = session.get_modelmeta().custom_metadata_map
    try:
        metadata = {k.removeprefix(PREFIX): json.loads(v) for k, v in found.items() if k.startswith(PREFIX)}
        version = metadata["format_version"]
        numbers = [int(metadata[name]) for name in ("dim", "rate", "min_samples")]
    except (ValueError, KeyError, TypeError) as error:
        raise BadModel(f"{path}: its metadata are damaged ({_line(error)}); get the file again") from None
    if version != FORMAT_VERSION:
        raise BadModel(
            f"{path}: format version {version}, this sottovoce reads {FORMAT_VERSION}; update the older of the two"
        )
    names = [value.name for value in (*session.get_inputs(), *session.get_outputs())]
    if names != ["wave", "embedding"] or min(numbers) < 1:
        raise BadModel(
            f"{path}: takes and gives {names}; a model with its front end inside takes wave, gives embedding"
        )
    return metadata


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
