"""Scores of a file on trials → its calibration and operating points, as entries of its metadata.

Works in the base install: `runtime/relabel` writes the entries without the onnx package.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from sottovoce.audio import wav
from sottovoce.audio.quality import SIDES, Quality, of_file
from sottovoce.errors import BadInput, BadList
from sottovoce.lab.embedding import embed_names, find_files, identity
from sottovoce.lab.evaluate import evaluate_many
from sottovoce.lab.lists import Utterance, read_manifest
from sottovoce.lab.pool import Pool, apart, pairs, pooled
from sottovoce.lab.scored import Scored, read_scores
from sottovoce.runtime.engine import Model, load
from sottovoce.runtime.relabel import relabel
from sottovoce.runtime.verify import stored_calibration
from sottovoce.scores.calibration import Calibration, affine, isotonic, shrunk
from sottovoce.scores.metrics import act_dcf, cllr, min_cllr, min_dcf
from sottovoce.scores.points import RATES, operating_points, point
from sottovoce.scores.scoring import cosine_trials
from sottovoce.scores.splines import spline
from sottovoce.scores.support import support

PRIORS = (0.01, 0.5)  # of a target, that actDCF is given at
PAIRS = 500_000  # most trials made from recordings
PARTS = 20  # that the speakers are dealt over, to measure on those of two and fit on the others
METHODS = ("spline", "shrunk", "affine", "isotonic")

Real = NDArray[np.float64]


def calibrate(
    model_path: str | Path | None,
    out: str | Path,
    *,
    data: str | Path | None = None,
    trials: Sequence[str | Path] = (),
    audio: str | Path | None = None,
    method: str | None = None,
    measures: Sequence[str] = (),
    prior: float = 0.5,
    seed: int = 0,
    workers: int = 1,
) -> dict[str, Any]:
    """Fit calibration and operating points of a file and write it with them; the weights stay as they are.

    model_path: an .onnx, None for the shipped one.   data: a folder with a folder for each speaker, or a manifest with
    speakers, of which all pairs are trials (at most PAIRS, drawn by seed); or trials and audio: lists and their root.
    method: of METHODS; left out, 'spline', or 'affine' with measures.   measures: names of SIDES, side information of
    an affine calibration.   prior: weight of the targets in the fit. Returns a report: `before` (what the stored
    calibration, if any, costs on these trials), `held_out` (every trial under a calibration that neither of its
    speakers was fitted on), and what was stored. Raises BadInput, BadList, BadModel before any recording is read; the
    file appears only whole.
    """
    method = method or ("affine" if measures else METHODS[0])
    _check(out, data, trials, audio, method, measures, prior)
    model = load(model_path)
    if data is not None:
        lists, root = [scored_pairs(model, data, seed, workers)], root_of(data)
    else:
        assert audio is not None
        lists, root = scored_lists(model, trials, audio, Path(out), workers)[0], Path(audio)
    pool = pooled(lists, _measured(lists, measures, model, root))
    entries, report = fitted(pool, method=method, prior=prior, seed=seed)
    relabel(model.path, out, entries)
    return {
        "model": str(out),
        "model_id": load(out).id,
        "from": identity(model)["model"],
        "before": before(model, pool),
        **report,
    }


def fitted(
    pool: Pool, *, method: str = METHODS[0], prior: float = 0.5, seed: int = 0, draws: int = 300
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata entries `calibration`, `operating_points`, `operating_points_refused`, and a report of them.

    Points are thresholds of the score; with side information they are thresholds of the llr, given as the score of a
    pair of average quality too. Raises BadInput where nothing can be fitted.
    """
    calibration = fit(pool, method, prior)
    llrs = calibration(pool.scores, pool.measures)
    about = {
        "measured_on": ", ".join(pool.lists),
        "speakers": len(pool.speakers()),
        **judged(pool, calibration),
        "held_out": crossed(pool, method=method, prior=prior, seed=seed),
    }
    decided = llrs if calibration.weights else pool.scores
    sides = (pool.enrol_speaker, pool.test_speaker)
    points, refused = operating_points(decided, pool.labels, *sides, draws=draws, seed=seed)
    for name, one in points.items():
        one["measured_on"] = about["measured_on"]
        if RATES[name] is None:
            one["eer"] = (one["false_accepts"] + one["misses"]) / 2.0
        if len(pool.lists) > 1:
            one["by_list"] = _by_list(pool, decided, one["threshold"])
        if calibration.weights:
            beside = {key: float(np.mean(values)) for key, values in pool.measures.items()}
            one["llr"] = one["threshold"]
            one["threshold"] = float((one["llr"] - calibration.offset - calibration.side(beside)) / calibration.scale)
    entries = {
        "calibration": {**calibration.as_dict(), **about},
        "operating_points": points,
        "operating_points_refused": refused,
    }
    return entries, entries


