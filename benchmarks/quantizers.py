"""Which quantizer loses least? The same float network, data, order of batches and epochs for every method and width.

    python benchmarks/quantizers.py recipes/real/quantizers.toml --speech FOLDER --work WORK \\
        --out results/quantizers.json

Every cell is a recipe: the base recipe and what its method changes. Cells are trained by `sotto train`, written as
`sotto compress` does and measured as files, on every list under FOLDER/trials. A cell that is done is not done again,
so the command goes on where it was stopped. Rates are compared with the float network's under the same draws of
speakers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from sottovoce.lab.bench import machine, versions
from sottovoce.lab.compare import compare
from sottovoce.lab.compress import compress, export
from sottovoce.lab.recipe import read_recipe, tomllib
from sottovoce.lab.run import write_text

Change = Mapping[str, Mapping[str, Any]]  # section of a recipe → keys


def plain(spec: str, **quant: Any) -> Callable[[int, str], Change]:
    """A method as its paper trains it: labels alone, every layer in one format."""
    return lambda bits, start: {"quant": {"plan": f"*={spec.format(bits=bits)}", **quant}}


def followed(
    spec: str, weight: float = 8.0, teacher: str = "", hears: str = "augmented", **quant: Any
) -> Callable[[int, str], Change]:
    """A method that also follows embeddings: the float network's, or those of a larger one, turned onto its own."""
    return lambda bits, start: {
        "quant": {"plan": f"*={spec.format(bits=bits)}", **quant},
        "loss": {
            "teacher": teacher or start,
            "teacher_weight": weight,
            "teacher_turned": 16 if teacher else 0,
            "teacher_hears": hears,
        },
    }


LARGER = "models/ecapa256.safetensors"


METHODS: dict[str, Callable[[int, str], Change]] = {
    "uniform": plain("uniform{bits}/layer/clip3"),
    "powers of two": plain("pot{bits}/layer/clip3"),
    "KMQAT per layer": plain("kmeans{bits}/layer/mass"),
    "KMQAT per channel": plain("kmeans{bits}/codebook/mass"),
    "LSQ": plain("lsq{bits}/layer/lsq"),
    "ours": followed("kmeans{bits}/codebook/learned"),
    "ours from rounded": followed("kmeans{bits}/codebook/learned", round_batches=4),
    "ours from larger": followed("kmeans{bits}/codebook/learned", 16.0, LARGER, round_batches=4),
    "ours from clean": followed("kmeans{bits}/codebook/learned", hears="clean", round_batches=4),
    "ours from larger clean": followed("kmeans{bits}/codebook/learned", 16.0, LARGER, "clean", round_batches=4),
    "KMQAT per layer from larger": followed("kmeans{bits}/layer/mass", 16.0, LARGER),
    "learned from rounded": plain("kmeans{bits}/codebook/learned", round_batches=4),
    "ours light": followed("kmeans{bits}/codebook/learned", 2.0, round_batches=4),
    # what of ours does it: one change at a time
    "KMQAT per layer + teacher": followed("kmeans{bits}/layer/mass"),
    "Lloyd per channel scale + teacher": followed("kmeans{bits}/channel/mse"),
    "learned per channel scale + teacher": followed("kmeans{bits}/channel/learned"),
    "learned per channel": plain("kmeans{bits}/codebook/learned"),
}
GRID = ["uniform", "powers of two", "KMQAT per layer", "KMQAT per channel", "LSQ", "ours"]


def name_of(method: str, bits: int, seed: int) -> str:
    """Name of a cell."""
    return f"{method}, {bits} bits, seed {seed}"


def seeds_together(wanted: list[tuple[str, int, int]]) -> dict[str, list[str]]:
    """Name of each method and width → its cells under all seeds."""
    found: dict[str, list[str]] = {}
    for method, bits, seed in wanted:
        found.setdefault(f"{method}, {bits} bits", []).append(name_of(method, bits, seed))
    return found


def folder_of(work: Path, name: str) -> Path:
    """Where a cell is trained and written."""
    return work / name.replace(", ", "-").replace(" ", "_").replace("+", "and")


