"""A model on trial lists: each recording embedded once, trials scored by matrix products, rates with intervals.

What is scored and how is told by `Scoring`; embedding is in `embedding`, whose names can be imported from here too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import BadFile, BadInput, BadList
from sottovoce.lab.embedding import (
    Embedder,
    Embeddings,
    Excluded,
    embed_files,
    embed_models,
    embed_names,
    failure,
    find_files,
    identity,
    recordings,
)
from sottovoce.lab.lists import Trials, read_enrolments, read_trials
from sottovoce.lab.scored import Scored, score_trials, write_scores
from sottovoce.lab.scoring import Normalise, Scoring, prepare, read_cohort
from sottovoce.lab.subgroups import Groups, read_groups
from sottovoce.runtime.verify import stored_calibration
from sottovoce.scores.metrics import (
    Rate,
    act_dcf,
    cllr,
    eer,
    equal_error,
    errors_at,
    intervals,
    least_cost,
    min_cllr,
    min_dcf,
    too_few,
)

__all__ = [
    "Embedder",
    "Embeddings",
    "Excluded",
    "embed_files",
    "embed_models",
    "embed_names",
    "evaluate",
    "evaluate_many",
    "identity",
    "measure",
    "readable",
    "trial_scores",
]

PRIORS = (0.01, 0.05)  # of a target trial, for detection costs; both costs are 1
_SHOWN_FROM = 1 << 28  # draws × trials from which the bootstrap takes seconds

Calibrate = Callable[[NDArray[Any]], NDArray[Any]]  # scores → log-likelihood ratios, nats


def evaluate(
    model: Embedder,
    trials_path: str | Path,
    root: str | Path,
    **settings: Any,
) -> dict[str, Any]:
    """One trial list: EER and minDCF with 95 % intervals, as plain values for JSON (rates are fractions).

    root: the folder the list's names are relative to, or a Kaldi data folder whose keys they are. Recordings that
    cannot be used are listed under `excluded` and their trials left out. Settings and errors are those of
    `evaluate_many`.
    """
    return dict(evaluate_many(model, [trials_path], root, **settings)["lists"][0])


def evaluate_many(
    model: Embedder,
    lists: Sequence[str | Path],
    root: str | Path,
    *,
    draws: int = 1000,
    seed: int = 0,
    workers: int = 1,
    quiet: bool = False,
    enrolments: str | Path | None = None,
    scoring: Scoring | None = None,
    priors: Sequence[float] = PRIORS,
    manifest: str | Path | None = None,
    by: Sequence[str] = (),
    scores_out: str | Path | None = None,
    calibrate: Calibrate | None = None,
    strict: bool = False,
) -> dict[str, Any]:
    """Several lists, each recording embedded once: {model, lists: [as `evaluate`], mean_eer}.

    enrolments: a list of models with several recordings each, as CN-Celeb's enroll.map, joined as `scoring` says.
    manifest, by: a table of the recordings and its columns, `age` or `age:12,18`, to make groups by.   scores_out: an
    .npz for the scores (`lab/scored`).   calibrate: scores → llrs; left out, the model's own calibration where it has
    one that stands on plain cosines alone: actDCF and Cllr are then given too.   strict: a recording that does not
    exist is a BadList. Raises BadList and BadInput for lists, a cohort, columns or names that cannot be used, before
    any recording is read.
    """
    scoring = scoring or Scoring()
    loaded = [readable(Path(path)) for path in lists]
    names = list(dict.fromkeys(name for trials in loaded for name in trials.utterances))
    models = read_enrolments(enrolments) if enrolments is not None else {}
    cohort = read_cohort(scoring)
    groups = _groups(manifest, by, names)
    _check(scoring, priors, enrolments, scores_out)
    if strict or cohort is not None:  # a cohort takes long; the root is then looked at before
        wanted = [one for each in recordings(names, models).values() for one in each]
        find_files(Path(root), list(dict.fromkeys(wanted)), strict)
    seen, normalise = prepare(model, scoring, cohort, workers=workers, quiet=quiet)
    joined: dict[str, Any] = {"enrolment": scoring.enrolment, "views": scoring.views}
    known, failed = embed_models(seen, names, root, models, **joined, workers=workers, quiet=quiet, strict=strict)
    who = {**identity(model), **scoring.says(enrolments), "priors": list(priors)}
    if enrolments is not None:
        there = set(names)
        who["enrolment_excluded"] = [failure(name, error) for name, error in failed.items() if name not in there]
    scored = [score_trials(trials, known, normalise, quiet) for trials in loaded]
    if scores_out is not None:
        write_scores(scores_out, scored, who)
    calibrate = calibrate or stored_llrs(model, scoring)
    settings: dict[str, Any] = {"draws": draws, "seed": seed, "priors": priors, "calibrate": calibrate, "quiet": quiet}
    measured = [
        {**who, **_measured(trials, one, known, failed, groups, **settings)}
        for trials, one in zip(loaded, scored, strict=True)
    ]
    return {**who, "lists": measured, "mean_eer": float(np.mean([result["eer"] for result in measured]))}


def measure(
    trials: Trials,
    embeddings: Mapping[str, Embeddings],
    failed: Mapping[str, BadFile] | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
    priors: Sequence[float] = PRIORS,
    normalise: Normalise | None = None,
    calibrate: Calibrate | None = None,
) -> dict[str, Any]:
    """The figures of one list from unit embeddings by utterance; trials of utterances without one are left out.

    failed: why an utterance has none, for the list of the excluded. Raises BadList when a whole class is left out,
    BadInput for scores that are not finite.
    """
    settings: dict[str, Any] = {"draws": draws, "seed": seed, "priors": priors, "calibrate": calibrate, "quiet": True}
    return _measured(trials, score_trials(trials, embeddings, normalise), embeddings, failed, (), **settings)


def trial_scores(
    trials: Trials, embeddings: Mapping[str, Embeddings], *, normalise: Normalise | None = None
) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Scores, labels, and the speaker numbers of both sides, (trials,) each, of the trials whose utterances are known.

    Raises BadList when a whole class is left out, BadInput for scores that are not finite.
    """
    found = score_trials(trials, embeddings, normalise)
    return found.scores, found.labels, found.enrol_speaker, found.test_speaker