def fit(pool: Pool, method: str, prior: float) -> Calibration:
    """A calibration of the trials: `method` as in METHODS, `prior` the weight of targets. Raises BadInput."""
    if method == "isotonic":
        return isotonic(pool.scores, pool.labels)
    if method in ("spline", "shrunk"):
        curve = spline if method == "spline" else shrunk
        return curve(pool.scores, pool.labels, len(pool.speakers()), prior)
    return affine(pool.scores, pool.labels, prior, pool.measures)


def judged(pool: Pool, calibration: Calibration) -> dict[str, Any]:
    """Cllr, minCllr, actDCF and minDCF at PRIORS of these trials under a calibration."""
    return costs(calibration(pool.scores, pool.measures), order(pool, calibration), pool.labels)


def order(pool: Pool, calibration: Calibration) -> Real:
    """(trials,) what the least costs are read from: the scores, or with side information the llrs before any bound."""
    return calibration.scale * pool.scores + calibration.side(pool.measures) if calibration.weights else pool.scores


def costs(llrs: Real, ordered: Real, labels: NDArray[np.uint8]) -> dict[str, Any]:
    """What llrs cost, and the least that trials in this order could cost; all (trials,)."""
    keys = [f"{prior:g}" for prior in PRIORS]
    return {
        "cllr": cllr(llrs, labels),
        "min_cllr": min_cllr(ordered, labels),
        "act_dcf": {key: act_dcf(llrs, labels, at) for key, at in zip(keys, PRIORS, strict=True)},
        "min_dcf": {key: min_dcf(ordered, labels, at)[0] for key, at in zip(keys, PRIORS, strict=True)},
    }


def supports(pool: Pool, llrs: Real) -> dict[str, Any]:
    """Whose errors the costs of these llrs stand on, at each of PRIORS: see `support`. llrs: (trials,), nats."""
    sides = pool.enrol_speaker, pool.test_speaker
    return {f"{prior:g}": support(llrs, pool.labels, *sides, prior) for prior in PRIORS}


def held_out(
    pool: Pool,
    how: Callable[[Pool], Calibration],
    seed: int = 0,
    parts: int = PARTS,
    fit_on: Pool | None = None,
    advance: Callable[[int], object] | None = None,
) -> Real:
    """The llr of each trial by a calibration that neither of its speakers was fitted on: (trials,), nats.

    how: trials → a calibration.   parts: see `apart`.   fit_on: the same trials by another file, to fit on instead.
    advance: called with the number of trials of each step. Raises BadInput where the speakers are too few.
    """
    llrs = np.empty(len(pool.labels))
    source = fit_on or pool
    for fit_rows, test_rows in apart(pool, parts, seed):
        test = pool.only(test_rows)
        llrs[test_rows] = how(source.only(fit_rows))(test.scores, test.measures)
        if advance:
            advance(len(test.labels))
    return llrs


def crossed(pool: Pool, *, method: str = METHODS[0], prior: float = 0.5, seed: int = 0) -> list[dict[str, Any]]:
    """One row as of `judged`, each trial by a calibration that neither of its speakers was fitted on; and `supports`.

    Empty where the speakers are too few for that.
    """
    how = partial(fit, method=method, prior=prior)
    try:
        with click.progressbar(length=len(pool.labels), label="judging on speakers left out", file=sys.stderr) as bar:
            llrs = held_out(pool, how, seed, advance=bar.update)
        ordered = order(pool, how(pool))
    except BadInput:
        return []
    counts = {"trials": len(pool.labels), "targets": int(pool.labels.sum())}
    found = {**costs(llrs, ordered, pool.labels), "support": supports(pool, llrs)}
    return [{"speakers": len(pool.speakers()), "parts": PARTS, **counts, **found}]


def before(model: Model, pool: Pool) -> dict[str, Any] | None:
    """What the calibration already in the file costs on these trials; None without one, or for lack of its measures."""
    stored = stored_calibration(model)
    if stored is None or set(stored.weights) - set(pool.measures):
        return None
    return judged(pool, stored)


def scored_lists(
    model: Model, trials: Sequence[str | Path], audio: str | Path, beside: Path, workers: int = 1
) -> tuple[list[Scored], dict[str, Any]]:
    """The scored trials of lists, and their evaluation as `evaluate_many` gives it, from one pass over the recordings.

    beside: the scores are kept for a moment in a file next to this one.
    """
    part = beside.with_name(f".{beside.name}.{os.getpid()}.scores.npz")
    try:
        evaluation = evaluate_many(model, list(trials), audio, workers=workers, scores_out=part)
        return read_scores(part)[0], evaluation
    finally:
        part.unlink(missing_ok=True)


