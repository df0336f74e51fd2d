"""Does a calibration hold on speakers it was not fitted on, at every width, and does each width need its own?

    python benchmarks/calibration.py --root FOLDER --out results/calibration.json float=f.onnx 8=m8.onnx 2=m2.onnx

FOLDER holds dev.tsv (path, speaker, gender) and its recordings; a speaker's name begins with that of the corpus. Trials
are all pairs of one corpus and, where it is known, one gender. Halves have no speaker in common; every figure is the
mean over both directions of several halvings, the cost of the calibration over the least cost. The first file is the
one whose calibration the others are also measured with. A file that OUT already holds is not measured again.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from sottovoce.audio.quality import SIDES
from sottovoce.errors import BadInput
from sottovoce.lab.bench import machine, versions
from sottovoce.lab.calibrate import PRIORS, judged, qualities
from sottovoce.lab.calibrate import fit as fit_pool
from sottovoce.lab.embedding import embed_names
from sottovoce.lab.lists import Utterance, read_manifest
from sottovoce.lab.pool import Pool, both_ways, pooled
from sottovoce.lab.scored import Scored
from sottovoce.runtime.engine import Model, load
from sottovoce.scores.scoring import cosine_trials

LIMIT = 1.10  # of the least cost
SPEAKERS = (6, 12, 25, 50, 100)  # of the list with the most, for what more speakers bring
FEWEST = 10  # speakers in a half that a list of its own is calibrated on

Fit = Callable[[Pool], Any]
METHODS: dict[str, Fit] = {
    "affine": lambda pool: fit_pool(without(pool), "affine", 0.5),
    "affine, prior 0.1": lambda pool: fit_pool(without(pool), "affine", 0.1),
    "affine with net speech": lambda pool: fit_pool(without(pool, ("log_net_speech",)), "affine", 0.5),
    "affine with net speech and SNR": lambda pool: fit_pool(without(pool, ("log_net_speech", "snr")), "affine", 0.5),
    "isotonic": lambda pool: fit_pool(pool, "isotonic", 0.5),
}


def without(pool: Pool, kept: Sequence[str] = ()) -> Pool:
    """The trials with only some of their side information."""
    rows = (pool.scores, pool.labels, pool.enrol_speaker, pool.test_speaker, pool.of, pool.lists)
    return Pool(*rows, {name: pool.measures[name] for name in kept})


def corpus(row: Utterance) -> str:
    """The list a recording belongs to."""
    return row.speaker.split("-")[0]


def trials(rows: Sequence[Utterance], table: np.ndarray, side: dict[str, np.ndarray]) -> Pool:
    """All pairs of one corpus and gender, a list for each corpus."""
    lists, measures = [], {name: [] for name in side}
    for name in sorted({corpus(row) for row in rows}):
        here = np.array([index for index, row in enumerate(rows) if corpus(row) == name])
        speakers, of = np.unique([rows[index].speaker for index in here], return_inverse=True)
        genders = np.array([rows[index].fields.get("gender", "") for index in here])
        first, second = np.triu_indices(len(here), 1)
        alike = (genders[first] == genders[second]) | (of[first] == of[second])
        first, second = first[alike], second[alike]
        scores = cosine_trials(table[here], first, second)
        labels = (of[first] == of[second]).astype(np.uint8)
        paths = [rows[index].path for index in here]
        names = [str(speaker) for speaker in speakers]
        lists.append(Scored(name, "", paths, names, first, second, of[first], of[second], labels, scores))
        for key, values in side.items():
            measures[key].append(np.minimum(values[here][first], values[here][second]))
    return pooled(lists, measures)


def embeddings(model: Model, rows: Sequence[Utterance], root: Path, keep: Path | None) -> np.ndarray:
    """(recordings, dim), from the folder of kept ones where they are there."""
    place = keep / f"{model.id}.npz" if keep else None
    if place and place.exists():
        return np.load(place)["embeddings"]
    known, _ = embed_names(model, [row.path for row in rows], root)
    table = np.stack([known[row.path] for row in rows])
    if place:
        np.savez(place, embeddings=table)
    return table


def only_list(pool: Pool, number: int) -> Pool:
    """The trials of one list."""
    return pool.only(pool.of == number)


def few(pool: Pool, speakers: int, seed: int) -> Pool:
    """The trials between so many speakers, drawn by seed."""
    known = np.union1d(pool.enrol_speaker, pool.test_speaker)
    chosen = np.random.default_rng([seed, 3]).permutation(known)[:speakers]
    return pool.only(np.isin(pool.enrol_speaker, chosen) & np.isin(pool.test_speaker, chosen))


def ratios(found: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Mean costs over mean least costs of several held-out halves; None where there was nothing to measure."""
    if not found:
        return None
    keys = [f"{prior:g}" for prior in PRIORS]
    cost = {"cllr": [(one["cllr"], one["min_cllr"]) for one in found]}
    cost |= {f"dcf {key}": [(one["act_dcf"][key], one["min_dcf"][key]) for one in found] for key in keys}
    means = {name: np.mean(values, axis=0) for name, values in cost.items()}
    out: dict[str, Any] = {"halves": len(found)}
    for name, (actual, least) in means.items():
        each = [a / b for a, b in cost[name] if b > 0]
        out[name] = {
            "actual": float(actual),
            "least": float(least),
            "ratio": float(actual / least) if least > 0 else None,
            "ratio_range": [min(each), max(each)] if each else None,
            "within_10_percent": bool(actual <= LIMIT * least),
        }
    return out


