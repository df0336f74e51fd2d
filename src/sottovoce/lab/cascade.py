"""What a cascade does on trial lists, and what it costs: bits, processor time and memory.

The first stage embeds every recording, a later one only those of a trial that reaches it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import BadInput
from sottovoce.lab.bank import Bank, Rows, Store, joined, rows_of
from sottovoce.lab.embedding import failure
from sottovoce.lab.evaluate import figures, readable
from sottovoce.lab.lists import Trials
from sottovoce.lab.scored import Scored
from sottovoce.runtime.cascade import Cascade
from sottovoce.scores.cascade import Outcome, evidence, mean_cost, reached, run, stopped
from sottovoce.scores.metrics import eer, equal_error, redrawn

Real = NDArray[np.float64]

_RESIDENT = """
import os, sys
sys.path[:] = sys.argv[2:]
import numpy, onnxruntime
from sottovoce.audio.talker import talker
from sottovoce.runtime.engine import load
def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
wave, before = talker(3.0, seed=0), held()
model = load(sys.argv[1])
model.embed(wave)
print(held() - before)
"""


def evaluate_cascade(
    cascade: Cascade,
    lists: Sequence[str | Path],
    root: str | Path,
    *,
    draws: int = 1000,
    seed: int = 0,
    quiet: bool = False,
    full: bool = False,
    record: str | Path | None = None,
    store: Store | None = None,
) -> dict[str, Any]:
    """Error rates of a cascade with intervals, where its trials stopped, and what they cost, as plain values for JSON.

    root, draws, seed: as in `evaluate`   full: every stage also scores every trial, for what each gives alone and how
    often the last one would decide otherwise   record: an .npz or .json to write, a line for each trial   store: as of
    `Bank`

    returns: model, model_id, model_sha256, threshold; `lists`, for each the entries of `evaluate`, `stopped`, the share
    of trials that each stage answered, and `at_threshold`, the misses and false accepts of the cascade's own decisions
    (of a single list these stand at the top too); `all`, the same over the trials of all lists; mean_eer over lists;
    `stages` (file, bits, bytes, resident_bytes, recordings embedded, ms of one, reached, stopped); `cost` of a trial:
    `bits` (arXiv 2606.08078), `ms_fresh_pair` when both recordings are new in every trial, `ms_shared` when each is
    embedded at most once by each stage, as here. With `full` a stage has `alone` (the same costs, EER of `lists`, of
    `all`, `mean_eer`), `all_go_on` has the EERs where every trial goes to the last stage (of a cascade without weights
    those of the last alone), lists and `all` have `last_at_threshold` of the decisions then, `relative_eer` to the last
    stage alone with its interval (bootstrap over speakers, the same draws for both) and, with weights,
    `relative_eer_all_go_on`; `disagreement` is the share of decisions at the threshold that would change if all went
    on. Raises BadList for a list that cannot be measured, BadInput for a record of unknown kind, before any recording
    is read.
    """
    if record is not None and Path(record).suffix not in (".npz", ".json"):
        raise BadInput(f"record {record}: its name must end in .npz or .json")
    loaded = [readable(Path(path)) for path in lists]
    trials = joined(loaded)
    bank = Bank([stage.model for stage in cascade.stages], trials, root, quiet, store)
    found = run(bank.score, len(bank.kept), cascade.maps, cascade.gates, cascade.weights)
    needed = ~np.isnan(bank.ms)
    everything = np.arange(len(bank.kept))
    alone = [_real(bank.score(stage, everything)) for stage in range(len(cascade.stages)) if full]
    sets = [*rows_of(loaded, bank), everything]
    rates = [
        {
            **_rates(cascade, found, bank, rows, draws, seed),
            **_against_last(cascade, found, alone, bank, rows, draws, seed),
        }
        for rows in sets
    ]
    report: dict[str, Any] = {
        "model": cascade.path.name,
        "model_id": cascade.id,
        "model_sha256": hashlib.sha256(cascade.path.read_bytes()).hexdigest(),
        "threshold": cascade.threshold,
        "lists": [{**_about(one, bank), **each} for one, each in zip(loaded, rates, strict=False)],
        "all": rates[-1],
        "mean_eer": float(np.mean([one["eer"] for one in rates[:-1]])),
        "stages": _stages(cascade, bank, found, needed),
        "cost": _cost(cascade, bank, found.stage, needed),
    }
    if alone:
        _add_alone(report, cascade, bank, found, alone, sets)
    if record is not None:
        save_record(record, trials, bank, found)
    return {**report, **report["lists"][0]} if len(lists) == 1 else report


def _add_alone(
    report: dict[str, Any], cascade: Cascade, bank: Bank, found: Outcome, alone: Sequence[Real], sets: Sequence[Rows]
) -> None:
    """What each stage gives alone, and the last one where all trials go on to it."""
    final = evidence(alone, cascade.weights)[-1]
    for number, (entry, scores) in enumerate(zip(report["stages"], alone, strict=True)):
        entry["alone"] = {**_cost_alone(bank, number, entry["bits"]), **_rates_alone(scores, bank, sets)}
    report["all_go_on"] = _rates_alone(final, bank, sets)
    decided = found.scores >= cascade.threshold
    report["disagreement"] = float((decided != (final >= cascade.threshold)).mean())


def _real(scores: Any) -> Real:
    return np.asarray(scores, dtype=np.float64)


def _about(trials: Trials, bank: Bank) -> dict[str, Any]:
    """What a result says of its list."""
    failed = [name for name in trials.utterances if name in bank.failed]
    return {
        "list": trials.name,
        "list_sha256": trials.sha256,
        "form": trials.form,
        "excluded": [failure(name, bank.failed[name]) for name in failed],
    }


def _rates(cascade: Cascade, found: Outcome, bank: Bank, rows: Rows, draws: int, seed: int) -> dict[str, Any]:
    """What `evaluate` gives of some of the trials, where they stopped, and the errors of the cascade's decisions."""
    names = np.unique(np.concatenate(bank.speaker)).astype(str).tolist()
    enrol, test, first, second = (side[rows] for side in (bank.enrol, bank.test, *bank.speaker))
    scored = Scored("", "", bank.names, names, enrol, test, first, second, bank.labels[rows], found.scores[rows])
    return {
        **figures(scored, draws=draws, seed=seed),
        "stopped": stopped(found.stage[rows], len(bank.models)).tolist(),
        "at_threshold": _errors(scored.scores, scored.labels, cascade.threshold),
    }


