"""From the float checkpoint to what the repository ships: the 4-bit model with its operating point, and measured files.

    python scripts/ship.py --speech FOLDER [--runs runs]

FOLDER holds train.tsv and trials/*.txt. All files are made by `sotto compress` with its defaults: no labels, no
training. Only the 2-bit file in models/ is trained (recipes/real/ecapa256-2bit.toml); it is made anew when runs/2bit is
there, and the float checkpoint and its classifier when runs/float is. Writes src/sottovoce/models/shipped.onnx, models/
and models/out/*.onnx, which benchmarks/real.py measures.
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
@click.option("--runs", default="runs", type=click.Path(file_okay=False, path_type=Path))
def main(speech: Path, runs: Path) -> None:
    """Make every file that ships or is measured."""
    models = ROOT / "models"
    out, floating, trained = models / "out", models / "ecapa256.safetensors", models / "ecapa256-2bit.onnx"
    shipped = ROOT / "src" / "sottovoce" / "models" / "shipped.onnx"
    for folder in (out, shipped.parent):
        folder.mkdir(parents=True, exist_ok=True)
    data, lists = speech / "train.tsv", sorted((speech / "trials").glob("*.txt"))
    if (runs / "float" / "model.safetensors").exists():
        described(runs / "float", floating)
        (models / HEAD).write_bytes((runs / "float" / HEAD).read_bytes())
    say(export(floating, out=out / "float.onnx"))
    say(compress(floating, bits=4, data=data, out=out / "4bit.onnx", trials=lists, audio=speech))
    shipped.write_bytes((out / "4bit.onnx").read_bytes())
    for bits in (8, 3, 2):
        say(compress(floating, bits=bits, data=data, out=out / f"{bits}bit.onnx"))
    if (runs / "2bit" / "model.safetensors").exists():
        checkpoint = described(runs / "2bit", out / "2bit.safetensors")
        say(compress(checkpoint, data=data, out=trained, trials=lists, audio=speech))


if __name__ == "__main__":
    main()
