"""How many runs of `cascade.py` keep its limits if a cascade is tuned on the very trials that it is measured on?

    python benchmarks/cascade_ceiling.py --root FOLDER --out results/cascade_ceiling.json --alone 25 \
        sizes=small4.onnx,large4.onnx widths=large2.onnx,large3.onnx,large4.onnx

The same halves of the speakers, trials and limits as there, on scores alone. `tuned` is a cascade for 75 % of stopped
trials, tuned on the other half. `in_hindsight` takes map, weights and threshold from the trials it is measured on,
passes the quarter nearest to it on to the last stage, and so stops 75 % exactly: what better tuning of such gates could
hope for. `targets_missed` is how many target trials the last stage misses at its EER: one more or less is
1 / targets_missed of the EER.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
from cascade import FEWEST_STOPPED, MOST_LOSS, Material, Rows, cascaded, kept_to, material, scopes, within_half

from sottovoce.lab.bank import Store
from sottovoce.lab.bench import machine, versions
from sottovoce.lab.cascade_tuning import read_target
from sottovoce.lab.run import write_text
from sottovoce.scores.cascade import evidence, fit_map, fit_weights
from sottovoce.scores.metrics import eer


def in_hindsight(known: Material, rows: Rows, weighed: bool) -> dict[str, Any]:
    """Limits kept by first and last stage alone, with everything fitted on the trials themselves."""
    scores = known.scores.only(rows)
    two = [scores.stages[0], scores.stages[-1]]
    sums = evidence(two, fit_weights(two, scores.labels) if weighed else None)
    mapped = fit_map(sums[0], sums[1])(sums[0])
    far = np.abs(mapped - eer(sums[1], scores.labels)[1])
    stops = far >= np.sort(far)[int((1 - FEWEST_STOPPED) * len(far))]
    stage = np.where(stops, 0, len(known.bits) - 1)
    return kept_to(known, rows, np.where(stops, mapped, sums[1]), stage)


def counted(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """How many runs kept to which limit."""
    relative = [one["relative_eer"] for one in runs]
    return {
        "runs": len(runs),
        "kept_both": sum(one["kept"] for one in runs),
        "kept_eer": sum(one <= MOST_LOSS for one in relative),
        "kept_stopped": sum(one["stopped"][0] >= FEWEST_STOPPED for one in runs),
        "relative_eer_mean": float(np.mean(relative)),
        "relative_eer_deviation": float(np.std(relative)),
    }


def measured(known: Material, weighed: bool, orders: int) -> dict[str, Any]:
    """Both ways through the halvings, and all trials at once."""
    target = read_target(stop_at_least=f"{100 * FEWEST_STOPPED:g}%")
    sides = [
        pair for seed in range(orders) for half in [within_half(known.scores, seed)] for pair in (half, half[::-1])
    ]
    every = np.arange(len(known.scores.labels))
    whole = in_hindsight(known, every, weighed)
    return {
        "targets": int(known.scores.labels.sum()),
        "targets_missed": whole["last_eer"] * float(known.scores.labels.sum()),
        "tuned": counted([kept_to(known, test, *cascaded(known, dev, test, target, weighed)) for dev, test in sides]),
        "in_hindsight": counted([in_hindsight(known, test, weighed) for _, test in sides]),
        "all_trials_in_hindsight": {key: whole[key] for key in ("eer", "last_eer", "relative_eer", "stopped")},
    }


@click.command()
@click.argument("cascades", nargs=-1, required=True)
@click.option("--root", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--alone", default=20, show_default=True, help="Speakers of a list that is also tuned on alone.")
@click.option("--halvings", "orders", default=10, show_default=True, help="Orders of speakers.")
def main(cascades: tuple[str, ...], root: Path, out: Path, alone: int, orders: int) -> None:
    """Measure CASCADES, each NAME=FILE,FILE,…, and write OUT."""
    paths, rows = sorted((root / "trials").glob("*.txt")), []
    store: Store = {}
    for text in cascades:
        name, _, files = text.partition("=")
        for scope, lists in scopes(paths, alone):
            stages = [Path(file) for file in files.split(",")]
            known = material(stages, root, [path for path in paths if path.stem in lists], store)
            for weighed in (False, True):
                found = measured(known, weighed, orders)
                rows.append({"cascade": name, "scope": scope, "weighed": weighed, **found})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    result = {
        "what": f"runs that keep an EER at most {100 * MOST_LOSS:g} % above the last stage's with {FEWEST_STOPPED:.0%} "
        "of trials stopped at the first: tuned on other speakers, and in hindsight",
        "command": f"python benchmarks/cascade_ceiling.py --root FOLDER --out results/{out.name} --alone {alone} "
        + " ".join(cascades),
        "halvings": orders,
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
    }
    write_text(out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