def _against_last(
    cascade: Cascade, found: Outcome, alone: Sequence[Real], bank: Bank, rows: Rows, draws: int, seed: int
) -> dict[str, Any]:
    """The EER of some of the trials against the last stage's alone, with its interval; nothing where it is unknown."""
    if not alone:
        return {}
    labels = bank.labels[rows]
    enrol, test = (side[rows] for side in bank.speaker)
    final = evidence(alone, cascade.weights)[-1][rows]
    systems = [alone[-1][rows], found.scores[rows], *([] if cascade.weights is None else [final])]
    base, *others = (eer(row, labels)[0] for row in systems)
    try:
        drawn = redrawn(systems, labels, enrol, test, [equal_error], draws, seed)[:, :, 0]
    except BadInput:  # too few speakers to resample: an interval is not known, the rate is
        drawn = np.zeros((0, len(systems)))
    pairs = drawn[drawn[:, 0] > 0]  # not NaN, and something to divide by
    against: dict[str, Any] = {"last_at_threshold": _errors(final, labels, cascade.threshold)}
    for number, (name, rate) in enumerate(zip(("relative_eer", "relative_eer_all_go_on"), others, strict=False), 1):
        against[name] = rate / base - 1 if base else None
        against[f"{name}_interval"] = _middle(pairs[:, number] / pairs[:, 0] - 1)
    return against


