"""Cosine of many trials: the library beside a naive loop, in the same run.

    OMP_NUM_THREADS=1 python benchmarks/scoring.py --out results/scoring.json

Also the speaker bootstrap. Times are processor seconds, the least of several rounds.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from sottovoce.scores.metrics import equal_error, intervals, least_cost
from sottovoce.scores.scoring import cosine_trials


def cost(work: Callable[[], Any], rounds: int = 3) -> tuple[float, Any]:
    """Least processor time of a few rounds, in seconds, and the result."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        result = work()
        times.append(time.process_time() - start)
    return min(times), result


def sparse(rng: np.random.Generator, utterances: int, trials: int, dim: int) -> dict[str, Any]:
    """Trials over many utterances, few for each, as in VoxCeleb1-E."""
    table = rng.normal(size=(utterances, dim)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    enrol, test = rng.integers(utterances, size=(2, trials))
    seconds, scores = cost(lambda: cosine_trials(table, enrol, test))
    naive, looped = cost(lambda: [float(table[a] @ table[b]) for a, b in zip(enrol, test, strict=True)], rounds=1)
    return {
        "trials": trials,
        "utterances": utterances,
        "dim": dim,
        "seconds": seconds,
        "loop_seconds": naive,
        "largest_difference": float(np.abs(scores - np.array(looped)).max()),
    }


def dense(rng: np.random.Generator, enrolled: int, tested: int, trials: int, dim: int) -> dict[str, Any]:
    """A few enrolled speakers against many recordings, as in CN-Celeb."""
    table = rng.normal(size=(enrolled + tested, dim)).astype(np.float32)
    enrol, test = rng.integers(enrolled, size=trials), enrolled + rng.integers(tested, size=trials)
    seconds, _ = cost(lambda: cosine_trials(table, enrol, test))
    return {"trials": trials, "enrolled": enrolled, "tested": tested, "dim": dim, "seconds": seconds}


def resampling(rng: np.random.Generator, trials: int, speakers: int, draws: int) -> dict[str, Any]:
    """EER and minDCF at two priors from the same draws."""
    enrol = rng.integers(speakers, size=trials)
    test = np.where(rng.random(trials) < 0.1, enrol, rng.integers(speakers, size=trials))
    labels = enrol == test
    scores = rng.normal(size=trials) + 3.0 * labels
    metrics = [equal_error, least_cost(0.01), least_cost(0.05)]
    seconds, _ = cost(lambda: intervals(scores, labels, enrol, test, metrics, draws), rounds=1)
    return {"trials": trials, "speakers": speakers, "draws": draws, "figures": len(metrics), "seconds": seconds}


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures here, as JSON.")
def main(out: Path | None) -> None:
    """Measure and print."""
    rng = np.random.default_rng(0)
    result = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/scoring.py --out results/scoring.json",
        "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "sparse": sparse(rng, utterances=145_000, trials=580_000, dim=256),
        "dense": dense(rng, enrolled=196, tested=17_777, trials=3_484_292, dim=256),
        "bootstrap": resampling(rng, trials=40_000, speakers=1000, draws=1000),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if out:
        part = out.with_name(f"{out.name}.part")
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, out)


if __name__ == "__main__":
    main()