def toml(content: Mapping[str, Any]) -> str:
    """A recipe's dictionary as TOML; its values are strings, numbers and lists, which JSON writes alike."""
    flat = {key: value for key, value in content.items() if not isinstance(value, Mapping)}
    tables = {key: value for key, value in content.items() if isinstance(value, Mapping)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in flat.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def cell(base: Mapping[str, Any], method: str, bits: int, seed: int) -> dict[str, Any]:
    """The recipe of a cell, as a dictionary."""
    made = {key: dict(value) if isinstance(value, Mapping) else value for key, value in base.items()}
    for section, keys in METHODS[method](bits, str(base["quant"]["start"])).items():
        made[section] = {**made.get(section, {}), **keys}
    return {**made, "seed": seed}


def make(folder: Path, recipe: Mapping[str, Any], speech: Path, cache: Path, threads: int) -> None:
    """Train a cell, in a process of its own with so many threads, where it is not trained yet, and write its file.

    The file is bare: a calibration takes as many bytes in every cell and tells nothing of methods.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(toml(recipe), encoding="utf-8")
    trained, log = folder / "run" / "model.safetensors", folder / "log.txt"
    command = ["train", str(folder / "recipe.toml"), "--run", str(folder / "run"), "--data", str(speech)]
    if not trained.exists():
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        run = [sys.executable, "-m", "sottovoce", *command, "--cache", str(cache)]
        with open(log, "a", encoding="utf-8") as file:
            done = subprocess.run(run, env=environment, stdout=file, stderr=file, check=False)
        if done.returncode:
            raise click.ClickException(f"sotto {' '.join(command)}: failed, see {log}")
    compress(trained, data=speech / "train.tsv", out=folder / "model.onnx", bare=True)


def cost(folder: Path) -> dict[str, float]:
    """Steps and the median seconds of one, from the run's log."""
    seconds = sorted(json.loads(line)["seconds"] for line in (folder / "run" / "log.jsonl").read_text().splitlines())
    return {"steps": len(seconds), "seconds_per_step": seconds[len(seconds) // 2]}


@click.command()
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--speech", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--work", required=True, type=click.Path(file_okay=False, path_type=Path), help="Run folders.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--methods", default=",".join(GRID), show_default=True)
@click.option("--bits", default="8,4,3,2,1", show_default=True)
@click.option("--seeds", default="1", show_default=True)
@click.option("--workers", default=1, show_default=True, help="Cells trained at a time.")
@click.option("--threads", default=2, show_default=True, help="Threads of each.")
@click.option("--measure-on", type=click.Path(exists=True, file_okay=False, path_type=Path), help="[default: speech]")
@click.option("--against", default="KMQAT per layer,KMQAT per channel", show_default=True, help="Set beside ours.")
@click.option("--draws", default=1000, show_default=True, help="Bootstrap draws.")
@click.option("--measure-only", is_flag=True, help="Train nothing; measure the cells that are there.")
@click.option("--write-again", is_flag=True, help="Write the files of trained cells again.")
def main(
    recipe: Path,
    speech: Path,
    work: Path,
    out: Path,
    methods: str,
    bits: str,
    seeds: str,
    workers: int,
    threads: int,
    measure_on: Path | None,
    against: str,
    draws: int,
    measure_only: bool,
    write_again: bool,
) -> None:
    """Train, write and measure every cell of METHODS × BITS × SEEDS that is not there yet; then write OUT."""
    read_recipe(recipe)  # refuses what is wrong before anything starts
    base = tomllib.loads(recipe.read_text(encoding="utf-8"))
    wanted = [(m, int(b), int(s)) for s in seeds.split(",") for b in bits.split(",") for m in methods.split(",")]
    if measure_only:
        wanted = [a for a in wanted if (folder_of(work, name_of(*a)) / "run" / "model.safetensors").exists()]
    work.mkdir(parents=True, exist_ok=True)
    first = work / "float.onnx"
    if not first.exists():
        export(base["quant"]["start"], out=first)
    began = time.monotonic()

    def one(asked: tuple[str, int, int]) -> None:
        folder = folder_of(work, name_of(*asked))
        if write_again or not (folder / "model.onnx").exists():
            make(folder, cell(base, *asked), speech, work / "cache", threads)
            print(f"{time.monotonic() - began:6.0f} s  {name_of(*asked)}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, wanted))
    root = measure_on or speech
    files = {"float": first, **{name_of(*asked): folder_of(work, name_of(*asked)) / "model.onnx" for asked in wanted}}
    groups = seeds_together(wanted) if "," in seeds else {}
    pairs = [
        (mine, f"{other}{mine[len(method) :]}")
        for mine in [*files, *groups]
        if (method := mine.partition(",")[0]).startswith("ours")
        for other in against.split(",")
        if f"{other}{mine[len(method) :]}" in [*files, *groups]
    ]
    measured = compare(files, sorted((root / "trials").glob("*.txt")), root, pairs=pairs, groups=groups, draws=draws)
    for model, asked in zip(measured["models"][1:], wanted, strict=True):
        model.update(dict(zip(("method", "bits", "seed"), asked, strict=True)), **cost(folder_of(work, model["name"])))
    result = {
        "what": "one float network quantized by every method and width, same data and epochs; mean EER of the files",
        "command": f"python benchmarks/quantizers.py {recipe} --speech FOLDER --work WORK --out {out} --methods "
        f"'{methods}' --bits {bits} --seeds {seeds}{' --measure-on STRESS' if measure_on else ''}",
        "recipe": recipe.name,
        "machine": machine(),
        "versions": versions(),
        **measured,
    }
    write_text(out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
