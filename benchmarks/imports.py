"""What it takes to bring in a checkpoint of full size: import, float file, 4-bit file, and how far each is off.

    python benchmarks/imports.py RECORDINGS OUT.json [--method nearest] [--keep NETWORK,NETWORK]

Random weights in WeSpeaker's ResNet34 and SpeechBrain's ECAPA-1024, stored by torch.save under the toolkits' names:
times and parity are those of a trained network, the cosine of the 4-bit file is not. --keep: rows of OUT.json that are
not measured again.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sottovoce import networks
from sottovoce.audio.talker import talker
from sottovoce.lab import checkpoint as checkpoints
from sottovoce.lab.bench import machine, versions
from sottovoce.lab.compress import compress, export
from sottovoce.lab.imports import embed, import_checkpoint
from sottovoce.lab.layouts import LAYOUTS
from sottovoce.lab.run import write_text
from sottovoce.runtime.engine import load

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "lab"))
import foreign

CASES = {"resnet34": ("WeSpeaker ResNet", "wespeaker"), "ecapa1024-speechbrain": ("SpeechBrain ECAPA", "speechbrain")}
RECORDINGS = 16


def store(path: Path, preset: str, layout_name: str) -> None:
    """A checkpoint as the toolkit would write it."""
    (layout,) = [layout for layout in LAYOUTS if layout.name == layout_name]
    with torch.device("meta"):
        shapes = {layout.theirs(n): tuple(t.shape) for n, t in networks.build(preset).state_dict().items()}
    torch.save({name: torch.from_numpy(np.asarray(a)) for name, a in foreign.weights(shapes).items()}, path)


def measure(preset: str, data: Path, method: str, folder: Path) -> dict[str, Any]:
    layout, front_end = CASES[preset]
    source, checkpoint = folder / "foreign.pt", folder / "net.safetensors"
    store(source, preset, layout)
    began = time.monotonic()
    report = import_checkpoint(source, out=checkpoint, front_end=front_end)
    row: dict[str, Any] = {"network": preset, "toolkit": report["toolkit"], "parameters": report["parameters"]}
    row.update(source_bytes=source.stat().st_size, import_s=round(time.monotonic() - began, 2))
    network = checkpoints.load(checkpoint).network
    waves = [talker(3.0, seed=seed) for seed in range(50, 54)]
    expected = np.stack([embed(network, front_end, wave) for wave in waves])
    row["float_bytes"] = export(checkpoint, out=folder / "float.onnx")["bytes"]
    found = np.stack([load(folder / "float.onnx").embed(wave) for wave in waves])
    row["float_largest_difference"] = float(np.abs(found - expected).max())
    squeezed = compress(checkpoint, out=folder / "m4.onnx", bits=4, data=data, utterances=RECORDINGS, method=method)
    row.update(method=method, compress_s=squeezed["seconds"], bytes=squeezed["bytes"])
    row["cosine_to_checkpoint"] = squeezed["cosine_to_checkpoint"]
    model = load(folder / "m4.onnx")
    row["self_test_cosine"] = self_test_cosine(model)
    row["embed_3s_ms"] = round(1000 * min(_seconds(model, wave) for wave in waves * 3), 1)
    return row


def self_test_cosine(model: Any) -> float:
    """Of the golden embedding, made in float, to what int8 kernels give here: random networks magnify rounding."""
    stored = np.frombuffer(base64.b64decode(model.metadata["self_test"]["embedding"]), dtype="<f4")
    return float(stored @ model.embed(talker(**model.metadata["self_test"]["talker"])))


def kept(out: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rows of an earlier OUT that are not measured again, each saying which run it is from."""
    if not names:
        return {}
    before = json.loads(out.read_text(encoding="utf-8"))
    told = {"machine": before["machine"], "versions": before["versions"], "command": before.get("command")}
    rows = {row["network"]: {**row, "from": row.get("from", {"run": "earlier", **told})} for row in before["rows"]}
    return {name: rows[name] for name in names}


def _seconds(model: Any, wave: np.ndarray) -> float:
    began = time.thread_time()
    model.embed(wave)
    return time.thread_time() - began


def main(arguments: list[str]) -> None:
    data, out = Path(arguments[0]), Path(arguments[1])
    method = arguments[arguments.index("--method") + 1] if "--method" in arguments else "nearest"
    earlier = kept(out, arguments[arguments.index("--keep") + 1].split(",") if "--keep" in arguments else ())
    rows = []
    for preset in CASES:
        if preset in earlier:
            rows.append(earlier[preset])
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(preset, data, method, Path(folder)))
        print(rows[-1], flush=True)
    result = {
        "what": "import, float file and 4-bit file of networks of full size with random weights; seconds of wall time",
        "command": " ".join(["python benchmarks/imports.py RECORDINGS", f"results/{out.name}", *arguments[2:]]),
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
    }
    write_text(out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
