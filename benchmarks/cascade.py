"""What does a cascade keep, and what does it save? Tuned on one half of the speakers, measured on the other half.

    python benchmarks/cascade.py --root FOLDER --out results/cascade_sizes.json \
        --alone 50 sizes=small4.onnx,large4.onnx
    python benchmarks/cascade.py --root FOLDER --out results/cascade_widths.json \
        --alone 1000 widths=large2.onnx,large3.onnx,large4.onnx

FOLDER holds trials/*.txt and the recordings that they name. The speakers of each list are put into two halves by turns,
in a seeded order; a trial between the halves is left out. Then the halves change places. Each cascade is tuned for an
EER, mean over lists, within 2 % of its last stage's; for the cost of a quarter of the trials going beyond the first
stage; and for at most 0.5 % of answers that the last stage would change: on all lists at once, and, where a list has
--alone speakers or more, on that list alone. Every recording is embedded by every stage once, one thread, in the same
run; times are of the processor. OUT is written after each measurement.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from sottovoce.lab.bank import Store
from sottovoce.lab.bench import machine, versions
from sottovoce.lab.cascade import evaluate_cascade
from sottovoce.lab.cascade_tuning import tune, width
from sottovoce.lab.lists import Trials, read_trials, speakers_of
from sottovoce.runtime.cascade import load_cascade
from sottovoce.runtime.engine import load

QUARTER = 0.25  # of trials may go beyond the first stage, where a cost is the target


def halves(trials: Trials, seed: int) -> tuple[list[int], list[int]]:
    """The trials within each half of the list's speakers."""
    speaker = speakers_of(trials)
    order = sorted(set(speaker.values()))
    np.random.default_rng(seed).shuffle(order)
    half = {name: number % 2 for number, name in enumerate(order)}
    sides = [(half[speaker[a]], half[speaker[b]]) for a, b in zip(trials.enrol, trials.test, strict=True)]
    first, second = ([row for row, pair in enumerate(sides) if pair == (side, side)] for side in (0, 1))
    return first, second


def split(paths: Sequence[Path], folder: Path, seed: int) -> list[dict[str, Path]]:
    """Write both halves of every list; returns for each half its lists by name."""
    found: list[dict[str, Path]] = [{}, {}]
    for path in paths:
        trials = read_trials(path)
        for side, rows in enumerate(halves(trials, seed)):
            lines = [f"{trials.labels[row]} {trials.enrol[row]} {trials.test[row]}\n" for row in rows]
            found[side][path.stem] = folder / f"{path.stem}-{'ab'[side]}.txt"
            found[side][path.stem].write_text("".join(lines), encoding="utf-8")
    return found


def scopes(paths: Sequence[Path], enough: int) -> Iterator[tuple[str, list[str]]]:
    """Sets of lists that are tuned and measured together."""
    yield "all lists", [path.stem for path in paths]
    for path in paths:
        if len(set(speakers_of(read_trials(path)).values())) >= enough:
            yield path.stem, [path.stem]


def kept(report: dict[str, Any]) -> dict[str, Any]:
    """What the results keep of a measurement."""
    lists = [
        {name: one[name] for name in ("list", "trials", "targets", "speakers", "eer", "eer_interval", "stopped")}
        | {name: one[name] for name in ("relative_eer", "relative_eer_interval", "at_threshold", "last_at_threshold")}
        for one in report["lists"]
    ]
    rest = ("threshold", "all", "mean_eer", "stages", "cost", "disagreement")
    return {"lists": lists, **{name: report[name] for name in rest}}


def targets(files: Sequence[Path]) -> dict[str, dict[str, str]]:
    """What a cascade of these files is tuned for."""
    first, *others = [width(load(file)) for file in files]
    return {
        "eer 2%": {"target_eer": "2%"},
        "a quarter goes on": {"target_cost": f"{first + QUARTER * sum(others):g}"},
        "disagreement 0.5%": {"max_disagreement": "0.5%"},
    }


def one(
    files: Sequence[Path], root: Path, dev: Sequence[Path], test: Sequence[Path], how: dict[str, Any], draws: int
) -> dict[str, Any]:
    """Tune on some lists, measure on others."""
    target, store = how["target"], how["store"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "cascade.json")
        tuned = tune(files, dev, root, out, **target, quiet=True, store=store)
        found = evaluate_cascade(load_cascade(out), test, root, draws=draws, full=True, quiet=True, store=store)
    return {"tuned": {name: tuned[name] for name in tuned if name not in ("out", "curve")}, "measured": kept(found)}


def told(name: str, scope: str, target: str, row: dict[str, Any]) -> str:
    """A line on what was found."""
    found, last = row["measured"], row["measured"]["stages"][-1]["alone"]
    ms = f"{found['cost']['ms_fresh_pair']:.2f} of {last['ms_fresh_pair']:.2f} ms"
    eers = f"EER {100 * found['all']['eer']:.2f} of {100 * last['all']:.2f} %"
    means = f"mean {100 * found['mean_eer']:.2f} of {100 * last['mean_eer']:.2f} %"
    changed = f"changed {100 * found['disagreement']:.2f} %"
    stopped = "/".join(f"{100 * share:.1f}" for share in found["all"]["stopped"])
    errors = [sum(found["all"][key].values()) / 2 for key in ("at_threshold", "last_at_threshold")]
    half = f"half of misses and false accepts at the threshold {100 * errors[0]:.2f} of {100 * errors[1]:.2f} %"
    return f"{name}, {scope}, {target}: {eers}, {means}, {half}, stops {stopped} %, fresh pair {ms}, {changed}"


def write(out: Path, result: dict[str, Any]) -> None:
    """Write the results so far under a temporary name, then rename."""
    part = out.with_name(f"{out.name}.part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(part, out)


@click.command()
@click.argument("cascades", nargs=-1, required=True)
@click.option("--root", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--draws", default=200, show_default=True, help="Bootstrap draws.")
@click.option("--seed", default=0, show_default=True, help="Of the halves.")
@click.option("--alone", default=20, show_default=True, help="Speakers of a list that is also tuned on alone.")
def main(cascades: tuple[str, ...], root: Path, out: Path, draws: int, seed: int, alone: int) -> None:
    """Tune and measure CASCADES, each NAME=FILE,FILE,…, and write OUT."""
    paths = sorted((root / "trials").glob("*.txt"))
    rows: list[dict[str, Any]] = []
    result = {
        "what": "cascades tuned on one half of the speakers and measured on the other, both ways; nearly all target "
        "pairs come from one session",
        "command": f"python benchmarks/cascade.py --root FOLDER --out {out.name} --alone {alone} {' '.join(cascades)}",
        "seed": seed,
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
    }
    store: Store = {}
    with tempfile.TemporaryDirectory() as folder:
        sides = split(paths, Path(folder), seed)
        for text in cascades:
            name, _, files = text.partition("=")
            stages = [Path(file) for file in files.split(",")]
            for scope, lists in scopes(paths, alone):
                for target, settings in targets(stages).items():
                    for dev, test in ((0, 1), (1, 0)):
                        chosen = [[sides[side][stem] for stem in lists] for side in (dev, test)]
                        row = one(stages, root, *chosen, {"target": settings, "store": store}, draws)
                        rows.append({"cascade": name, "scope": scope, "target": target, "tuned_on": "ab"[dev], **row})
                        write(out, result)
                        print(told(name, scope, target, row), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
