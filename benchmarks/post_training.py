"""How near does compression without labels come to the float network: by width, levels, stage, recordings, allocation?

    python benchmarks/post_training.py CHECKPOINT --data train.tsv --data FOLDER --judge train.tsv --out FILE.json

Every row is one plan on one kind of data: the mean of 1 - cosine to the float network after every stage, on recordings
of --judge that are neither rounded on nor used to choose between stages. Rows that FILE.json holds already are kept.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from sottovoce import quant
from sottovoce.audio.features import preset
from sottovoce.audio.wav import read
from sottovoce.bits.plan import Plan, plan_bytes
from sottovoce.errors import BadInput
from sottovoce.lab import budget, posttraining
from sottovoce.lab import checkpoint as checkpoints
from sottovoce.lab.compress import RATE, read_waves, recordings
from sottovoce.lab.run import write_text
from sottovoce.networks.frontend import FrontEnd

JUDGED = 64  # recordings that rows are judged on
JUDGED_S = 6.0  # of each, at most
WHAT = "mean of 1 - cosine to the float embeddings on other recordings than those worked on, after every stage"


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--data", "sources", required=True, multiple=True, type=click.Path(exists=True, path_type=Path))
@click.option("--judge", required=True, type=click.Path(exists=True, path_type=Path), help="Folder or manifest.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--bits", multiple=True, type=int, default=(4, 3, 2), show_default=True)
@click.option("--granularity", multiple=True, default=("channel", "codebook"), show_default=True)
@click.option("--sensitivity", multiple=True, help="Also plans of --average bits a weight, by these.")
@click.option("--average", type=float, default=3.0, show_default=True)
@click.option("--method", default=posttraining.DEFAULT, show_default=True)
@click.option("--utterances", default=200, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    checkpoint: Path,
    sources: tuple[Path, ...],
    judge: Path,
    out: Path,
    bits: tuple[int, ...],
    granularity: tuple[str, ...],
    sensitivity: tuple[str, ...],
    average: float,
    method: str,
    utterances: int,
    seed: int,
) -> None:
    """Measure what is not in OUT yet and write it there, row by row."""
    loaded = checkpoints.load(checkpoint)
    if loaded.plan:
        raise BadInput(f"{checkpoint}: has plan {loaded.plan!r}; give a float checkpoint")
    front_end = preset(loaded.about["front_end"])
    quant.positive_gains(loaded.network, torch.randn(2, front_end.rows, 64))
    judged = _judged(judge, utterances, seed, FrontEnd(front_end))
    wanted = posttraining.embeddings(loaded.network.eval(), judged)
    before = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"rows": [], "commands": []}
    rows: list[dict[str, Any]] = before["rows"]
    commands = list(dict.fromkeys([*before["commands"], _command()]))
    for source in sources:
        waves = read_waves(source, utterances, seed, front_end.samples(int(loaded.network.min_frames)))
        names = [f"kmeans{width}/{shared}" for width in bits for shared in granularity]
        names += [f"{average:g} bits a weight by {name}" for name in sensitivity]
        for name in names:
            key = {"data": source.name, "plan": name, "method": method, "utterances": len(waves), "seed": seed}
            if any(key.items() <= row.items() for row in rows):
                continue
            plan, took = _plan(name, loaded, source, seed)
            row = {**key, **_measure(loaded, plan, waves, judged, wanted, method, seed), "allocation_cpu_seconds": took}
            told = ", ".join(f"{stage['name']} {stage['drift']:.4f}" for stage in row["stages"])
            print(f"{source.name}, {name}, {row['plan_bytes']:,} bytes: {told}", file=sys.stderr)
            rows.append(row)
            _write(out, rows, checkpoint, commands)


def _judged(judge: Path, utterances: int, seed: int, front: FrontEnd) -> list[Tensor]:
    """Features of the recordings that `read_waves` would draw last: none of the first `utterances` is among them."""
    paths = recordings(judge)
    if len(paths) < 2 * (utterances + JUDGED):
        raise BadInput(f"{judge}: has {len(paths)} recordings, too few to judge on others than those worked on")
    last = np.random.default_rng([seed, 2]).permutation(len(paths))[-JUDGED:]
    waves = [read(paths[index], RATE)[: int(JUDGED_S * RATE)] for index in last]
    with torch.no_grad():
        return [front(torch.from_numpy(wave)[None]) for wave in waves]


def _plan(name: str, loaded: checkpoints.Checkpoint, source: Path, seed: int) -> tuple[Plan, float]:
    """The plan of a row and the CPU seconds it took to find."""
    average, by, sensitivity = name.partition(" bits a weight by ")
    began = time.process_time()
    if not by:
        width = int(name.partition("/")[0].removeprefix("kmeans"))
        return Plan.of_bits(width, quant.quantizable(loaded.network), spec=name), 0.0
    report = budget.allocate(
        loaded.path, bits_per_weight=float(average), data=source, sensitivity=sensitivity, seed=seed
    )
    return Plan.parse(report["plan"]), round(time.process_time() - began, 1)


def _measure(
    loaded: checkpoints.Checkpoint,
    plan: Plan,
    waves: list[Any],
    judged: list[Tensor],
    wanted: Tensor,
    method: str,
    seed: int,
) -> dict[str, Any]:
    network, began = copy.deepcopy(loaded.network).eval(), time.process_time()
    shapes, stages = quant.quantizable(network), []
    quant.attach(network, plan)

    def judge(stage: posttraining.Stage) -> None:
        cosine = (posttraining.embeddings(network, judged) * wanted).sum(dim=1)
        figures = {"drift": float(1 - cosine.mean()), "least_cosine": float(cosine.min())}
        stages.append({"name": stage.name, **figures, "drift_on_data": stage.drift, "kept": stage.kept})

    front_end = preset(loaded.about["front_end"])
    posttraining.improve(network, loaded.network, front_end, waves, method=method, seed=seed, each=judge)
    took = round(time.process_time() - began, 1)
    return {"plan_text": str(plan), "plan_bytes": plan_bytes(plan, shapes), "cpu_seconds": took, "stages": stages}


def _command() -> str:
    """This call, with files by their names."""
    given = [Path(text).name if os.sep in text else text for text in sys.argv[1:]]
    return shlex.join(["python", "benchmarks/post_training.py", *given])


def _write(out: Path, rows: list[dict[str, Any]], checkpoint: Path, commands: list[str]) -> None:
    result = {
        "what": WHAT,
        "commands": commands,
        "checkpoint": checkpoint.name,
        "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "judged_on": JUDGED,
        "rows": rows,
    }
    write_text(out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