def held_out(fit_on: Pool, test_on: Pool, fit: Fit, seeds: Sequence[int], part: int | None = None) -> list[Any]:
    """`judged` of every half: fitted on the other half of `fit_on`, which may be another file's scores.

    part: the list to measure on, None for all.
    """
    found = []
    for seed in seeds:
        ways = zip(both_ways(fit_on, seed), both_ways(test_on, seed), strict=True)
        for (fit_half, _), (_, test_half) in ways:
            test = test_half if part is None else only_list(test_half, part)
            try:
                if fit_half.two_kinds() and test.two_kinds():
                    found.append(judged(test, fit(fit_half)))
            except BadInput as error:
                print(f"passed over: {error}", file=sys.stderr)
    return found


def measured(pool: Pool, first: Pool, seeds: Sequence[int]) -> dict[str, Any]:
    """Everything that is said of one file."""
    affine = METHODS["affine"]
    own = {}
    for number, name in enumerate(pool.lists):
        alone = only_list(pool, number)
        if len(np.union1d(alone.enrol_speaker, alone.test_speaker)) >= 2 * FEWEST:
            own[name] = ratios(held_out(alone, alone, affine, seeds))
    most = max(range(len(pool.lists)), key=lambda at: len(np.unique(only_list(pool, at).enrol_speaker)))
    largest = only_list(pool, most)
    growth = {
        str(count): ratios([one for seed in seeds for one in held_out_few(largest, count, seed, affine)])
        for count in SPEAKERS
    }
    return {
        "pooled": {name: ratios(held_out(pool, pool, fit, seeds)) for name, fit in METHODS.items()},
        "pooled_calibration_on_each_list": {
            name: ratios(held_out(pool, pool, affine, seeds, part)) for part, name in enumerate(pool.lists)
        },
        "calibrated_on_the_list_itself": own,
        "by_number_of_speakers": {"list": pool.lists[most], "speakers": growth},
        "with_the_calibration_of_the_first": ratios(held_out(first, pool, affine, seeds)),
    }


def held_out_few(pool: Pool, speakers: int, seed: int, fit: Fit) -> list[Any]:
    """As `held_out`, within a number of speakers drawn from a list."""
    part = few(pool, speakers, seed)
    return held_out(part, part, fit, [seed])


@click.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--root", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--keep", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder for embeddings.")
@click.option("--note", default="", help="How the files were made.")
@click.option("--halvings", default=5, show_default=True)
def main(files: tuple[str, ...], root: Path, out: Path, keep: Path | None, note: str, halvings: int) -> None:
    """Measure FILES, each NAME=PATH, and write OUT."""
    rows, models = read_manifest(root / "dev.tsv"), {}
    quality = qualities({row.path: root / row.path for row in rows}, load(files[0].partition("=")[2]))
    names = ("log_net_speech", "snr")
    side = {name: np.array([SIDES[name](quality[row.path]) for row in rows]) for name in names}
    pools: dict[str, Pool] = {}
    known = json.loads(out.read_text(encoding="utf-8"))["models"] if out.exists() else {}
    for name, _, path in (file.partition("=") for file in files):
        model = load(path)
        pools[name] = trials(rows, embeddings(model, rows, root, keep), side)
        print(f"{name}: {len(pools[name].labels):,} trials", file=sys.stderr)
        if known.get(name, {}).get("id") == model.id and known[name]["pooled"]["isotonic"]["halves"] == 2 * halvings:
            models[name] = known[name]
            continue
        found = measured(pools[name], pools[files[0].partition("=")[0]], range(halvings))
        models[name] = {"file": Path(path).name, "id": model.id, "plan": model.metadata.get("plan"), **found}
        print(json.dumps(found["pooled"]["affine"]), file=sys.stderr, flush=True)
    first = next(iter(pools.values()))
    counts = {
        name: {
            "speakers": len(np.union1d(part.enrol_speaker, part.test_speaker)),
            "trials": len(part.labels),
            "targets": int(part.labels.sum()),
        }
        for name, part in ((name, only_list(first, number)) for number, name in enumerate(first.lists))
    }
    result = {
        "what": "cost of stored calibrations over the least cost, on held-out speakers; mean of both directions of "
        f"{halvings} halvings",
        "command": "python benchmarks/calibration.py --root FOLDER --out results/calibration.json "
        + " ".join(f"{name}={Path(path).name}" for name, _, path in (file.partition("=") for file in files)),
        "note": note,
        "machine": machine(),
        "versions": versions(),
        "lists": counts,
        "models": models,
    }
    part = out.with_name(f"{out.name}.part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(part, out)


if __name__ == "__main__":
    main()