def _errors(scores: Real, labels: NDArray[np.uint8], threshold: float) -> dict[str, float]:
    """Shares of targets rejected and of nontargets accepted at the cascade's threshold."""
    accepted = scores >= threshold
    return {"misses": float((~accepted[labels == 1]).mean()), "false_accepts": float(accepted[labels == 0].mean())}


def _middle(values: Real) -> list[float] | None:
    """The middle 95 % of the values that are numbers; None where there are none."""
    kept = values[~np.isnan(values)]
    return [float(edge) for edge in np.percentile(kept, [2.5, 97.5])] if len(kept) else None


def _rates_alone(scores: Real, bank: Bank, sets: Sequence[Rows]) -> dict[str, Any]:
    """A stage's EER on each list, over all trials, and the mean over lists."""
    *lists, together = [eer(scores[rows], bank.labels[rows])[0] for rows in sets]
    return {"lists": lists, "all": together, "mean_eer": float(np.mean(lists))}


# ---- cost


def _cost(cascade: Cascade, bank: Bank, stage: Rows, needed: NDArray[np.bool_]) -> dict[str, float]:
    """Of a trial on average: bits; ms of the processor when every trial brings two new recordings, and as embedded."""
    spent = np.zeros(len(stage))
    for number in range(len(cascade.stages)):
        on = stage >= number
        spent[on] += bank.ms[number, bank.enrol[on]] + bank.ms[number, bank.test[on]]
    return {
        "bits": mean_cost([one.bits for one in cascade.stages], stage),
        "ms_fresh_pair": float(spent.mean()),
        "ms_shared": float(bank.ms[needed].sum() / len(stage)),
    }


def _cost_alone(bank: Bank, stage: int, bits: float) -> dict[str, float]:
    """The costs of a trial when a stage answers all of them."""
    ms = bank.ms[stage]
    return {
        "bits": bits,
        "ms_fresh_pair": float((ms[bank.enrol] + ms[bank.test]).mean()),
        "ms_shared": float(ms.sum() / len(bank.enrol)),
    }


def _stages(cascade: Cascade, bank: Bank, found: Outcome, needed: NDArray[np.bool_]) -> list[dict[str, Any]]:
    asked, answered = reached(found.stage, len(cascade.stages)), stopped(found.stage, len(cascade.stages))
    return [
        {
            "file": stage.model.path.name,
            "id": stage.model.id,
            "bits": stage.bits,
            "bytes": stage.model.path.stat().st_size,
            "resident_bytes": resident_bytes(stage.model.path),
            "recordings": int(needed[number].sum()),
            "ms": float(bank.ms[number, needed[number]].mean()) if needed[number].any() else None,
            "reached": float(asked[number]),
            "stopped": float(answered[number]),
        }
        for number, stage in enumerate(cascade.stages)
    ]


@cache
def resident_bytes(path: str | Path) -> int | None:
    """How much a process grows in memory by loading a model and embedding 3 s, measured in a process of its own.

    None where the system does not tell (anything but Linux), or the process was ended.
    """
    if not Path("/proc/self/statm").exists():
        return None
    command = [sys.executable, "-I", "-c", _RESIDENT, str(path), *filter(None, sys.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else None


# ---- the record


def save_record(path: str | Path, trials: Trials, bank: Bank, found: Outcome) -> None:
    """Write what happened to each trial: enrol, test, label, score, stage (from 1); .npz of arrays or .json of rows."""
    place = Path(path)
    columns: dict[str, Any] = {
        "enrol": np.array([trials.enrol[row] for row in bank.kept]),
        "test": np.array([trials.test[row] for row in bank.kept]),
        "label": trials.labels[bank.kept],
        "score": found.scores,
        "stage": found.stage + 1,
    }
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        if place.suffix == ".npz":
            with open(part, "wb") as file:
                np.savez(file, **columns)
        else:
            rows = zip(*(column.tolist() for column in columns.values()), strict=True)
            lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
            part.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
        os.replace(part, place)
    finally:
        part.unlink(missing_ok=True)
