"""Run model files in the onnxruntime of this interpreter, which needs nothing but numpy and onnxruntime.

Prints one JSON object: {version, files: {path: {embedding_sha256, embedding, operators}}}. `file_contract.py` calls it,
in the environments it is told of, to see that a file and its plain twin agree in other versions too.

    python benchmarks/run_files.py FILE... > found.json
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime


def signal() -> np.ndarray:
    """Three seconds of a buzzing tone that slides, with some noise: (1, 48000) float32."""
    time = np.arange(48000) / 16000
    phase = 2 * np.pi * (120 * time + 20 * np.sin(2 * time))
    tone = sum(np.sin(k * phase) / k for k in range(1, 25)) * (0.6 + 0.4 * np.sin(9 * time))
    noise = np.random.default_rng(0).standard_normal(len(time))
    return (0.1 * tone + 0.003 * noise).astype(np.float32)[None]


def operators(optimised: bytes) -> dict[str, int]:
    """How often each operator that matters is named in an optimised graph, by its bytes: onnx need not be installed."""
    names = ("QLinearConv", "FusedConv", "ConvInteger", "DequantizeLinear", "QuantizeLinear", "Gather")
    return {name: optimised.count(b"\x22" + bytes([len(name)]) + name.encode()) for name in names} | {
        "Conv": optimised.count(b"\x22\x04Conv")
    }


def run(path: str) -> dict[str, object]:
    """Embed the signal; returns the embedding, its hash, and the operators of the optimised graph."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder, "optimised.onnx"))
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        embedding = session.run(None, {"wave": signal()})[0]
        found = operators(Path(options.optimized_model_filepath).read_bytes())
    digest = hashlib.sha256(np.ascontiguousarray(embedding)).hexdigest()
    return {"embedding_sha256": digest, "embedding": embedding[0].tolist(), "operators": found}


if __name__ == "__main__":
    json.dump({"version": onnxruntime.__version__, "files": {path: run(path) for path in sys.argv[1:]}}, sys.stdout)
