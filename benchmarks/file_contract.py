"""Does the file hold what it promises? Sizes, identity with the plain twin, operators, speed, agreement of engines.

For ResNet34-32 and ECAPA-512 with random weights at 8, 4, 3, 2 and 1 bits: speeds and sizes are those of any weights.

    python benchmarks/file_contract.py --out results/file_contract.json [--also OTHER_PYTHON ...] [--skip-speed]

OTHER_PYTHON: interpreters with another onnxruntime, in which file and twin are run too (see run_files.py).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from sottovoce import quant
from sottovoce.audio.features import preset
from sottovoce.audio.talker import talker
from sottovoce.bits.plan import Plan
from sottovoce.errors import BadInput
from sottovoce.export import build, plain, read_weights, save
from sottovoce.export.frontend import add_front_end
from sottovoce.export.graph import Graph
from sottovoce.lab.bench import bench, interleave, machine, versions
from sottovoce.lab.run import write_text
from sottovoce.networks import build as build_network
from sottovoce.networks.frontend import FrontEnd
from sottovoce.runtime.engine import load

NETWORKS = {"ResNet34-32": "resnet34", "ECAPA-512": "ecapa512"}
WIDTHS = (8, 4, 3, 2, 1)
FRONT_END = preset("wespeaker")


def network(name: str) -> nn.Module:
    """A network with random weights, its batch norms re-estimated on voices so that activations keep their size."""
    torch.manual_seed(0)
    made = build_network(name)
    for norm in made.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.affine:
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.normal_(0, 0.2)
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.momentum = None  # the mean of all that follows
    features = FrontEnd(FRONT_END.name)(torch.from_numpy(np.stack([talker(3.0, seed=seed) for seed in range(40, 44)])))
    with torch.no_grad():
        for start in range(0, 200, 20):
            made(features[..., start : start + 100])
    return made.eval()


def make_file(made: nn.Module, bits: int, path: Path) -> dict[str, Any]:
    """Quantize without training, write file and plain twin; returns sizes, and whether the weights come back."""
    quant.attach(made, Plan.of_bits(bits, quant.quantizable(made)))
    coded = quant.coded(made)
    quant.detach(made)
    model = build(
        made, FRONT_END, coded, [talker(3.0, seed=seed) for seed in range(4)], metadata={"plan": f"{bits} bits"}
    )
    save(model, path)
    save(plain(model), twin_of(path))
    back = read_weights(path)
    weights = sum(entry.codes.size for entry in coded.values())
    return {
        "bytes": path.stat().st_size,
        "limit_bytes": int(1.03 * bits / 8 * weights + 250_000),
        "weights": weights,
        "packed_bytes": sum(entry.packed_bytes for entry in coded.values()),
        "weights_come_back": all(back[k].decode().tobytes() == coded[k].decode().tobytes() for k in coded),
        "convolutions": _convolutions(model),
    }


def _convolutions(model: onnx.ModelProto) -> int:
    """Convolutions with a coded weight: one more than the network's where one also reads the whole recording."""
    scaled = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return sum(node.op_type == "Conv" and node.input[1] in scaled for node in model.graph.node)


def twin_of(path: Path) -> Path:
    """Where the plain twin of a file lies."""
    return path.with_name(f"{path.stem}-plain.onnx")


def engines(path: Path, pythons: list[str]) -> list[dict[str, Any]]:
    """File and twin in the onnxruntime of every interpreter: same output, and which operators run."""
    rows = []
    for python in pythons:
        command = [python, str(Path(__file__).with_name("run_files.py")), str(path), str(twin_of(path))]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        file, twin = found["files"].values()
        same = file["embedding_sha256"] == twin["embedding_sha256"]
        rows.append({"onnxruntime": found["version"], "identical_to_twin": same, "operators": file["operators"]})
    return rows


def openvino_agreement(path: Path) -> dict[str, Any]:
    """OpenVINO and onnxruntime on the same file: cosine and largest difference over a few signals, or why not."""
    try:
        ours, theirs = load(path), load(path, engine="openvino")
    except BadInput as error:
        return {"refused": str(error)}
    pairs = [(ours.embed(wave), theirs.embed(wave)) for wave in (talker(3.0, seed=seed) for seed in range(20, 24))]
    return {
        "least_cosine": min(float(a @ b) for a, b in pairs),
        "largest_difference": max(float(np.abs(a - b).max()) for a, b in pairs),
    }


def front_end_share(path: Path) -> dict[str, float]:
    """Processor milliseconds of the front end alone and of the whole file, for 3 s, in alternation."""
    import onnxruntime

    graph = Graph()
    graph.outputs = {"features": [1, FRONT_END.mels, "frames"]}
    add_front_end(graph, FRONT_END, "features")
    graph.prune()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.model().SerializeToString(), options)
    runners = {"front end": lambda wave: session.run(None, {"wave": wave[None]}), "file": load(path).embed}
    turns = interleave(runners, talker(3.0, seed=1))
    front, whole = (1e3 * min(processor for _, processor in turns[name]) for name in runners)
    return {"front_end_ms": front, "file_ms": whole, "share": front / whole}


def main() -> None:
    """Measure all and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/file_contract.json"))
    parser.add_argument("--also", nargs="*", default=[], metavar="PYTHON")
    parser.add_argument("--skip-speed", action="store_true")
    options = parser.parse_args()
    rows = []
    with TemporaryDirectory() as folder:
        for title, name in NETWORKS.items():
            for bits in WIDTHS:
                began, made = time.monotonic(), network(name)
                path = Path(folder, f"{name}-{bits}.onnx")
                row = {"network": title, "bits": bits, **make_file(made, bits, path)}
                row["engines"] = engines(path, [sys.executable, *options.also])
                row["openvino"] = openvino_agreement(path)
                if not options.skip_speed:
                    row["front_end"] = front_end_share(path)
                    row["speed"] = bench(path, peers=bits in (8, 4, 2), encoder=made)["rows"]
                rows.append(row)
                print(f"{title} {bits} bits: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    result = {
        "command": "python benchmarks/file_contract.py --also PYTHON" + " --skip-speed" * options.skip_speed,
        "machine": machine(),
        "versions": {**versions(), "onnx": onnx.__version__},
        "threads": 1,
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
