"""What does each width cost on recorded speech? Every file measured on every list by the code that users run.

    python benchmarks/real.py --root FOLDER --out results/real.json float=f.onnx 8=m8.onnx 4=m4.onnx 2=m2.onnx

FOLDER holds trials/*.txt and the recordings that they name. The first file is what the others are compared with.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np

from sottovoce.lab.bench import machine, versions
from sottovoce.lab.evaluate import embed_names, evaluate_many, readable
from sottovoce.runtime.engine import load


def measured(name: str, path: Path, lists: list[Path], root: Path, draws: int) -> dict[str, Any]:
    """One file on all lists."""
    model = load(path)
    found = evaluate_many(model, lists, root, draws=draws)
    provenance = model.metadata.get("provenance", {})
    return {
        "name": name,
        "file": path.name,
        "bytes": path.stat().st_size,
        "plan": model.metadata.get("plan"),
        "recipe_sha256": provenance.get("recipe_sha256"),
        **found,
    }


def drift(first: Path, other: Path, lists: list[Path], root: Path) -> float:
    """Mean cosine between the embeddings of two files over all recordings."""
    names = list(dict.fromkeys(name for path in lists for name in readable(path).utterances))
    one, two = (embed_names(load(path), names, root, quiet=True)[0] for path in (first, other))
    return float(np.mean([float(one[name] @ two[name]) for name in one]))


@click.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--root", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--draws", default=1000, show_default=True, help="Bootstrap draws.")
def main(files: tuple[str, ...], root: Path, out: Path, draws: int) -> None:
    """Measure FILES, each NAME=PATH, on every list under ROOT/trials and write OUT."""
    pairs = [(name, Path(path)) for name, _, path in (file.partition("=") for file in files)]
    lists = sorted((root / "trials").glob("*.txt"))
    models = [measured(name, path, lists, root, draws) for name, path in pairs]
    for model, (_, path) in zip(models, pairs, strict=True):
        model["relative_eer"] = model["mean_eer"] / models[0]["mean_eer"] - 1
        model["cosine_to_first"] = drift(pairs[0][1], path, lists, root)
        change = f"{100 * model['relative_eer']:+.1f} %"
        print(f"{model['name']:8s} mean EER {100 * model['mean_eer']:.2f} % ({change})", file=sys.stderr)
    result = {
        "what": "EER and minDCF of each file on recorded speech; nearly all target pairs come from one session",
        "command": "python benchmarks/real.py --root FOLDER --out results/real.json " + " ".join(files),
        "machine": machine(),
        "versions": versions(),
        "models": models,
    }
    part = out.with_name(f"{out.name}.part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(part, out)


if __name__ == "__main__":
    main()
