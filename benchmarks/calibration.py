"""Does a calibration hold on speakers it was not fitted on, at every width, and does each width need its own?

    python benchmarks/calibration.py --root FOLDER --out results/calibration.json float=f.onnx 8=m8.onnx 2=m2.onnx

FOLDER holds dev.tsv (path, speaker, gender) and its recordings; a speaker's name begins with that of the corpus. Trials
are all pairs of one corpus and, where it is known, one gender. Every trial is judged by a calibration that neither of
its speakers was fitted on: speakers are dealt over 20 parts, and a trial between two parts is judged by the fit to all
trials outside both. Costs are of all trials together, and the least costs those of the scores in their own order.
`floor` is what perfect llrs would show: drawn from a model of speakers whose llrs are known, with the same recordings,
speakers and trials. `support` is whose errors the figures stand on; the figures without the pair of speakers that makes
most false accepts are beside. The first file is the one whose calibration the others are also measured with. A file
that OUT already holds is not measured again.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from sottovoce.audio.quality import SIDES
from sottovoce.errors import BadInput
from sottovoce.lab.bench import machine, versions
from sottovoce.lab.calibrate import PARTS, PRIORS, costs, held_out, judged, order, qualities, supports
from sottovoce.lab.calibrate import fit as fit_pool
from sottovoce.lab.embedding import embed_names
from sottovoce.lab.lists import Utterance, read_manifest
from sottovoce.lab.pool import Pool, both_ways, pooled
from sottovoce.lab.run import write_text
from sottovoce.lab.scored import Scored
from sottovoce.runtime.engine import Model, load
from sottovoce.scores.calibration import Calibration
from sottovoce.scores.metrics import bayes_threshold, cllr, min_cllr
from sottovoce.scores.scoring import cosine_trials

LIMIT = 1.10  # of the least cost
SPEAKERS = (6, 12, 25, 50, 100)  # of the list with the most, for what more speakers bring
FEWEST = 20  # speakers of a list that is calibrated on its own
DECIMALS = 4  # of a score; equal scores are fitted together
DIM = 20  # of the model that perfect llrs are drawn from

Fit = Callable[[Pool], Calibration]
METHODS: dict[str, Fit] = {
    "spline": lambda pool: fit_pool(pool, "spline", 0.5),
    "shrunk": lambda pool: fit_pool(pool, "shrunk", 0.5),
    "affine": lambda pool: fit_pool(pool, "affine", 0.5),
    "isotonic": lambda pool: fit_pool(pool, "isotonic", 0.5),
    "affine with net speech and SNR": lambda pool: fit_pool(pool, "affine", 0.5),
}
FIRST = "spline"  # the default
DEFAULT = METHODS[FIRST]
BESIDE = "affine with net speech and SNR"  # slow: for the first file alone, one dealing
OFTEN = (FIRST, "shrunk")  # in all dealings; the others in SELDOM
SELDOM = 2


def alone(pool: Pool) -> Pool:
    """The trials without side information."""
    return replace(pool, measures={})


def corpus(row: Utterance) -> str:
    """The list a recording belongs to."""
    return row.speaker.split("-")[0]


@dataclass(frozen=True)
class Block:
    """The pairs of one corpus: rows of the table of recordings, and the number of each one's speaker."""

    name: str
    here: np.ndarray  # (recordings,) rows
    speakers: list[str]
    of: np.ndarray  # (recordings,) number of the speaker
    first: np.ndarray  # (pairs,) places in `here`
    second: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """(pairs,) 1 where one speaker is heard."""
        return (self.of[self.first] == self.of[self.second]).astype(np.uint8)


def blocks(rows: Sequence[Utterance]) -> list[Block]:
    """All pairs of one corpus and gender, a block for each corpus."""
    found = []
    for name in sorted({corpus(row) for row in rows}):
        here = np.array([index for index, row in enumerate(rows) if corpus(row) == name])
        speakers, of = np.unique([rows[index].speaker for index in here], return_inverse=True)
        genders = np.array([rows[index].fields.get("gender", "") for index in here])
        first, second = np.triu_indices(len(here), 1)
        alike = (genders[first] == genders[second]) | (of[first] == of[second])
        found.append(Block(name, here, [str(one) for one in speakers], of, first[alike], second[alike]))
    return found


