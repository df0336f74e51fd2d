"""Any two files on the same trials: how far scores drift, which decisions flip, what enrolling in one file costs.

The first file is the reference. Full: both sides of a trial by the other file. Test only: enrolled in the reference,
tested in the other, the cross-precision trials of arXiv 2606.08078. Every recording is embedded once by each file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import BadFile, BadInput, BadModel
from sottovoce.lab.bench import machine, versions
from sottovoce.lab.compare import percentiles
from sottovoce.lab.evaluate import Embeddings, embed_names, identity, readable, trial_scores
from sottovoce.lab.lists import Trials
from sottovoce.lab.run import write_text
from sottovoce.runtime.engine import Model, load
from sottovoce.scores.drift import EDGES, check_edges, compare_scores, knee, mean_of_sets
from sottovoce.scores.metrics import eer, equal_error, min_dcf, redrawn
from sottovoce.scores.scoring import cosine_trials

PRIOR = 0.01  # of a target trial, for minDCF, as in the paper
BARS = 80  # of a histogram of scores, over -1..1
DRIFT_BARS, WIDEST = 60, 0.3  # of a histogram of drift, and the largest drift it shows
WHAT = (
    "drift of scores between files: full = both sides of a trial by the other file, test_only = enrolled in the first "
    "file and tested in the other; flips are at the first file's EER threshold of the list; rates are fractions"
)

Known = Mapping[str, Embeddings]


def drift(
    files: Sequence[str | Path],
    lists: Sequence[str | Path],
    root: str | Path,
    *,
    out_of_domain: Sequence[str | Path] = (),
    edges: Sequence[float] = EDGES,
    draws: int = 1000,
    seed: int = 0,
    workers: int = 1,
    engine: str = "onnxruntime",
    out: str | Path | None = None,
    command: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Compare every file with the first one on every list; returns the report, which `out` (JSON) also holds.

    lists, out_of_domain: trial lists; means over the two kinds are also given apart.   edges: of the margin bins, in
    units of the cosine.   draws: of the bootstrap over speakers, 0 = no intervals.   command: kept in the report.
    A recording that one of the files cannot use is left out for all. Raises BadInput, BadModel, BadList before any
    recording is read.
    """
    check_edges(edges)
    if len(files) < 2:
        raise BadInput("drift is between files: give the reference and at least one other")
    check_out(out)
    loaded = [readable(Path(path)) for path in (*lists, *out_of_domain)]
    if not loaded:
        raise BadInput("drift needs at least one trial list: --trials")
    models = [load(path, engine=engine) for path in files]
    names = list(dict.fromkeys(name for trials in loaded for name in trials.utterances))
    known, excluded = embed_with_all(models, names, root, workers=workers, quiet=quiet)
    settings = {"draws": draws, "seed": seed}
    domains = ["in_domain"] * len(lists) + ["out_of_domain"] * len(out_of_domain)
    described = [describe_model(model) for model in models]
    measured = []
    with click.progressbar(length=len(loaded) * len(models), label="lists × files", file=sys.stderr, hidden=quiet) as b:
        for trials, domain in zip(loaded, domains, strict=True):
            measured.append({"domain": domain, **_list(trials, known, described, edges, settings, lambda: b.update(1))})
    report = {
        "what": WHAT,
        "command": command,
        "machine": machine(),
        "versions": versions(),
        "settings": {**settings, "edges": list(edges), "edges_unit": "cosine; our choice", "engine": engine},
        "models": described,
        "excluded": excluded,
        "lists": measured,
        "means": [_means(measured, place) for place in range(len(models))],
    }
    report["knee"] = _knee(report)
    if out is not None:
        write_text(Path(out), json.dumps(report, indent=1) + "\n")
    return report


def check_out(out: str | Path | None) -> None:
    """Raises BadInput when a report cannot be written to `out`: its folder is not there."""
    if out is not None and not Path(out).resolve().parent.is_dir():
        raise BadInput(f"{out}: the folder {Path(out).resolve().parent} does not exist; make it first")


