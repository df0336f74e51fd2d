"""Gates of a cascade, tuned on development trials and frozen into its file."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from sottovoce.bits.formats import FORMATS
from sottovoce.errors import BadInput, BadModel
from sottovoce.lab.bank import Bank, Rows, Store, joined, rows_of
from sottovoce.lab.evaluate import readable
from sottovoce.lab.lists import Trials
from sottovoce.runtime.cascade import save_cascade
from sottovoce.runtime.engine import Model, load
from sottovoce.scores import gates as tuning
from sottovoce.scores.cascade import (
    SAME,
    Gate,
    Map,
    Outcome,
    Real,
    Weights,
    evidence,
    fit_map,
    fit_weights,
    mean_cost,
    run,
    stopped,
)
from sottovoce.scores.metrics import eer

COSTS = ("bits", "ms")
FLOAT_BITS = 32
TARGETS = "an EER, a cost, a share of trials that the first stage answers, or one of answers that the last may change"


@dataclass(frozen=True)
class Tuned:
    """What tuning finds: all that a cascade has beside its models."""

    maps: list[Map]
    gates: list[Gate]
    threshold: float  # on the last stage's scale
    weights: Weights | None
    curve: list[dict[str, Any]]  # the front of EER against cost, where one was looked at

    def run(self, scores: Sequence[Real]) -> Outcome:
        """The cascade on trials that all stages have scored. scores: (trials,) for each stage."""
        return run(lambda stage, rows: scores[stage][rows], len(scores[0]), self.maps, self.gates, self.weights)


@dataclass(frozen=True)
class Scores:
    """Development trials that all stages have scored."""

    stages: list[Real]  # (trials,) each
    labels: NDArray[np.uint8]  # (trials,)
    speaker: tuple[Rows, Rows]  # (trials,) of both sides
    sets: list[Rows]  # the trials of each list

    def only(self, rows: Rows) -> Scores:
        """Some of the trials, in order; a list that keeps none is left out. rows: numbers of trials, rising."""
        parts = [np.flatnonzero(np.isin(rows, part)) for part in self.sets]
        first, second = self.speaker
        kept = [part for part in parts if len(part)]
        return Scores([stage[rows] for stage in self.stages], self.labels[rows], (first[rows], second[rows]), kept)


def tune(
    files: Sequence[str | Path],
    lists: Sequence[str | Path],
    root: str | Path,
    out: str | Path,
    *,
    target_eer: str | None = None,
    target_cost: str | None = None,
    stop_at_least: str | None = None,
    max_disagreement: str | None = None,
    confidence: float = 0.95,
    cost: str = "bits",
    fuse: bool = False,
    quiet: bool = False,
    store: Store | None = None,
) -> dict[str, Any]:
    """Fit maps and gates of a cascade of model files on development trials, and write its file.

    files: cheapest first   target_eer: `2%` or `0.1`, how far the mean EER over lists may be above the last stage's,
    relative or absolute in per cent; the cheapest gates are taken, by `cost` (`bits` or `ms`)   target_cost: `2.5` bits
    or `12ms` a trial, both recordings new; the gates of least EER above the last stage's are taken   stop_at_least:
    `75%` of trials that the first stage answers, with this confidence (see `stop_gates`)   max_disagreement: `0.5%`,
    how many of a stage's answers the last stage may change, with this confidence (see `safe_gates`). Give one of these
    four.   fuse: a stage weighs the evidence of all stages so far (see `fit_weights`).   store: as of `Bank`. The
    threshold is the last stage's EER threshold over all trials. Raises BadInput, BadList and BadModel, before any
    recording is read where that can be known.
    """
    target = read_target(target_eer, target_cost, stop_at_least, max_disagreement, confidence, cost)
    loaded = [readable(Path(path)) for path in lists]
    models = _models(files)
    trials = joined(loaded)
    if target["kind"] == "disagreement":
        _refuse_few(len(trials), target["amount"], confidence, len(files))
    bank = Bank(models, trials, root, quiet, store)
    scored = scored_by(bank, loaded)
    bits = [width(model) for model in models]
    costs = bits if target["unit"] == "bits" else [2 * float(np.mean(row)) for row in bank.ms]
    found = fit(scored, costs, target, fuse, quiet)
    report = {**target, **_of_lists(loaded, bank), **_on(scored, found, bits)}
    more = {"operating_points": {"balanced": _point(found.threshold, report, trials)}, "tuning": report}
    save_cascade(out, files, bits, found.maps, found.gates, found.threshold, more, found.weights)
    gates = [{"low": _plain(gate.low), "high": _plain(gate.high)} for gate in found.gates]
    return {"out": str(out), "threshold": found.threshold, "gates": gates, **report, "curve": found.curve}


def fit(
    scored: Scores, costs: Sequence[float], target: dict[str, Any], fuse: bool = False, quiet: bool = True
) -> Tuned:
    """Weights, maps, threshold and gates on scored trials. costs: one a stage   target: as `read_target` gives it."""
    weights = fit_weights(scored.stages, scored.labels) if fuse else None
    sums = evidence(scored.stages, weights)
    threshold = eer(sums[-1], scored.labels)[1]
    maps = [*(fit_map(row, sums[-1]) for row in sums[:-1]), SAME]
    gates, curve = _gates(scored, sums, maps, threshold, costs, target, quiet)
    return Tuned(maps, gates, threshold, weights, curve)


def scored_by(bank: Bank, loaded: Sequence[Trials]) -> Scores:
    """The scores that every stage of a bank gives to every trial of its lists."""
    every = np.arange(len(bank.kept))
    stages = [np.asarray(bank.score(stage, every), dtype=np.float64) for stage in range(len(bank.models))]
    return Scores(stages, bank.labels, bank.speaker, rows_of(loaded, bank))


def _of_lists(loaded: Sequence[Trials], bank: Bank) -> dict[str, Any]:
    """What a report says of its lists."""
    return {
        "lists": [{"list": one.name, "sha256": one.sha256} for one in loaded],
        "trials": len(bank.labels),
        "targets": int(bank.labels.sum()),
        "excluded": len(bank.failed),
    }


def _on(scored: Scores, found: Tuned, bits: Sequence[float]) -> dict[str, Any]:
    """What the cascade does on the trials that it was tuned on."""
    outcome, final = found.run(scored.stages), evidence(scored.stages, found.weights)[-1]
    measured = [tuning.mean_eer(row, scored.labels, scored.sets) for row in [outcome.scores, final, *scored.stages]]
    return {
        "weights": None if found.weights is None else [list(row) for row in found.weights],
        "eer": measured[0],
        "eer_all_go_on": measured[1],
        "eer_of_stages": measured[2:],
        "stopped": stopped(outcome.stage, len(bits)).tolist(),
        "bits_per_trial": mean_cost(bits, outcome.stage),
        "disagreement": float(((outcome.scores >= found.threshold) != (final >= found.threshold)).mean()),
    }


def _point(threshold: float, report: dict[str, Any], trials: Trials) -> dict[str, Any]:
    """The cascade's operating point, as in a model's metadata."""
    return {
        "threshold": threshold,
        "eer": report["eer"],
        "trials": report["trials"],
        "measured_on": trials.name,
        "rule": "EER threshold of the last stage over all trials",
    }


def _gates(
    scored: Scores,
    sums: Sequence[Real],
    maps: Sequence[Map],
    threshold: float,
    costs: Sequence[float],
    target: dict[str, Any],
    quiet: bool,
) -> tuple[list[Gate], list[dict[str, Any]]]:
    """The gates that a target asks for, and the front of EER against cost where one was looked at."""
    if target["kind"] == "disagreement":
        return tuning.safe_gates(sums, maps, threshold, target["amount"], target["confidence"]), []
    mapped = [to_last(row) for to_last, row in zip(maps, sums, strict=True)]
    if target["kind"] == "stop":
        return tuning.stop_gates(mapped, threshold, *scored.speaker, target["amount"], target["confidence"]), []
    tried = tuning.distances(mapped, threshold)
    with click.progressbar(tried, label="trying gates", file=sys.stderr, hidden=quiet) as bar:
        found = list(tuning.trades(mapped, scored.labels, threshold, costs, bar, scored.sets))
    last = tuning.mean_eer(scored.stages[-1], scored.labels, scored.sets)
    wide = found[-1].eer  # of infinite gates: with weights not the last stage's, and then no gates may be better
    if target["kind"] == "cost":
        best = tuning.best_within(found, last, target["amount"])
    else:
        best = tuning.cheapest(found, max(last, wide), target["amount"] * (last if target["relative"] else 1.0))
    curve = [{"cost": one.cost, "eer": one.eer, "stopped": list(one.stopped)} for one in tuning.front(found)]
    return [Gate.around(threshold, distance) for distance in best.distances], curve


def read_target(
    target_eer: str | None = None,
    target_cost: str | None = None,
    stop_at_least: str | None = None,
    max_disagreement: str | None = None,
    confidence: float = 0.95,
    cost: str = "bits",
) -> dict[str, Any]:
    """What the gates are for, as plain values: kind, amount, unit of cost; see `tune`. Raises BadInput."""
    given = (target_eer, target_cost, stop_at_least, max_disagreement)
    if sum(text is not None for text in given) != 1:
        raise BadInput(f"give one target: {TARGETS}")
    if cost not in COSTS:
        raise BadInput(f"cost {cost!r} is unknown; known: {', '.join(COSTS)}")
    if target_eer is not None:
        number, unit = _amount(target_eer, "%", "2% (relative) or 0.1 (absolute, in per cent)")
        return {"kind": "eer", "amount": number / 100, "relative": unit == "%", "unit": cost}
    if target_cost is not None:
        number, unit = _amount(target_cost, "ms|bits", "2.5 (bits) or 12ms")
        return {"kind": "cost", "amount": number, "unit": unit or "bits"}
    kind, text = ("stop", stop_at_least) if stop_at_least is not None else ("disagreement", max_disagreement)
    number, unit = _amount(str(text), "%", "75%" if kind == "stop" else "0.5%")
    share = number if kind == "stop" and unit == "" else number / 100
    if not (0 < share < 1 and 0 < confidence < 1):
        raise BadInput(
            f"{'share' if kind == 'stop' else kind} {share:g} and confidence {confidence:g} must lie between 0 and 1, "
            f"as {'75%' if kind == 'stop' else '0.5%'} and 0.95"
        )
    return {"kind": kind, "amount": share, "confidence": confidence, "unit": "bits"}


def _amount(text: str, units: str, example: str) -> tuple[float, str]:
    found = re.fullmatch(rf"\s*(\d+(?:\.\d+)?)\s*({units})?\s*", text)
    if not found:
        raise BadInput(f"target {text!r} cannot be read; write {example}")
    return float(found[1]), found[2] or ""


def _refuse_few(trials: int, share: float, confidence: float, stages: int) -> None:
    needed = tuning.fewest_trials(share, 1 - (1 - confidence) / (2 * (stages - 1)))
    if trials < needed:
        raise BadInput(
            f"{trials} trials cannot show that at most {100 * share:g} % of answers would be changed; that takes"
            f" {needed} or more without a disagreement: give more trials, or allow more"
        )


def _models(files: Sequence[str | Path]) -> list[Model]:
    """The stages' models. Raises BadInput for one stage alone or the same twice, BadModel for rates that differ."""
    if len(files) < 2:
        raise BadInput(f"cascade: {len(files)} model; a cascade has two stages or more, cheapest first")
    models = [load(path) for path in files]
    twice = next((one.path for index, one in enumerate(models) if one.id in {m.id for m in models[:index]}), None)
    if twice:
        raise BadInput(f"cascade: {twice} is there twice; each stage must be another model")
    odd = next((model for model in models if model.rate != models[0].rate), None)
    if odd:
        raise BadModel(f"{odd.path}: takes {odd.rate} Hz, {models[0].path.name} {models[0].rate}; stages must agree")
    return models


def width(model: Model) -> float:
    """Bits of most of a model's layers' weights, by its metadata; 32 for a float file."""
    formats = [str(spec).split("/")[0] for spec in (model.metadata.get("layers") or {}).values()]
    widths = Counter(FORMATS[name].bits if name in FORMATS else FLOAT_BITS for name in formats)
    return float(max(widths, key=lambda bits: widths[bits])) if widths else float(FLOAT_BITS)


def _plain(value: float) -> float | None:
    return value if np.isfinite(value) else None
