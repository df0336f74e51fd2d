"""What does a cascade keep, and what does it save, on speakers that it was not tuned on?

    python benchmarks/cascade.py --root FOLDER --out results/cascade_sizes.json --alone 25 sizes=small4.onnx,large4.onnx
    python benchmarks/cascade.py --root FOLDER --out results/cascade_widths.json --alone 25 \
        widths=large2.onnx,large3.onnx,large4.onnx

FOLDER holds trials/*.txt and the recordings that they name. Each cascade is tuned for several targets: on all lists
at once, and, where a list has --alone speakers or more, on that list alone. Three ways to hold speakers back:

rows       The speakers of each list in two halves by turns, in a seeded order; trials between the halves are left out.
           Tuned on one and measured on the other by the library's own calls on files, both ways.
halvings   The same for --halvings orders, on the scores alone: how many runs keep to both limits.
cross_fit  The speakers in --folds parts; a trial is answered by the cascade that was tuned on the trials without the
           parts of its two speakers. So all trials count, and none was tuned on.

The limits: EER at most 2 % above that of the last stage alone, 75 % of trials answered by the first stage. Every
recording is embedded by every stage once, one thread, in the same run; times are of the processor. OUT is written after
each measurement.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import click
import numpy as np

from sottovoce.errors import BadInput
from sottovoce.lab.bank import Bank, Rows, Store, joined
from sottovoce.lab.bench import machine, versions
from sottovoce.lab.cascade import evaluate_cascade
from sottovoce.lab.cascade_tuning import Scores, fit, read_target, scored_by, tune, width
from sottovoce.lab.evaluate import readable
from sottovoce.lab.lists import Trials, read_trials, speakers_of
from sottovoce.lab.run import write_text
from sottovoce.runtime.cascade import load_cascade
from sottovoce.runtime.engine import load
from sottovoce.scores.cascade import mean_cost, stopped
from sottovoce.scores.metrics import eer, equal_error, redrawn

MOST_LOSS, FEWEST_STOPPED = 0.02, 0.75  # the limits: EER above the last stage's, relative; share of the first stage
GRIDS = ("eer 2%",)  # targets that try up to 400 gates: with three stages not on scores alone
WEIGHED = ", weighed"  # of targets whose cascades weigh the evidence of all stages


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
    rest = ("threshold", "all", "mean_eer", "stages", "all_go_on", "cost", "disagreement")
    return {"lists": lists, **{name: report[name] for name in rest}}


def targets() -> dict[str, dict[str, str]]:
    """What cascades are tuned for."""
    return {
        "stop 75%": {"stop_at_least": "75%"},
        f"stop 75%{WEIGHED}": {"stop_at_least": "75%"},
        "eer 2%": {"target_eer": "2%"},
        "disagreement 0.5%": {"max_disagreement": "0.5%"},
    }


def one(
    files: Sequence[Path], root: Path, dev: Sequence[Path], test: Sequence[Path], how: dict[str, Any], draws: int
) -> dict[str, Any]:
    """Tune on some lists, measure on others."""
    target, store = {**how["target"], "fuse": how["name"].endswith(WEIGHED)}, how["store"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "cascade.json")
        tuned = tune(files, dev, root, out, **target, quiet=True, store=store)
        found = evaluate_cascade(load_cascade(out), test, root, draws=draws, full=True, quiet=True, store=store)
    return {"tuned": {name: tuned[name] for name in tuned if name not in ("out", "curve")}, "measured": kept(found)}


# ---- on scores alone


@dataclass(frozen=True)
class Material:
    """What all stages of a cascade make of all trials of some lists."""

    scores: Scores
    ms: np.ndarray  # (stages, trials) of both recordings
    bits: list[float]


def material(files: Sequence[Path], root: Path, lists: Sequence[Path], store: Store) -> Material:
    """Score all trials by all stages."""
    loaded = [readable(path) for path in lists]
    models = [load(file) for file in files]
    bank = Bank(models, joined(loaded), root, True, store)
    scores = scored_by(bank, loaded)
    return Material(scores, bank.ms[:, bank.enrol] + bank.ms[:, bank.test], [width(model) for model in models])


def within_half(scores: Scores, seed: int) -> tuple[Rows, Rows]:
    """The trials within each half of each list's speakers."""
    rng, half = np.random.default_rng(seed), np.zeros(1 + max(map(np.max, scores.speaker)), dtype=int)
    for rows in scores.sets:
        order = np.unique(np.concatenate([side[rows] for side in scores.speaker]))
        half[rng.permutation(order)] = np.arange(len(order)) % 2
    first, second = (half[side] for side in scores.speaker)
    return np.flatnonzero((first == 0) & (second == 0)), np.flatnonzero((first == 1) & (second == 1))


