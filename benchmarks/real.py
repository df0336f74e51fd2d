"""What does each width cost on recorded speech? Every file measured on every list by the code that users run.

    python benchmarks/real.py --root FOLDER --out results/real.json float=f.onnx 8=m8.onnx 4=m4.onnx 2=m2.onnx

FOLDER holds trials/*.txt and the recordings that they name. The first file is what the others are compared with.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import click

from sottovoce.lab.bench import machine, versions
from sottovoce.lab.compare import compare
from sottovoce.lab.run import write_text


@click.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--root", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--draws", default=1000, show_default=True, help="Bootstrap draws.")
def main(files: tuple[str, ...], root: Path, out: Path, draws: int) -> None:
    """Measure FILES, each NAME=PATH, on every list under ROOT/trials and write OUT."""
    pairs = [(name, Path(path)) for name, _, path in (file.partition("=") for file in files)]
    lists = sorted((root / "trials").glob("*.txt"))
    models = compare(dict(pairs), lists, root, draws=draws)["models"]
    for model in models:
        low, high = (100 * edge for edge in model["relative_eer_interval"])
        change = f"{100 * model['relative_eer']:+.1f} %, {low:+.1f} to {high:+.1f}"
        print(f"{model['name']:20s} mean EER {100 * model['mean_eer']:.2f} % ({change})", file=sys.stderr)
    command = ["python", "benchmarks/real.py", "--root", "FOLDER", "--out", f"results/{out.name}", *files]
    result = {
        "what": "EER and minDCF of each file on recorded speech; nearly all target pairs come from one session",
        "command": shlex.join(command),
        "machine": machine(),
        "versions": versions(),
        "models": models,
    }
    write_text(out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