def embed_with_all(
    models: Sequence[Model], names: Sequence[str], root: str | Path, *, workers: int = 1, quiet: bool = False
) -> tuple[list[dict[str, Embeddings]], list[dict[str, str]]]:
    """Embeddings by every model of the recordings that all of them can use, and those left out with their error."""
    known, failed = [], dict[str, BadFile]()
    for model in models:
        found, errors = embed_names(model, names, root, workers=workers, quiet=quiet)
        known.append(found)
        failed.update(errors)
    usable = [{name: vector for name, vector in one.items() if name not in failed} for one in known]
    return usable, [{"path": name, "error": f"{type(error).__name__}: {error}"} for name, error in failed.items()]


def describe_model(model: Model) -> dict[str, Any]:
    """What a report says of a file: name, id and hash, bytes, plan, and bits a weight."""
    return {
        **identity(model),
        "bytes": model.path.stat().st_size,
        "dim": model.dim,
        "plan": model.metadata.get("plan"),
        "bits": bits_per_weight(model.path),
    }


def bits_per_weight(path: Path) -> float | None:
    """Bits a weight takes on average, 32 where in float; None where the extra `lab` is missing, which reads them."""
    try:
        from sottovoce.export.inspect import describe
    except ModuleNotFoundError:
        return None
    try:
        found = describe(path)
    except BadModel:
        return None
    counts = [(int(np.prod(layer["shape"])), layer.get("bits", 32)) for layer in found["layers"]]
    counts += [(int(np.prod(layer["shape"])), 32) for layer in found["float_layers"]]
    return sum(count * bits for count, bits in counts) / sum(count for count, _ in counts)


def cross_scores(trials: Trials, enrolled: Known, tested: Known) -> Embeddings:
    """Scores of trials enrolled in one system and tested in another: those of `trial_scores`, in its order.

    enrolled, tested: unit embeddings of the same utterances, of one dimension.
    """
    number = {name: index for index, name in enumerate(enrolled)}
    pairs = [(number[a], number[b]) for a, b in zip(trials.enrol, trials.test, strict=True) if {a, b} <= number.keys()]
    enrol, test = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    both = np.concatenate([np.stack(list(enrolled.values())), np.stack([tested[name] for name in number])])
    return cosine_trials(both, enrol, test + len(number))


def _list(
    trials: Trials,
    known: Sequence[Known],
    models: Sequence[Mapping[str, Any]],
    edges: Sequence[float],
    settings: Mapping[str, Any],
    tick: Any,
) -> dict[str, Any]:
    """One list: the reference's rates, and every other file against it."""
    first, labels, enrol, test = trial_scores(trials, known[0])
    rate, threshold = eer(first, labels)
    sides = (labels, enrol, test)
    rows = [{**_rates(first, labels), "eer_interval": None, "scores": _histogram(first, labels)}]
    rows[0]["eer_interval"] = _eer_changes([first], sides, settings)[0][0]
    tick()
    for other, model in zip(known[1:], models[1:], strict=True):
        scored = {"full": trial_scores(trials, other)[0]}
        if model["dim"] == models[0]["dim"]:
            scored["test_only"] = cross_scores(trials, known[0], other)
        bounds = _eer_changes([first, *scored.values()], sides, settings)[1:]
        row: dict[str, Any] = {"scores": _histogram(scored["full"], labels), "test_only": None}
        for (kind, scores), (interval, change) in zip(scored.items(), bounds, strict=True):
            rates = _rates(scores, labels)
            row[kind] = {
                **rates,
                "eer_interval": interval,
                "eer_change": rates["eer"] - rate,
                "eer_change_interval": change,
                **compare_scores(first, scores, labels, threshold, enrol, test, edges=edges, **settings),
                "histogram": _histogram(scores - first, labels, DRIFT_BARS, WIDEST),
            }
        rows.append(row)
        tick()
    return {
        "list": trials.name,
        "list_sha256": trials.sha256,
        "trials": len(labels),
        "trials_excluded": len(trials) - len(labels),
        "targets": int(labels.sum()),
        "speakers": len(np.union1d(enrol, test)),
        "threshold": threshold,
        "models": [{"model": model["model"], **row} for model, row in zip(models, rows, strict=True)],
    }


