"""Scores, AS-norm, segments and the speaker bootstrap on lists as large as VoxCeleb1-E, naive loops beside them.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python benchmarks/scoring.py --out results/scoring.json

Of several rounds the least wall time and the least processor time (of all threads) are told: on a machine that others
use too, the wall time is theirs as well. A loop is timed on a part of the work and its time scaled up.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from sottovoce.lab.bench import machine, versions
from sottovoce.lab.run import write_text
from sottovoce.scores.metrics import eer, equal_error, intervals, least_cost
from sottovoce.scores.scoring import cosine_trials
from sottovoce.scores.snorm import cohort_statistics
from sottovoce.scores.views import standing_for

COMMAND = "OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python benchmarks/scoring.py --out results/scoring.json"


def cost(work: Callable[[], Any], rounds: int = 3) -> tuple[dict[str, float], Any]:
    """Least wall and processor seconds of a few rounds, and the result."""
    wall, processor = [], []
    for _ in range(rounds):
        began, spent = time.perf_counter(), time.process_time()
        result = work()
        wall.append(time.perf_counter() - began)
        processor.append(time.process_time() - spent)
    return {"wall_s": min(wall), "processor_s": min(processor)}, result


def scaled(times: dict[str, float], factor: float) -> dict[str, float]:
    """The time of a part of the work, as that of all of it."""
    return {f"loop_{name}": factor * value for name, value in times.items()}


def units(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    table = rng.standard_normal(shape, dtype=np.float32)
    table /= np.linalg.norm(table, axis=-1, keepdims=True)
    return table


def normalisation(rng: np.random.Generator, utterances: int, members: int, top: int, dim: int) -> dict[str, Any]:
    """Mean and deviation of the highest scores of every utterance with a cohort."""
    table, cohort = units(rng, utterances, dim), units(rng, members, dim)
    times, found = cost(lambda: cohort_statistics(table, cohort, top), rounds=2)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)

    def loop() -> list[tuple[float, float]]:
        highest = [sorted((float(row @ one) for one in cohort), reverse=True)[:top] for row in table[:20]]
        return [(float(np.mean(one)), float(np.std(one))) for one in highest]

    naive, looped = cost(loop, rounds=1)
    return {
        "utterances": utterances,
        "cohort": members,
        "top": top,
        "dim": dim,
        **times,
        "limit_s": 12.0,
        "peak_bytes_of_process": int(1024 * kilobytes),
        "limit_bytes": 10**9,
        **scaled(naive, utterances / 20),
        "largest_difference": float(np.abs(found[:20] - np.array(looped)).max()),
    }


def sparse(rng: np.random.Generator, utterances: int, trials: int, dim: int) -> dict[str, Any]:
    """Trials over many utterances, few for each, as in VoxCeleb1-E."""
    table = units(rng, utterances, dim)
    enrol, test = rng.integers(utterances, size=(2, trials))
    times, scores = cost(lambda: cosine_trials(table, enrol, test))
    naive, looped = cost(lambda: [float(table[a] @ table[b]) for a, b in zip(enrol, test, strict=True)], rounds=1)
    return {
        "trials": trials,
        "utterances": utterances,
        "dim": dim,
        **times,
        "limit_s": 1.5,
        **scaled(naive, 1.0),
        "largest_difference": float(np.abs(scores - np.array(looped)).max()),
    }


def dense(rng: np.random.Generator, enrolled: int, tested: int, trials: int, dim: int) -> dict[str, Any]:
    """A few enrolled speakers against many recordings, as in CN-Celeb."""
    table = units(rng, enrolled + tested, dim)
    enrol, test = rng.integers(enrolled, size=trials), enrolled + rng.integers(tested, size=trials)
    times, _ = cost(lambda: cosine_trials(table, enrol, test))
    return {"trials": trials, "enrolled": enrolled, "tested": tested, "dim": dim, **times}


def segments(rng: np.random.Generator, utterances: int, each: int, trials: int, dim: int) -> dict[str, Any]:
    """The mean cosine of all pairs of segments, the means of the segments included."""
    pieces = units(rng, utterances, each, dim)
    enrol, test = rng.integers(utterances, size=(2, trials))
    times, scores = cost(lambda: cosine_trials(np.stack([standing_for([one]) for one in pieces]), enrol, test))
    part = trials // 100
    pairs = list(zip(enrol[:part], test[:part], strict=True))
    naive, looped = cost(lambda: [np.mean([[x @ y for y in pieces[b]] for x in pieces[a]]) for a, b in pairs], rounds=1)
    return {
        "trials": trials,
        "utterances": utterances,
        "segments": each,
        "dim": dim,
        **times,
        "wall_us_per_trial": 1e6 * times["wall_s"] / trials,
        "processor_us_per_trial": 1e6 * times["processor_s"] / trials,
        "limit_us_per_trial": 2.0,
        **scaled(naive, trials / part),
        "largest_difference": float(np.abs(scores[:part] - np.array(looped)).max()),
    }


def resampling(rng: np.random.Generator, trials: int, speakers: int, draws: int) -> dict[str, Any]:
    """EER and minDCF at two priors from the same draws; the loop, which repeats trials, has the EER alone."""
    enrol = rng.integers(speakers, size=trials)
    test = np.where(rng.random(trials) < 0.1, enrol, rng.integers(speakers, size=trials))
    labels = (enrol == test).astype(np.uint8)
    scores = rng.normal(size=trials) + 3.0 * labels
    metrics = [equal_error, least_cost(0.01), least_cost(0.05)]
    times, found = cost(lambda: intervals(scores, labels, enrol, test, metrics, draws), rounds=1)

    def loop(count: int) -> list[float]:
        again, rates = np.random.default_rng(0), []
        for _ in range(count):
            drawn = np.bincount(again.integers(speakers, size=speakers), minlength=speakers)
            copies = np.where(enrol == test, drawn[enrol], drawn[enrol] * drawn[test])
            rates.append(eer(np.repeat(scores, copies), np.repeat(labels, copies))[0])
        return rates

    part = draws // 20
    naive, _ = cost(lambda: loop(part), rounds=1)
    return {
        "trials": trials,
        "speakers": speakers,
        "draws": draws,
        "figures": len(metrics),
        **times,
        "limit_s": 20.0,
        **scaled(naive, draws / part),
        "eer_interval": list(found[0]),
    }


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures here, as JSON.")
def main(out: Path | None) -> None:
    """Measure and print."""
    rng = np.random.default_rng(0)
    result: dict[str, Any] = {
        "command": COMMAND,
        "machine": machine(),
        "versions": {name: versions()[name] for name in ("python", "numpy")},
        "threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "load_before": os.getloadavg()[0],  # processes that wanted a processor, over the last minute
        "as_norm": normalisation(rng, utterances=145_000, members=6000, top=300, dim=256),
        "sparse": sparse(rng, utterances=145_000, trials=580_000, dim=256),
        "dense": dense(rng, enrolled=196, tested=17_777, trials=3_484_292, dim=256),
        "segments": segments(rng, utterances=20_000, each=10, trials=580_000, dim=256),
        "bootstrap": resampling(rng, trials=40_000, speakers=1000, draws=1000),
    }
    result["load_after"] = os.getloadavg()[0]
    text = json.dumps(result, indent=1)
    print(text)
    if out:
        write_text(out, text + "\n")


if __name__ == "__main__":
    main()