def cascaded(known: Material, dev: Rows, test: Rows, target: dict[str, Any], weighed: bool) -> tuple[Any, Any]:
    """Scores and stages of some trials by a cascade tuned on others; by the last stage where that is refused."""
    rows = [row[test] for row in known.scores.stages]
    try:
        outcome = fit(known.scores.only(dev), known.bits, target, weighed).run(rows)
    except BadInput:  # too few trials for a bound on disagreement
        return rows[-1], np.full(len(test), len(rows) - 1)
    return outcome.scores, outcome.stage


def kept_to(known: Material, rows: Rows, scores: Any, stage: Any) -> dict[str, Any]:
    """EER against the last stage's alone, and costs, of some trials."""
    labels, stages = known.scores.labels[rows], len(known.bits)
    rate, last = eer(scores, labels)[0], eer(known.scores.stages[-1][rows], labels)[0]
    share = stopped(stage, stages).tolist()
    spent = sum(known.ms[number, rows] * (stage >= number) for number in range(stages))
    return {
        "eer": rate,
        "last_eer": last,
        "relative_eer": rate / last - 1,
        "stopped": share,
        "bits": mean_cost(known.bits, stage),
        "ms_fresh_pair": float(np.mean(spent)),
        "last_ms_fresh_pair": float(known.ms[-1, rows].mean()),
        "kept": bool(rate / last - 1 <= MOST_LOSS and share[0] >= FEWEST_STOPPED),
    }


def halvings(known: Material, target: dict[str, Any], weighed: bool, orders: int) -> dict[str, Any]:
    """Both ways through several halvings: how many runs keep to the limits, and how far they are from them."""
    runs = []
    for seed in range(orders):
        sides = within_half(known.scores, seed)
        for dev, test in (sides, sides[::-1]):
            runs.append(kept_to(known, test, *cascaded(known, dev, test, target, weighed)))
    relative, first = [one["relative_eer"] for one in runs], [one["stopped"][0] for one in runs]
    faster = [one["ms_fresh_pair"] < one["last_ms_fresh_pair"] for one in runs]
    return {
        "runs": len(runs),
        "kept_both": sum(one["kept"] for one in runs),
        "kept_eer": sum(one <= MOST_LOSS for one in relative),
        "kept_eer_to_either_side": sum(abs(one) <= MOST_LOSS for one in relative),
        "kept_stopped": sum(one >= FEWEST_STOPPED for one in first),
        "faster": sum(faster),
        "relative_eer_mean": float(np.mean(relative)),
        "relative_eer_deviation": float(np.std(relative)),
        "stopped_mean": float(np.mean(first)),
        "stopped_least": min(first),
    }


def cross_fit(known: Material, target: dict[str, Any], weighed: bool, folds: int, draws: int) -> dict[str, Any]:
    """Every trial by a cascade that knows neither of its speakers; with the interval of the EER's difference."""
    scores = known.scores
    numbers = np.unique(np.concatenate(scores.speaker))
    fold = np.zeros(numbers.max() + 1, dtype=int)
    for rows in scores.sets:
        here = np.unique(np.concatenate([side[rows] for side in scores.speaker]))
        fold[np.random.default_rng(0).permutation(here)] = np.arange(len(here)) % folds
    first, second = (fold[side] for side in scores.speaker)
    found, stage = np.zeros(len(scores.labels)), np.zeros(len(scores.labels), dtype=np.int64)
    for a, b in combinations_with_replacement(range(folds), 2):
        test = np.flatnonzero((np.minimum(first, second) == a) & (np.maximum(first, second) == b))
        if len(test):
            dev = np.flatnonzero(~np.isin(first, [a, b]) & ~np.isin(second, [a, b]))
            found[test], stage[test] = cascaded(known, dev, test, target, weighed)
    every = np.arange(len(found))
    drawn = redrawn([found, scores.stages[-1]], scores.labels, *scores.speaker, [equal_error], draws)[:, :, 0]
    ratios = drawn[drawn[:, 1] > 0]
    bounds = np.percentile(ratios[:, 0] / ratios[:, 1] - 1, [2.5, 97.5])
    mean = [
        np.mean([eer(row[part], scores.labels[part])[0] for part in scores.sets]) for row in (found, scores.stages[-1])
    ]
    return {
        "folds": folds,
        "trials": len(found),
        "targets": int(scores.labels.sum()),
        "speakers": len(numbers),
        **kept_to(known, every, found, stage),
        "relative_eer_interval": bounds.tolist(),
        "relative_mean_eer": float(mean[0] / mean[1] - 1),
    }


