"""Gates of a cascade, tuned on development trials and frozen into its file."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from sottovoce.bits.formats import FORMATS
from sottovoce.errors import BadInput, BadModel
from sottovoce.lab.bank import Bank, Rows, Store, joined, rows_of
from sottovoce.lab.evaluate import readable
from sottovoce.runtime.cascade import save_cascade
from sottovoce.runtime.engine import Model, load
from sottovoce.scores import gates as tuning
from sottovoce.scores.cascade import SAME, Gate, Map, Real, fit_map, mean_cost, run, stopped
from sottovoce.scores.metrics import eer

COSTS = ("bits", "ms")
FLOAT_BITS = 32


def tune(
    files: Sequence[str | Path],
    lists: Sequence[str | Path],
    root: str | Path,
    out: str | Path,
    *,
    target_eer: str | None = None,
    target_cost: str | None = None,
    max_disagreement: str | None = None,
    confidence: float = 0.95,
    cost: str = "bits",
    quiet: bool = False,
    store: Store | None = None,
) -> dict[str, Any]:
    """Fit maps and gates of a cascade of model files on development trials, and write its file.

    files: cheapest first   target_eer: `2%` or `0.1`, how far the mean EER over lists may be from the last stage's,
    relative or absolute in per cent; the cheapest gates are taken, by `cost` (`bits` or `ms`)   target_cost: `2.5` bits
    or `12ms` a trial, both recordings new; the gates of nearest mean EER are taken   max_disagreement: `0.5%`, how many
    of a stage's answers the last stage may change, with this confidence (see `safe_gates`). Give one of these three.
    store: as of `Bank`. The threshold is the last stage's EER threshold over all trials. Raises BadInput, BadList and
    BadModel, before any recording is read where that can be known.
    """
    target = _target(target_eer, target_cost, max_disagreement, confidence, cost)
    loaded = [readable(Path(path)) for path in lists]
    models = _models(files)
    trials = joined(loaded)
    if target["kind"] == "disagreement":
        _refuse_few(len(trials), target["amount"], confidence, len(files))
    bank = Bank(models, trials, root, quiet, store)
    labels, every = bank.labels, np.arange(len(bank.kept))
    sets = rows_of(loaded, bank)
    scores = [np.asarray(bank.score(stage, every), dtype=np.float64) for stage in range(len(models))]
    threshold = eer(scores[-1], labels)[1]
    maps = [*(fit_map(row, scores[-1]) for row in scores[:-1]), SAME]
    bits = [width(model) for model in models]
    costs = bits if target["unit"] == "bits" else [2 * float(np.mean(row)) for row in bank.ms]
    chosen, curve = _gates(scores, labels, sets, maps, threshold, costs, target, quiet)
    found = run(lambda stage, rows: scores[stage][rows], len(every), maps, chosen)
    report = {
        **target,
        "lists": [{"list": one.name, "sha256": one.sha256} for one in loaded],
        "trials": len(labels),
        "targets": int(labels.sum()),
        "excluded": len(bank.failed),
        "eer": tuning.mean_eer(found.scores, labels, sets),
        "eer_of_stages": [tuning.mean_eer(row, labels, sets) for row in scores],
        "stopped": stopped(found.stage, len(models)).tolist(),
        "bits_per_trial": mean_cost(bits, found.stage),
        "disagreement": float(((found.scores >= threshold) != (scores[-1] >= threshold)).mean()),
    }
    point = {
        "threshold": threshold,
        "eer": report["eer"],
        "trials": len(labels),
        "measured_on": trials.name,
        "rule": "EER threshold of the last stage over all trials",
    }
    more = {"operating_points": {"balanced": point}, "tuning": report}
    save_cascade(out, files, bits, maps, chosen, threshold, more)
    gates = [{"low": _plain(gate.low), "high": _plain(gate.high)} for gate in chosen]
    return {"out": str(out), "threshold": threshold, "gates": gates, **report, "curve": curve}


def _gates(
    scores: Sequence[Real],
    labels: NDArray[np.uint8],
    sets: Sequence[Rows],
    maps: Sequence[Map],
    threshold: float,
    costs: Sequence[float],
    target: dict[str, Any],
    quiet: bool,
) -> tuple[list[Gate], list[dict[str, Any]]]:
    """The gates that a target asks for, and the front of EER against cost where one was looked at."""
    if target["kind"] == "disagreement":
        return tuning.safe_gates(scores, maps, threshold, target["amount"], target["confidence"]), []
    mapped = [to_last(row) for to_last, row in zip(maps, scores, strict=True)]
    tried = tuning.distances(mapped, threshold)
    with click.progressbar(tried, label="trying gates", file=sys.stderr, hidden=quiet) as bar:
        found = list(tuning.trades(mapped, labels, threshold, costs, bar, sets))
    last = tuning.mean_eer(scores[-1], labels, sets)
    if target["kind"] == "cost":
        best = tuning.best_within(found, last, target["amount"])
    else:
        best = tuning.cheapest(found, last, target["amount"] * (last if target["relative"] else 1.0))
    curve = [{"cost": one.cost, "eer": one.eer, "stopped": list(one.stopped)} for one in tuning.front(found)]
    return [Gate.around(threshold, distance) for distance in best.distances], curve


def _target(
    target_eer: str | None, target_cost: str | None, max_disagreement: str | None, confidence: float, cost: str
) -> dict[str, Any]:
    """What the gates are for, as plain values: kind, amount, unit of cost. Raises BadInput."""
    if sum(text is not None for text in (target_eer, target_cost, max_disagreement)) != 1:
        raise BadInput("give one target: an EER, a cost, or a share of answers that the last stage may change")
    if cost not in COSTS:
        raise BadInput(f"cost {cost!r} is unknown; known: {', '.join(COSTS)}")
    if target_eer is not None:
        number, unit = _amount(target_eer, "%", "2% (relative) or 0.1 (absolute, in per cent)")
        return {"kind": "eer", "amount": number / 100, "relative": unit == "%", "unit": cost}
    if target_cost is not None:
        number, unit = _amount(target_cost, "ms|bits", "2.5 (bits) or 12ms")
        return {"kind": "cost", "amount": number, "unit": unit or "bits"}
    share = _amount(str(max_disagreement), "%", "0.5%")[0] / 100
    if not (0 < share < 1 and 0 < confidence < 1):
        raise BadInput(
            f"disagreement {share:g} and confidence {confidence:g} must lie between 0 and 1, as 0.5% and 0.95"
        )
    return {"kind": "disagreement", "amount": share, "confidence": confidence, "unit": "bits"}


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