def figures(
    scored: Scored,
    *,
    draws: int = 1000,
    seed: int = 0,
    priors: Sequence[float] = PRIORS,
    calibrate: Calibrate | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """Counts and rates of scored trials. `few_errors`: the EER stands on fewer than 30 errors of some kind.

    Where one class is missing, as in some subgroups, the rates are null. Raises BadInput for a prior that is none.
    """
    counts = {
        "trials": len(scored),
        "targets": int(scored.labels.sum()),
        "speakers": len(np.union1d(scored.enrol_speaker, scored.test_speaker)),
    }
    keys = [f"{prior:g}" for prior in priors]
    if not 0 < counts["targets"] < len(scored):
        nothing = dict.fromkeys(["eer", "eer_interval", "eer_threshold", "min_dcf", "min_dcf_interval", "min_cllr"])
        return {**counts, **nothing, "few_errors": True, "min_dcf_few_errors": dict.fromkeys(keys, True)}
    rate, threshold = eer(scored.scores, scored.labels)
    least = [min_dcf(scored.scores, scored.labels, prior) for prior in priors]
    errors = [errors_at(scored.scores, scored.labels, where) for _, where in least]
    bounds = _bounds(scored, priors, draws, seed, quiet)
    return {
        **counts,
        "eer": rate,
        "eer_interval": bounds[0],
        "eer_threshold": threshold,
        "few_errors": too_few(rate * counts["targets"], rate * (len(scored) - counts["targets"])),
        "min_dcf": {key: cost for key, (cost, _) in zip(keys, least, strict=True)},
        "min_dcf_interval": dict(zip(keys, bounds[1:], strict=True)),
        "min_dcf_few_errors": {key: too_few(*each) for key, each in zip(keys, errors, strict=True)},
        "min_cllr": min_cllr(scored.scores, scored.labels),
        **(_calibrated(scored, priors, calibrate) if calibrate else {}),
        "bootstrap_draws": draws,
    }


def stored_llrs(model: Any, scoring: Scoring) -> Calibrate | None:
    """The calibration in a file, where it fits what is scored: plain cosines, no side information. Raises BadModel."""
    stored = stored_calibration(model) if hasattr(model, "metadata") else None
    return stored if stored is not None and not stored.weights and scoring == Scoring() else None


def readable(path: Path) -> Trials:
    """A trial list that can be measured; BadList when it has one kind of trials only."""
    trials = read_trials(path)
    targets = int(trials.labels.sum())
    if not 0 < targets < len(trials):
        raise BadList(f"{path}: {targets} of {len(trials)} trials are targets; error rates need both kinds")
    if "not cleaned" in trials.name:
        print(f"note: {trials.name}: published results mostly use the cleaned list", file=sys.stderr)
    return trials


def _measured(
    trials: Trials,
    scored: Scored,
    embeddings: Mapping[str, Embeddings],
    failed: Mapping[str, BadFile] | None,
    groups: Sequence[Groups],
    **settings: Any,
) -> dict[str, Any]:
    names = trials.utterances
    found = figures(scored, **settings)
    tables = {
        str(one.by): [{"group": name, **figures(part, **settings)} for name, part in one.split(scored)]
        for one in groups
    }
    return {
        "list": trials.name,
        "list_sha256": trials.sha256,
        "form": trials.form,
        **found,
        "trials_excluded": len(trials) - len(scored),
        "utterances": sum(name in embeddings for name in names),
        **({"groups": tables} if tables else {}),
        "excluded": [failure(name, failed[name]) for name in names if failed and name in failed],
    }


def _bounds(scored: Scored, priors: Sequence[float], draws: int, seed: int, quiet: bool) -> list[list[float] | None]:
    """Intervals of the EER and of minDCF at each prior; None where they cannot be known."""
    metrics: list[Rate] = [equal_error, *(least_cost(prior) for prior in priors)]
    if not draws:
        return [None] * len(metrics)
    hidden = quiet or draws * len(scored) < _SHOWN_FROM
    sides = (scored.enrol_speaker, scored.test_speaker)
    with click.progressbar(length=draws, label="drawing speakers", file=sys.stderr, hidden=hidden) as bar:
        try:
            found = intervals(scored.scores, scored.labels, *sides, metrics, draws, seed, bar.update)
        except BadInput:  # too few speakers to resample: an interval is not known, the rate is
            return [None] * len(metrics)
    return [list(pair) for pair in found]


def _calibrated(scored: Scored, priors: Sequence[float], calibrate: Calibrate) -> dict[str, Any]:
    llrs = calibrate(scored.scores)
    costs = {f"{prior:g}": act_dcf(llrs, scored.labels, prior) for prior in priors}
    return {"act_dcf": costs, "cllr": cllr(llrs, scored.labels)}


def _check(
    scoring: Scoring, priors: Sequence[float], enrolments: str | Path | None, scores_out: str | Path | None
) -> None:
    wrong = [prior for prior in priors if not 0.0 < prior < 1.0]
    if wrong or not priors:
        raise BadInput(f"prior {wrong[0]} is not between 0 and 1" if wrong else "give at least one prior")
    if scoring.enrolment != Scoring.enrolment and enrolments is None:
        raise BadInput(f"enrolment {scoring.enrolment!r} joins several recordings; name them with --enrolments")
    if scores_out is not None and not Path(scores_out).parent.is_dir():
        raise BadInput(f"{scores_out}: there is no folder {Path(scores_out).parent} for the scores; make it first")


def _groups(manifest: str | Path | None, by: Sequence[str], names: Sequence[str]) -> list[Groups]:
    if by and manifest is None:
        raise BadInput(f"groups by {by[0]} need a table that has this column; name a manifest")
    return read_groups(manifest, by, names) if by and manifest is not None else []