def trials(rows: Sequence[Utterance], parts: Sequence[Block], table: np.ndarray, side: dict[str, np.ndarray]) -> Pool:
    """The scored pairs of all blocks, a list for each."""
    lists: list[Scored] = []
    measures: dict[str, list[np.ndarray]] = {name: [] for name in side}
    for one in parts:
        scores = np.round(cosine_trials(table[one.here], one.first, one.second), DECIMALS)
        numbers = one.first, one.second, one.of[one.first], one.of[one.second]
        lists.append(
            Scored(one.name, "", [rows[at].path for at in one.here], one.speakers, *numbers, one.labels, scores)
        )
        for key, values in side.items():
            measures[key].append(np.minimum(values[one.here][one.first], values[one.here][one.second]))
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


def sides(model: Model, rows: Sequence[Utterance], root: Path, keep: Path | None) -> dict[str, np.ndarray]:
    """Net speech and SNR of each recording, from the folder of kept ones where they are there."""
    place = keep / "side.npz" if keep else None
    if place and place.exists():
        return dict(np.load(place))
    quality = qualities({row.path: root / row.path for row in rows}, model)
    found = {name: np.array([SIDES[name](quality[row.path]) for row in rows]) for name in ("log_net_speech", "snr")}
    if place:
        np.savez(place, **found)
    return found


def only_list(pool: Pool, number: int) -> Pool:
    """The trials of one list."""
    return pool.only(pool.of == number)


def few(pool: Pool, speakers: int, seed: int) -> Pool:
    """The trials between so many speakers, drawn by seed."""
    chosen = np.random.default_rng([seed, 3]).permutation(pool.speakers())[:speakers]
    return pool.only(np.isin(pool.enrol_speaker, chosen) & np.isin(pool.test_speaker, chosen))


