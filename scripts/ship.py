"""From finished runs to what the repository ships: the float checkpoint, the 4-bit model with its operating point.

    python scripts/ship.py --speech FOLDER --runs runs

runs/float, runs/4bit and runs/2bit were trained by the recipes of recipes/real; FOLDER holds train.tsv and
trials/*.txt. Writes models/ (the float checkpoint, the classifier it was trained with, from which quantized training
goes on, and the 2-bit file), src/sottovoce/models/shipped.onnx, and models/out/*.onnx, which benchmarks/real.py
measures.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from sottovoce.lab import checkpoint
from sottovoce.lab.compress import compress, export
from sottovoce.lab.train import HEAD

ROOT = Path(__file__).parents[1]
ABOUT = {
    "name": "ecapa256",
    "licence": "Apache-2.0; trained on corpora under CC BY 4.0, MIT and free licences, see docs/model-card.md",
    "trained_on": "8.0 h of speech, 2,054 speakers, six public corpora of read speech and single words",
}


def described(run: Path, out: Path) -> Path:
    """Copy a run's model, with what has to be known of it."""
    tensors, about = checkpoint.load_tensors(run / "model.safetensors")
    checkpoint.save_tensors(out, tensors, {**about, **ABOUT})
    return out


def say(report: dict[str, Any]) -> None:
    """One line on what was made."""
    print(f"{report['model']}: {report['bytes']:,} bytes, plan {report['plan']}", file=sys.stderr)


@click.command()
@click.option("--speech", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--runs", default="runs", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(speech: Path, runs: Path) -> None:
    """Make every file that ships or is measured."""
    out = ROOT / "models" / "out"
    shipped = ROOT / "src" / "sottovoce" / "models" / "shipped.onnx"
    for folder in (out, shipped.parent):
        folder.mkdir(parents=True, exist_ok=True)
    data, lists = speech / "train.tsv", sorted((speech / "trials").glob("*.txt"))
    floating = described(runs / "float", ROOT / "models" / "ecapa256.safetensors")
    say(export(floating, out=out / "float.onnx"))
    say(compress(floating, bits=8, data=data, out=out / "8bit.onnx"))
    for bits in (4, 2):
        say(compress(floating, bits=bits, data=data, out=out / f"{bits}bit-untrained.onnx"))
        trained = described(runs / f"{bits}bit", out / f"{bits}bit.safetensors")
        say(compress(trained, data=data, out=out / f"{bits}bit.onnx", trials=lists, audio=speech))
    shipped.write_bytes((out / "4bit.onnx").read_bytes())
    for source, kept in ((out / "2bit.onnx", "ecapa256-2bit.onnx"), (runs / "float" / HEAD, HEAD)):
        (ROOT / "models" / kept).write_bytes(source.read_bytes())


if __name__ == "__main__":
    main()