def _rates(scores: Embeddings, labels: NDArray[np.uint8]) -> dict[str, Any]:
    return {"eer": eer(scores, labels)[0], "min_dcf": {f"{PRIOR:g}": min_dcf(scores, labels, PRIOR)[0]}}


def _eer_changes(
    systems: Sequence[Embeddings], sides: Sequence[NDArray[Any]], settings: Mapping[str, Any]
) -> list[tuple[list[float] | None, list[float] | None]]:
    """For every system the 95 % interval of its EER and of the change to the first, speakers drawn once for all."""
    labels, enrol, test = sides
    if not settings["draws"] or len(np.union1d(enrol, test)) < 2:
        return [(None, None) for _ in systems]
    found = redrawn(systems, labels, enrol, test, [equal_error], settings["draws"], settings["seed"])[:, :, 0]
    kept = found[~np.isnan(found).any(axis=1)]
    if not len(kept):
        return [(None, None) for _ in systems]
    return [(percentiles(kept[:, at]), percentiles(kept[:, at] - kept[:, 0])) for at in range(len(systems))]


def _histogram(values: Embeddings, labels: NDArray[np.uint8], bars: int = BARS, widest: float = 1.0) -> dict[str, Any]:
    """Counts of both kinds of trials between edges; what lies outside is counted in the outermost bars."""
    edges = np.linspace(-widest, widest, bars + 1)
    inside = np.clip(values.astype(np.float64), -widest, widest)
    kinds = {"targets": inside[labels == 1], "nontargets": inside[labels == 0]}
    return {
        "from": -widest,
        "to": widest,
        **{kind: np.histogram(kept, edges)[0].tolist() for kind, kept in kinds.items()},
    }


def _means(lists: Sequence[Mapping[str, Any]], place: int) -> dict[str, Any]:
    """Plain means over lists of the figures of the file at `place`, also by domain, and its flips over all trials."""
    rows = [(one["domain"], one["trials"], one["models"][place]) for one in lists]
    if place == 0:
        return {"model": rows[0][2]["model"], "eer": _by_domain([(domain, row["eer"]) for domain, _, row in rows])}
    found: dict[str, Any] = {"model": rows[0][2]["model"]}
    for kind in ("full", "test_only"):
        parts = [(domain, trials, row[kind]) for domain, trials, row in rows if row[kind] is not None]
        if not parts:
            found[kind] = None
            continue
        figures = ("eer", "eer_change", "mean_abs", "target_mean", "nontarget_mean", "correlation")
        found[kind] = {
            name: _by_domain([(domain, part[name]) for domain, _, part in parts if part[name] is not None])
            for name in figures
        }
        found[kind]["min_dcf"] = _by_domain([(domain, part["min_dcf"][f"{PRIOR:g}"]) for domain, _, part in parts])
        for flip in ("harmful", "beneficial"):
            count = sum(part["flips"][flip] for _, _, part in parts)
            found[kind][flip] = {"count": count, "rate": count / sum(trials for _, trials, _ in parts)}
    return found


def _by_domain(values: Sequence[tuple[str, float]]) -> dict[str, float | None] | None:
    inside, outside = ([value for domain, value in values if domain == name] for name in ("in_domain", "out_of_domain"))
    return mean_of_sets(inside, outside) if values else None


def _knee(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where mean absolute drift bends over bits, among the other files in fewer bits than the reference."""
    bits = [model["bits"] for model in report["models"]]
    if any(bit is None for bit in bits):
        return None
    places = [place for place in range(1, len(bits)) if bits[place] < bits[0]]
    losses = [report["means"][place]["full"]["mean_abs"]["all"] for place in places]
    found = knee([bits[place] for place in places], losses)
    return {
        "over": "bits a weight",
        "of": "mean_abs of full drift, mean over lists",
        "rule": "farthest below the line between the ends, both axes scaled to 0..1 (Satopää 2011); our reading",
        "points": [
            {"model": report["models"][place]["model"], "bits": bits[place], "mean_abs": loss}
            for place, loss in zip(places, losses, strict=True)
        ],
        "model": None if found is None else report["models"][places[found]]["model"],
        "bits": None if found is None else bits[places[found]],
    }