def pairs_of(one: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Each cost and its least value."""
    keys = [f"{prior:g}" for prior in PRIORS]
    return {"cllr": (one["cllr"], one["min_cllr"])} | {
        f"dcf {key}": (one["act_dcf"][key], one["min_dcf"][key]) for key in keys
    }


def ratios(found: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Mean costs over mean least costs of several dealings; None where there was nothing to measure."""
    if not found:
        return None
    each = [pairs_of(one) for one in found]
    out: dict[str, Any] = {"dealings": len(found)}
    for name in each[0]:
        actual, least = np.mean([one[name] for one in each], axis=0)
        known = [one[name][0] / one[name][1] for one in each if one[name][1] > 0]
        out[name] = {
            "actual": float(actual),
            "least": float(least),
            "ratio": float(actual / least) if least > 0 else None,
            "ratio_range": [min(known), max(known)] if known else None,
            "ratio_deviation": float(np.std(known)) if known else None,
            "within_10_percent": bool(actual <= LIMIT * least),
        }
    return out


def left_out(pool: Pool, fit: Fit, seed: int, first: Pool | None = None) -> list[dict[str, Any]]:
    """`costs` of all trials, and of each list, by calibrations that know neither speaker; nothing if they are too few.

    first: the same trials by another file, which is fitted on instead.
    """
    try:
        llrs, ordered = held_out(pool, fit, seed, fit_on=first), order(pool, fit(pool))
    except BadInput as error:
        print(f"passed over: {error}", file=sys.stderr)
        return []
    here = [np.full(len(pool.labels), True), *(pool.of == number for number in range(len(pool.lists)))]
    return [costs(llrs[one], ordered[one], pool.labels[one]) for one in here if pool.only(one).two_kinds()]


def told(pool: Pool) -> dict[str, Any]:
    """Whose errors the default's costs stand on, in the first dealing."""
    return supports(pool, held_out(pool, DEFAULT, 0))


def enough(part: Pool) -> bool:
    """Whether a list has the speakers to be calibrated on alone."""
    return len(part.speakers()) >= FEWEST


def without_worst(pool: Pool) -> Pool:
    """The trials without those of the two speakers that make most false accepts at the first of PRIORS."""
    false = (pool.labels == 0) & (held_out(pool, DEFAULT, 0) >= bayes_threshold(PRIORS[0]))
    low, high = (side(pool.enrol_speaker, pool.test_speaker) for side in (np.minimum, np.maximum))
    pair = low * (high.max() + 1) + high
    return pool.only(~((pool.labels == 0) & (pair == np.bincount(pair[false]).argmax()))) if false.any() else pool


def halves(pool: Pool, fit: Fit, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """`judged` of every half, fitted on the other half: so few speakers that it says what they are worth."""
    return [judged(test, fit(half)) for seed in seeds for half, test in both_ways(pool, seed)]


def measured(pool: Pool, first: Pool, seeds: Sequence[int]) -> dict[str, Any]:
    """Everything that is said of one file; what does not hang on the width is said of the first alone."""
    methods = {name: fit for name, fit in METHODS.items() if name != BESIDE or pool is first}
    plain = alone(pool)
    rest = without_worst(plain)
    used = {name: pool if name == BESIDE else plain for name in methods}
    dealings = {name: seeds if name in OFTEN else seeds[: 1 if name == BESIDE else SELDOM] for name in methods}
    each = {name: [left_out(used[name], fit, seed) for seed in dealings[name]] for name, fit in methods.items()}
    lists = {name: only_list(plain, number) for number, name in enumerate(pool.lists)}
    found = {
        "pooled": {name: ratios([one[0] for one in found]) for name, found in each.items()},
        "support": {"pooled": told(plain)} | {name: told(part) for name, part in lists.items() if enough(part)},
        "without_the_pair_of_most_false_accepts": ratios(
            [one for seed in seeds for one in left_out(rest, DEFAULT, seed)[:1]]
        ),
        "pooled_calibration_on_each_list": {
            name: ratios([one[number] for one in each[FIRST]]) for number, name in enumerate(pool.lists, 1)
        },
        "calibrated_on_the_list_itself": {
            name: ratios([one for seed in seeds for one in left_out(part, DEFAULT, seed)[:1]])
            for name, part in lists.items()
            if enough(part)
        },
        "fitted_on_half_of_the_speakers": {
            name: ratios(halves(used[name], fit, seeds[:SELDOM])) for name, fit in methods.items()
        },
        "fitted_on_the_same_trials": {
            name: ratios([judged(used[name], fit(used[name]))]) for name, fit in methods.items()
        },
        "with_the_calibration_of_the_first": ratios(
            [one for seed in seeds for one in left_out(plain, DEFAULT, seed, alone(first))[:1]]
        ),
    }
    return found | ({"by_number_of_speakers": growth(lists, seeds)} if pool is first else {})


def growth(lists: dict[str, Pool], seeds: Sequence[int]) -> dict[str, Any]:
    """What more speakers bring, on the list with the most."""
    most = max(lists, key=lambda name: len(lists[name].speakers()))
    rows = {}
    for count in SPEAKERS:
        parts = [few(lists[most], count, seed) for seed in seeds]
        rows[str(count)] = {
            name: ratios(
                [one for seed, part in zip(seeds, parts, strict=True) for one in left_out(part, fit, seed)[:1]]
            )
            for name, fit in METHODS.items()
            if name != BESIDE
        }
    return {"list": most, "speakers": rows}


# ---- what perfect llrs would show


def drawn(of: np.ndarray, first: np.ndarray, second: np.ndarray, within: float, rng: np.random.Generator) -> np.ndarray:
    """llrs of pairs by the model that made them: a speaker is N(0, 1) in each of DIM places, `within` the variance.

    The two-covariance model, whose llr is known: (pairs,), nats.
    """
    points = rng.normal(size=(of.max() + 1, DIM))[of] + math.sqrt(within) * rng.normal(size=(len(of), DIM))
    one, two, total = points[first], points[second], 1.0 + within
    both = ((one**2 + two**2) * total - 2.0 * one * two).sum(axis=1) / (total**2 - 1.0)
    apart = (one**2 + two**2).sum(axis=1) / total
    return (apart - both + DIM * (2.0 * math.log(total) - math.log(total**2 - 1.0))) / 2.0


def variance(goal: float) -> float:
    """The `within` of the model at which perfect llrs of many speakers cost `goal` bits of Cllr."""
    of = np.repeat(np.arange(60), 8)
    first, second = np.triu_indices(len(of), 1)
    labels = (of[first] == of[second]).astype(np.uint8)
    low, high = 0.01, 3.0
    for _ in range(14):
        middle = math.sqrt(low * high)
        below = cllr(drawn(of, first, second, middle, np.random.default_rng(0)), labels) < goal
        low, high = (middle, high) if below else (low, middle)
    return middle


def floor(parts: Sequence[Block], pool: Pool, draws: int) -> dict[str, Any]:
    """Cost over least cost of perfect llrs on the same trials: the least costs see the labels of these few speakers."""
    rng, within = np.random.default_rng(0), []
    for number in range(len(parts)):
        part = only_list(pool, number)
        within.append(variance(min_cllr(part.scores, part.labels)))
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ("pooled", *(one.name for one in parts))}
    with click.progressbar(range(draws), label="perfect llrs", file=sys.stderr) as bar:
        for _ in bar:
            llrs = [drawn(one.of, one.first, one.second, at, rng) for one, at in zip(parts, within, strict=True)]
            for one, values in zip(parts, llrs, strict=True):
                found[one.name].append(costs(values, values, one.labels))
            every = np.concatenate(llrs)
            found["pooled"].append(costs(every, every, pool.labels))
    return {name: spread(all_of) for name, all_of in found.items()}


def spread(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the draws: ratio of the mean costs, and how often a draw is within the limit."""
    means, out = ratios(found), {}
    assert means is not None
    for name in pairs_of(found[0]):
        pairs = [pairs_of(one)[name] for one in found]
        within = float(np.mean([actual <= LIMIT * least for actual, least in pairs]))
        out[name] = {"ratio": means[name]["ratio"], "share_within_10_percent": within}
    return {"draws": len(found), **out}


@click.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--root", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--keep", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder for embeddings.")
@click.option("--note", default="", help="How the files were made.")
@click.option("--dealings", default=4, show_default=True, help="Of the speakers over parts.")
@click.option("--draws", default=30, show_default=True, help="Of perfect llrs.")
def main(
    files: tuple[str, ...], root: Path, out: Path, keep: Path | None, note: str, dealings: int, draws: int
) -> None:
    """Measure FILES, each NAME=PATH, and write OUT."""
    rows, models = read_manifest(root / "dev.tsv"), {}
    side = sides(load(files[0].partition("=")[2]), rows, root, keep)
    parts = blocks(rows)
    pools: dict[str, Pool] = {}
    before = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    known = before.get("models", {})
    for name, _, path in (file.partition("=") for file in files):
        model = load(path)
        pools[name] = trials(rows, parts, embeddings(model, rows, root, keep), side)
        print(f"{name}: {len(pools[name].labels):,} trials", file=sys.stderr)
        if (
            known.get(name, {}).get("id") == model.id
            and known[name]["pooled"].get(FIRST, {}).get("dealings") == dealings
        ):
            models[name] = known[name]
            continue
        found = measured(pools[name], pools[files[0].partition("=")[0]], range(dealings))
        models[name] = {"file": Path(path).name, "id": model.id, "plan": model.metadata.get("plan"), **found}
        print(json.dumps(found["pooled"][FIRST]), file=sys.stderr, flush=True)
    first = next(iter(pools.values()))
    counts = {
        name: {
            "speakers": len(part.speakers()),
            "trials": len(part.labels),
            "targets": int(part.labels.sum()),
        }
        for name, part in ((name, only_list(first, number)) for number, name in enumerate(first.lists))
    }
    same = next(iter(models.items())) == next(iter(known.items()), None)
    kept = before.get("floor") if same and before.get("floor", {}).get("pooled", {}).get("draws") == draws else None
    result = {
        "what": "cost of stored calibrations over the least cost, on speakers they were not fitted on: every trial "
        f"by the fit to the trials that neither of its speakers is in, speakers dealt over {PARTS} parts; mean of "
        f"{dealings} dealings ({SELDOM} for methods beside). fitted_on_half_of_the_speakers: the other half, both "
        "ways. support: see `sotto calibrate`, of the first dealing. floor: perfect llrs on the "
        "same recordings, speakers and trials, drawn from a model whose lists are as hard",
        "command": "python benchmarks/calibration.py --root FOLDER --out results/calibration.json "
        + " ".join(f"{name}={Path(path).name}" for name, _, path in (file.partition("=") for file in files)),
        "note": note,
        "machine": machine(),
        "versions": versions(),
        "lists": counts,
        "floor": kept or floor(parts, first, draws),
        "models": models,
    }
    write_text(out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