def scored_pairs(model: Model, data: str | Path, seed: int, workers: int = 1) -> Scored:
    """Pairs of the recordings of a folder or manifest with speakers, scored. Raises BadList."""
    rows = _labelled(data)
    known, _ = embed_names(model, [row.path for row in rows], root_of(data), workers=workers)
    kept = [row for row in rows if row.path in known]
    speakers, of = np.unique([row.speaker for row in kept], return_inverse=True)
    enrol, test = pairs(of, PAIRS, seed)
    labels = (of[enrol] == of[test]).astype(np.uint8)
    if not 0 < labels.sum() < len(labels):
        raise BadList(f"{data}: of its usable recordings no pair is of one speaker, or none of two; record more")
    scores = cosine_trials(np.stack([known[row.path] for row in kept]), enrol, test)
    name = f"{Path(data).name or data} ({len(kept)} recordings, {len(speakers)} speakers)"
    names = [row.path for row in kept], [str(speaker) for speaker in speakers]
    return Scored(name, "", *names, enrol, test, of[enrol], of[test], labels, scores)


def root_of(data: str | Path) -> Path:
    """The folder that the paths of a manifest, or of a folder of recordings, start from."""
    return Path(data) if Path(data).is_dir() else Path(data).parent


def qualities(files: Mapping[str, Path], model: Model) -> dict[str, Quality]:
    """The quality of each recording by name."""
    found = {}
    with click.progressbar(files.items(), label="measuring recordings", file=sys.stderr) as bar:
        for name, path in bar:
            found[name] = of_file(path, wav.read(path, model.rate, model.min_samples), model.rate)
    return found


def _measured(
    lists: Sequence[Scored], measures: Sequence[str], model: Model, root: Path
) -> dict[str, list[NDArray[np.float64]]]:
    """Side information of every trial: name → a row for each list."""
    if not measures:
        return {}
    used = list(dict.fromkeys(one.utterances[row] for one in lists for row in np.union1d(one.enrol, one.test)))
    quality = qualities(find_files(root, used), model)
    found: dict[str, list[Real]] = {}
    for name in measures:
        values = {key: SIDES[name](one) for key, one in quality.items()}
        columns = [np.array([values.get(key, np.nan) for key in one.utterances]) for one in lists]
        found[name] = [np.minimum(row[one.enrol], row[one.test]) for row, one in zip(columns, lists, strict=True)]
    return found


def _by_list(pool: Pool, decided: Real, threshold: float) -> dict[str, Any]:
    """Both rates of each list at a threshold: one threshold rarely suits all."""
    found = {}
    for number, name in enumerate(pool.lists):
        here = pool.of == number
        one = point(decided[here], pool.labels[here], threshold)
        found[name] = {key: one[key] for key in ("false_accepts", "misses")}
    return found


def _labelled(data: str | Path) -> list[Utterance]:
    """The recordings with speakers, once it is known that they make both kinds of pairs. Raises BadList."""
    rows = read_manifest(data)
    without = next((row.path for row in rows if not row.speaker), None)
    if without is not None:
        raise BadList(f"{data}: {without} has no speaker; put each speaker's recordings into a folder of their own")
    counts = np.unique([row.speaker for row in rows], return_counts=True)[1]
    if len(counts) < 2 or counts.max() < 2:
        raise BadList(
            f"{data}: {len(counts)} speakers with {len(rows)} recordings; calibration needs two speakers or more,"
            " and two recordings or more of some"
        )
    return rows


def _check(
    out: str | Path,
    data: str | Path | None,
    trials: Sequence[str | Path],
    audio: str | Path | None,
    method: str,
    measures: Sequence[str],
    prior: float,
) -> None:
    if not Path(out).resolve().parent.is_dir():
        raise BadInput(f"{out}: its folder does not exist; make it first")
    if (data is None) == (not trials) or bool(trials) != (audio is not None):
        raise BadInput("give recordings with speakers, or trial lists and the root of their audio: one of the two")
    if method not in METHODS:
        raise BadInput(f"method {method!r} is unknown; known: {', '.join(METHODS)}")
    unknown = [name for name in measures if name not in SIDES]
    if unknown or (measures and method != "affine"):
        raise BadInput(f"measures {list(measures)}: an affine calibration can use {', '.join(SIDES)}")
    if not 0.0 < prior < 1.0:
        raise BadInput(f"a prior of {prior} is not between 0 and 1")
    if data is not None:
        _labelled(data)
