"""What the file says of itself: JSON values under metadata_props `sottovoce.<name>`."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import onnx
import onnxruntime

from sottovoce.audio.features import FrontEndConfig
from sottovoce.audio.talker import talker
from sottovoce.bits.formats import Coded

PREFIX = "sottovoce."
FORMAT_VERSION = 1
SELF_TEST = {"seconds": 2.0, "seed": 1}
# Engines may round a value that lies between two steps of uint8 to either, and a network may make much or little of it.
LEAST_COSINE = 0.999, 0.98  # that passes in a network which makes little of it, and in any
ROUNDING = 1e-4  # relative; ten times what engines differ by in sums
ALLOWED = 8  # times 1 - cosine at that noise


def write(model: onnx.ModelProto, metadata: Mapping[str, Any]) -> None:
    """Set metadata entries, replacing those of the same name."""
    kept = [
        (entry.key, entry.value) for entry in model.metadata_props if entry.key.removeprefix(PREFIX) not in metadata
    ]
    del model.metadata_props[:]
    for key, value in kept + [(PREFIX + name, json.dumps(value)) for name, value in metadata.items()]:
        model.metadata_props.add(key=key, value=value)


def read(model: onnx.ModelProto) -> dict[str, Any]:
    """Metadata entries by name, without the prefix."""
    return {e.key.removeprefix(PREFIX): json.loads(e.value) for e in model.metadata_props if e.key.startswith(PREFIX)}


def standard(front_end: FrontEndConfig, coded: Mapping[str, Coded], min_frames: int, dim: int) -> dict[str, Any]:
    """The entries that every file has, from what it was built of."""
    return {
        "format_version": FORMAT_VERSION,
        "front_end": asdict(front_end),
        "rate": front_end.rate,
        "min_samples": front_end.samples(min_frames),
        "dim": dim,
        "layers": {layer: str(entry.spec) for layer, entry in coded.items()},
        "bits": sorted({entry.bits for entry in coded.values()}),
        "weights_sha256": weights_sha256(coded),
    }


def weights_sha256(coded: Mapping[str, Coded]) -> str:
    """sha256 over name, shape and decoded little-endian float32 values of each layer, in order of name."""
    digest = hashlib.sha256()
    for layer in sorted(coded):
        digest.update(f"{layer}{coded[layer].shape}".encode())
        digest.update(np.ascontiguousarray(coded[layer].decode(), dtype="<f4"))
    return digest.hexdigest()


def self_test(model: onnx.ModelProto) -> dict[str, Any]:
    """A golden self-test: how to make the signal, its embedding in onnxruntime, the least cosine that passes."""
    options = onnxruntime.SessionOptions()
    # in float: right on every processor, also where sums of 8-bit products overflow
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (wave,) = session.get_inputs()
    signal = talker(**SELF_TEST)[None]
    noise = np.random.default_rng(0).standard_normal(signal.shape).astype(np.float32)
    embedding, other = (session.run(None, {wave.name: one})[0][0] for one in (signal, signal * (1 + ROUNDING * noise)))
    usual, lowest = LEAST_COSINE
    least = min(usual, max(lowest, 1 - ALLOWED * (1 - float(embedding @ other))))
    stored = base64.b64encode(embedding.astype("<f4").tobytes()).decode()
    return {"talker": SELF_TEST, "embedding": stored, "least_cosine": round(least, 5)}