def told_of(name: str, scope: str, target: str, half: dict[str, Any], cross: dict[str, Any]) -> str:
    """A line on what was found on scores alone."""
    low, high = cross["relative_eer_interval"]
    return (
        f"{name}, {scope}, {target}: kept {half['kept_both']} of {half['runs']} (EER {half['kept_eer']}, stopped "
        f"{half['kept_stopped']}); cross-fit EER {100 * cross['eer']:.2f} of {100 * cross['last_eer']:.2f} % "
        f"({100 * cross['relative_eer']:+.1f}, {100 * low:+.1f} to {100 * high:+.1f} %), lists' mean "
        f"{100 * cross['relative_mean_eer']:+.1f} %, stops {100 * cross['stopped'][0]:.1f} %, "
        f"{cross['ms_fresh_pair']:.2f} of {cross['last_ms_fresh_pair']:.2f} ms"
    )


# ---- all of it


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
    write_text(out, json.dumps(result, indent=1) + "\n")


@click.command()
@click.argument("cascades", nargs=-1, required=True)
@click.option("--root", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--draws", default=200, show_default=True, help="Bootstrap draws.")
@click.option("--seed", default=0, show_default=True, help="Of the halves.")
@click.option("--alone", default=20, show_default=True, help="Speakers of a list that is also tuned on alone.")
@click.option("--halvings", "orders", default=20, show_default=True, help="Orders of speakers on scores alone.")
@click.option("--folds", default=5, show_default=True, help="Parts of the speakers, where all trials count.")
def main(cascades: tuple[str, ...], root: Path, out: Path, alone: int, **settings: Any) -> None:
    """Tune and measure CASCADES, each NAME=FILE,FILE,…, and write OUT."""
    paths = sorted((root / "trials").glob("*.txt"))
    result: dict[str, Any] = {
        "what": "cascades on speakers they were not tuned on; nearly all target pairs come from one session",
        "command": f"python benchmarks/cascade.py --root FOLDER --out {out.name} --alone {alone} --halvings "
        f"{settings['orders']} --draws {settings['draws']} {' '.join(cascades)}",
        **settings,
        "machine": machine(),
        "versions": versions(),
        "rows": [],
        "on_scores": [],
    }
    store: Store = {}
    with tempfile.TemporaryDirectory() as folder:
        sides = split(paths, Path(folder), settings["seed"])
        for text in cascades:
            name, _, files = text.partition("=")
            stages = [Path(file) for file in files.split(",")]
            chosen = dict(scopes(paths, alone))
            for scope, lists in chosen.items():
                known = material(stages, root, [path for path in paths if path.stem in lists], store)
                for target, given in targets().items():
                    if len(stages) == 2 or target not in GRIDS:
                        _on_scores(result, known, (name, scope, target), given)
                        write(out, result)
            for scope, lists in chosen.items():
                of_lists = [[side[stem] for stem in lists] for side in sides]
                for target, given in targets().items():
                    how = {"target": given, "name": target, "store": store, "draws": settings["draws"]}
                    result["rows"] += _both_ways(stages, root, of_lists, (name, scope, target), how)
                    write(out, result)


def _both_ways(
    stages: Sequence[Path],
    root: Path,
    sides: Sequence[Sequence[Path]],
    about: tuple[str, str, str],
    how: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """Tuned on each half in turn; a half that is refused is left out."""
    name, scope, target = about
    for dev, test in ((0, 1), (1, 0)):
        try:
            row = one(stages, root, sides[dev], sides[test], how, how["draws"])
        except BadInput as error:
            print(f"{name}, {scope}, {target}: {error}", file=sys.stderr, flush=True)
            continue
        print(told(name, scope, target, row), file=sys.stderr, flush=True)
        yield {"cascade": name, "scope": scope, "target": target, "tuned_on": "ab"[dev], **row}


def _on_scores(result: dict[str, Any], known: Material, about: tuple[str, str, str], given: dict[str, str]) -> None:
    name, scope, target = about
    wanted, weighed = read_target(**given), target.endswith(WEIGHED)
    half = halvings(known, wanted, weighed, result["orders"])
    cross = cross_fit(known, wanted, weighed, result["folds"], result["draws"])
    result["on_scores"].append(
        {"cascade": name, "scope": scope, "target": target, "halvings": half, "cross_fit": cross}
    )
    print(told_of(name, scope, target, half, cross), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
