"""What the default method makes of a trained network that comes from outside: as a checkpoint, and as an .onnx.

    python benchmarks/published.py models/ecapa256.safetensors --data RECORDINGS --out results/published.json

The checkpoint is stored as WeSpeaker stores it (prefix, classifier and all) and imported; the same network is exported
by torch, features in, as others publish it. Both go through `sotto compress` with its defaults. A row holds the drift
after every stage on recordings kept apart, so that `round` and `follow` stand beside nearest levels of the same run.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import torch

from sottovoce.lab import checkpoint as checkpoints
from sottovoce.lab.bench import machine, versions
from sottovoce.lab.compress import compress
from sottovoce.lab.imports import import_checkpoint
from sottovoce.lab.run import write_text


def as_wespeaker(network: torch.nn.Module, path: Path) -> None:
    """What WeSpeaker's training leaves: names behind the wrapper's prefix, and the classifier."""
    tensors = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({**tensors, "module.projection.weight": torch.randn(100, int(network.dim))}, path)


def as_onnx(network: torch.nn.Module, rows: int, path: Path) -> None:
    """What torch exports by default: (batch, frames, rows) in, batch and time dynamic."""

    class Turned(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, feats: torch.Tensor) -> torch.Tensor:
            return self.network(feats.transpose(1, 2))

    axes = {"feats": {0: "B", 1: "T"}, "embs": {0: "B"}}
    names = {"input_names": ["feats"], "output_names": ["embs"], "dynamic_axes": axes}
    torch.onnx.export(Turned().eval(), (torch.randn(1, 200, rows),), str(path), dynamo=False, opset_version=17, **names)


def alike(network: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether all tensors are the same, but for the counters that training alone reads."""
    theirs = other.state_dict()
    named = [(name, one) for name, one in network.state_dict().items() if not name.endswith("num_batches_tracked")]
    return all(torch.equal(one, theirs[name]) for name, one in named)


def row(kind: str, report: dict[str, Any]) -> dict[str, Any]:
    keys = ("plan", "bytes", "method", "stages", "cosine_to_checkpoint", "damage", "recordings", "seconds")
    return {"came_as": kind, **{key: report[key] for key in keys}}


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--utterances", default=200, show_default=True)
@click.option("--bits", "widths", multiple=True, type=int, default=(2, 4), show_default=True)
def main(checkpoint: Path, data: Path, out: Path, utterances: int, widths: tuple[int, ...]) -> None:
    """Measure and write OUT after every row."""
    loaded = checkpoints.load(checkpoint)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        as_wespeaker(loaded.network, folder / "avg_model.pt")
        as_onnx(loaded.network, loaded.front_end.rows, folder / "net.onnx")
        import_checkpoint(folder / "avg_model.pt", out=folder / "net.safetensors", front_end=loaded.front_end.name)
        same = alike(loaded.network, checkpoints.load(folder / "net.safetensors").network)
        for bits in widths:
            for kind, source in (("published .onnx", "net.onnx"), ("WeSpeaker checkpoint", "net.safetensors")):
                how = {"front_end": loaded.front_end.name} if kind.endswith(".onnx") else {}
                report = compress(
                    folder / source, out=folder / "m.onnx", bits=bits, data=data, utterances=utterances, **how
                )
                rows.append({"bits": bits, **row(kind, report)})
                print(json.dumps(rows[-1]), flush=True)
                write(out, rows, f"{checkpoint} --utterances {utterances}", same)


def write(out: Path, rows: list[dict[str, Any]], arguments: str, same: bool) -> None:
    result = {
        "what": "label-free compression of a trained network that came from outside; drift = mean of 1 - cosine to the "
        "float embeddings on recordings that no stage has seen",
        "command": f"python benchmarks/published.py {arguments} --data RECORDINGS --out results/{out.name}",
        "imported_weights_are_those_that_were_stored": same,
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
    }
    write_text(out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
