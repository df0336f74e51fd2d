"""How far is a calibration from pseudo-trials off one from labelled trials, measured on labelled trials?

    python benchmarks/pseudo_calibration.py --root FOLDER --data cohort --data train.tsv \
        --out results/pseudo_calibration.json 4=src/sottovoce/models/shipped.onnx

FOLDER holds trials/*.txt and their recordings; each --data is a folder or manifest in it whose recordings, without
their labels, make the pseudo-trials, as `sotto compress --data` makes them. The labelled calibration is fitted on half
of the speakers of all lists together and measured on the other half, both ways; that from pseudo-trials has seen none
of them and is measured on the same halves, on all trials and list by list. Both are fitted by the default
method; beside it stands a line. Threshold: what the pseudo-trials' EER threshold does there, beside the threshold that
the trials themselves would have asked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from sottovoce.lab import pseudo
from sottovoce.lab.bench import machine, versions
from sottovoce.lab.calibrate import METHODS, fit, judged, scored_lists
from sottovoce.lab.compress import read_waves
from sottovoce.lab.pool import Pool, both_ways, pooled
from sottovoce.lab.run import write_text
from sottovoce.runtime.engine import Model, load
from sottovoce.scores.calibration import Calibration
from sottovoce.scores.metrics import eer, errors_at, min_cllr

UTTERANCES = 200  # of `sotto compress`


def at(pool: Pool, threshold: float) -> dict[str, float]:
    """Both rates at a threshold."""
    missed, accepted = errors_at(pool.scores, pool.labels.astype(bool), threshold)
    targets = int(pool.labels.sum())
    return {"misses": missed / targets, "false_accepts": accepted / (len(pool.labels) - targets)}


def costs(pool: Pool, calibration: Calibration) -> dict[str, float]:
    found = judged(pool, calibration)
    return {"cllr": found["cllr"], "min_cllr": found["min_cllr"]}


def mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def halves(pool: Pool, halvings: int) -> list[tuple[Pool, Pool]]:
    return [pair for seed in range(halvings) for pair in both_ways(pool, seed)]


def from_labels(pool: Pool, halvings: int) -> dict[str, Any]:
    """The calibration and the EER threshold of one half of the speakers on the other."""
    pairs = halves(pool, halvings)
    usual, by_line = (
        mean([costs(test, fit(half, method, 0.5)) for half, test in pairs]) for method in (METHODS[0], "affine")
    )
    line = fit(pool, "affine", 0.5)
    return {
        **usual,
        "line": {"scale": line.scale, "offset": line.offset, "cllr": by_line["cllr"]},
        "at_eer_threshold": mean([at(test, eer(half.scores, half.labels)[1]) for half, test in pairs]),
    }


def from_pseudo_trials(model: Model, data: Path, pool: Pool, halvings: int, seed: int) -> dict[str, Any]:
    """The calibration and the EER threshold of pseudo-trials on the same halves, and list by list."""
    crops = pseudo.cut(read_waves(data, UTTERANCES, seed, model.min_samples), model.rate, model.min_samples)
    trials = pseudo.scored(model, crops)
    calibration, line = (fit(pooled([trials]), method, 0.5) for method in (METHODS[0], "affine"))
    rate, threshold = eer(trials.scores, trials.labels)
    entries = pseudo.calibrated(trials, crops, model.rate)
    tests = [test for _, test in halves(pool, halvings)]
    alone = {name: pool.only(pool.of == number) for number, name in enumerate(pool.lists)}
    return {
        "recordings": len(crops.pairs),
        "crop_s": crops.samples / model.rate,
        "left_out": crops.left_out,
        "eer_of_pseudo_trials": rate,
        "threshold": threshold,
        "points": {name: point["threshold"] for name, point in entries["operating_points"].items()},
        "refused": entries["operating_points_refused"],
        "cllr_said": entries["calibration"]["cllr"],
        **mean([costs(test, calibration) for test in tests]),
        "line": {"scale": line.scale, "offset": line.offset, "cllr": mean([costs(t, line) for t in tests])["cllr"]},
        "at_eer_threshold": mean([at(test, threshold) for test in tests]),
        "lists": {name: {**costs(one, calibration), **at(one, threshold)} for name, one in alone.items()},
    }


def measured(path: str, root: Path, sources: Sequence[str], halvings: int, out: Path) -> dict[str, Any]:
    model = load(path)
    lists = sorted((root / "trials").glob("*.txt"))
    pool = pooled(scored_lists(model, lists, root, out)[0])
    rate, threshold = eer(pool.scores, pool.labels)
    return {
        "file": Path(path).name,
        "id": model.id,
        "plan": model.metadata.get("plan"),
        "trials": len(pool.labels),
        "targets": int(pool.labels.sum()),
        "eer": rate,
        "eer_threshold": threshold,
        "min_cllr": min_cllr(pool.scores, pool.labels),
        "labels": from_labels(pool, halvings),
        "pseudo": {name: from_pseudo_trials(model, root / name, pool, halvings, seed=0) for name in sources},
    }


@click.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--root", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", "sources", multiple=True, required=True, help="Below --root; repeatable.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--halvings", default=5, show_default=True)
def main(files: tuple[str, ...], root: Path, sources: tuple[str, ...], out: Path, halvings: int) -> None:
    """Measure FILES, each NAME=PATH, and write OUT."""
    models = {}
    for name, _, path in (file.partition("=") for file in files):
        models[name] = measured(path, root, sources, halvings, out)
        print(name, json.dumps(models[name]), flush=True)
    called = " ".join(f"{name}={Path(path).name}" for name, _, path in (file.partition("=") for file in files))
    result = {
        "what": "calibration from pseudo-trials (crops of unlabelled recordings) beside one from labelled trials, both "
        f"measured on labelled trials of other speakers; mean over both directions of {halvings} halvings; fitted by "
        f"{METHODS[0]!r}, line: by 'affine'",
        "command": f"python benchmarks/pseudo_calibration.py --root FOLDER "
        f"{' '.join(f'--data {name}' for name in sources)} --out results/{out.name} {called}",
        "machine": machine(),
        "versions": versions(),
        "models": models,
    }
    write_text(out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
