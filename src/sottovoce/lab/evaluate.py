"""A model on trial lists: each recording embedded once, trials scored by matrix products, rates with intervals.

A model here is anything with `embed(wave)`, `min_samples`, `rate`, `id` and `path`, so that any engine or baseline is
measured by the same code.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import click
import numpy as np
from numpy.typing import NDArray

from sottovoce.audio import wav
from sottovoce.errors import BadFile, BadInput, BadList
from sottovoce.lab.lists import Trials, locate, read_enrolments, read_manifest, read_trials, speakers_of
from sottovoce.scores.metrics import Rate, eer, equal_error, intervals, least_cost, min_dcf
from sottovoce.scores.scoring import cosine_trials

PRIORS = (0.01, 0.05)  # of a target trial, for minDCF; both costs are 1

Embeddings = NDArray[np.float32]
Excluded = dict[str, str]  # path, error


class Embedder(Protocol):
    """What is evaluated."""

    @property
    def min_samples(self) -> int: ...
    @property
    def rate(self) -> int: ...
    @property
    def id(self) -> str: ...
    @property
    def path(self) -> Path | None: ...
    def embed(self, wave: NDArray[np.float32]) -> Embeddings: ...


def evaluate(
    model: Embedder,
    trials_path: str | Path,
    root: str | Path,
    *,
    draws: int = 1000,
    seed: int = 0,
    workers: int = 1,
    quiet: bool = False,
    enrolments: str | Path | None = None,
) -> dict[str, Any]:
    """One trial list: EER and minDCF with 95 % intervals, as plain values for JSON (rates are fractions).

    root: the folder the list's names are relative to, or a Kaldi data folder whose keys they are.   enrolments: a list
    of models with several recordings each, as CN-Celeb's enroll.map; their embeddings are averaged. Recordings that
    cannot be used are listed under `excluded` and their trials left out. Raises BadList for a list that cannot be
    measured, before any recording is read.
    """
    settings: dict[str, Any] = {"draws": draws, "seed": seed, "workers": workers, "quiet": quiet}
    many = evaluate_many(model, [trials_path], root, **settings, enrolments=enrolments)
    return dict(many["lists"][0])


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
) -> dict[str, Any]:
    """Several trial lists over the same recordings, each embedded once: {model, lists: [as `evaluate`], mean_eer}."""
    loaded = [readable(Path(path)) for path in lists]
    names = list(dict.fromkeys(name for trials in loaded for name in trials.utterances))
    models = read_enrolments(enrolments) if enrolments is not None else {}
    known, failed = embed_models(model, names, root, models, workers=workers, quiet=quiet)
    who = identity(model)
    if models:
        who["enrolment"] = f"mean of the embeddings of each model's recordings, by {Path(str(enrolments)).name}"
    measured = [{**who, **measure(trials, known, failed, draws=draws, seed=seed)} for trials in loaded]
    return {**who, "lists": measured, "mean_eer": float(np.mean([result["eer"] for result in measured]))}


def embed_names(
    model: Embedder, names: Sequence[str], root: str | Path, *, workers: int = 1, quiet: bool = False
) -> tuple[dict[str, Embeddings], dict[str, BadFile]]:
    """The embedding of each utterance that trial lists name, and why others have none; BadList when all fail."""
    files = _files(Path(root), names)
    vectors, errors = _embed_each(model, [files[name] for name in names], workers, quiet)
    known = {name: vector for name, vector in zip(names, vectors, strict=True) if vector is not None}
    failed = {name: error for name, error in zip(names, errors, strict=True) if error is not None}
    if not known:
        raise BadList(f"none of the {len(names)} recordings under {root} can be used; the first: {errors[0]}")
    return known, failed


def embed_models(
    model: Embedder,
    names: Sequence[str],
    root: str | Path,
    enrolments: Mapping[str, Sequence[str]],
    *,
    workers: int = 1,
    quiet: bool = False,
) -> tuple[dict[str, Embeddings], dict[str, BadFile]]:
    """As `embed_names`, but a name in `enrolments` stands for the mean, of unit length, over its usable recordings."""
    parts = {name: enrolments[stem] for name in names if (stem := PurePosixPath(name).stem) in enrolments}
    wanted = dict.fromkeys([name for name in names if name not in parts])
    wanted.update(dict.fromkeys(name for several in parts.values() for name in several))
    known, failed = embed_names(model, list(wanted), root, workers=workers, quiet=quiet)
    for name, several in parts.items():
        usable = [known[one] for one in several if one in known]
        if usable:
            total = np.sum(usable, axis=0)
            known[name] = (total / max(float(np.linalg.norm(total)), 1e-12)).astype(np.float32)
        else:
            failed[name] = failed[several[0]]
    return known, failed


def embed_files(
    model: Embedder,
    paths: Sequence[str | Path],
    workers: int = 1,
    on_error: Callable[[Excluded], None] | None = None,
    quiet: bool = False,
) -> tuple[list[str], Embeddings, list[Excluded]]:
    """The embeddings of recordings: paths of the usable ones, (n, dim) float32 in their order, and the failures.

    workers: threads; the result does not depend on their number. on_error: called with each failure as it happens.
    """
    vectors, errors = _embed_each(model, [Path(path) for path in paths], workers, quiet, on_error)
    kept = [str(path) for path, vector in zip(paths, vectors, strict=True) if vector is not None]
    found = [vector for vector in vectors if vector is not None]
    failures = [_failure(path, error) for path, error in zip(paths, errors, strict=True) if error is not None]
    table = np.stack(found) if found else np.zeros((0, int(getattr(model, "dim", 0))), dtype=np.float32)
    return kept, table, failures


def identity(model: Embedder) -> dict[str, Any]:
    """What a result says of the model it was measured on."""
    if model.path is None:
        return {"model": model.id, "model_id": model.id, "model_sha256": None}
    digest = hashlib.sha256(Path(model.path).read_bytes()).hexdigest()
    return {"model": Path(model.path).name, "model_id": model.id, "model_sha256": digest}


def measure(
    trials: Trials,
    embeddings: dict[str, Embeddings],
    failed: dict[str, BadFile] | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The figures of one list from unit embeddings by utterance; trials of utterances without one are left out.

    failed: why an utterance has none, for the list of the excluded. Raises BadList when a whole class is left out.
    """
    names = trials.utterances
    scores, labels, enrol_speaker, test_speaker = trial_scores(trials, embeddings)
    return {
        "list": trials.name,
        "list_sha256": trials.sha256,
        "form": trials.form,
        "trials": len(labels),
        "trials_excluded": len(trials) - len(labels),
        "targets": int(labels.sum()),
        "utterances": sum(name in embeddings for name in names),
        "speakers": len(np.union1d(enrol_speaker, test_speaker)),
        **_figures(scores, labels, enrol_speaker, test_speaker, draws, seed),
        "excluded": [_failure(name, failed[name]) for name in names if failed and name in failed],
    }


def trial_scores(
    trials: Trials, embeddings: Mapping[str, Embeddings]
) -> tuple[Embeddings, NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Scores, labels, and the speaker numbers of both sides, (trials,) each, of the trials whose utterances are known.

    Raises BadList when a whole class is left out.
    """
    number = {name: index for index, name in enumerate(name for name in trials.utterances if name in embeddings)}
    rows = [np.fromiter((number.get(name, -1) for name in side), np.int64) for side in (trials.enrol, trials.test)]
    kept = (rows[0] >= 0) & (rows[1] >= 0)
    enrol, test, labels = rows[0][kept], rows[1][kept], trials.labels[kept]
    if not 0 < labels.sum() < len(labels):
        raise BadList(f"{trials.name}: {labels.sum()} of the {len(labels)} trials left are targets; need both kinds")
    scores = cosine_trials(np.stack([embeddings[name] for name in number]), enrol, test)
    speaker = speakers_of(trials)
    _, of = np.unique([speaker[name] for name in number], return_inverse=True)
    return scores, labels, of[enrol], of[test]


def _figures(
    scores: Embeddings,
    labels: NDArray[np.uint8],
    enrol_speaker: NDArray[np.int64],
    test_speaker: NDArray[np.int64],
    draws: int,
    seed: int,
) -> dict[str, Any]:
    rate, threshold = eer(scores, labels)
    metrics: list[Rate] = [equal_error, *(least_cost(prior) for prior in PRIORS)]
    bounds: list[list[float] | None] = [None] * len(metrics)
    if draws:
        try:
            found = intervals(scores, labels, enrol_speaker, test_speaker, metrics, draws, seed)
            bounds = [list(pair) for pair in found]
        except BadInput:  # too few speakers to resample: an interval is not known, the rate is
            pass
    return {
        "eer": rate,
        "eer_interval": bounds[0],
        "eer_threshold": threshold,
        "min_dcf": {f"{prior:g}": min_dcf(scores, labels, prior)[0] for prior in PRIORS},
        "min_dcf_interval": {f"{prior:g}": bound for prior, bound in zip(PRIORS, bounds[1:], strict=True)},
        "bootstrap_draws": draws,
    }


def readable(path: Path) -> Trials:
    """A trial list that can be measured; BadList when it has one kind of trials only."""
    trials = read_trials(path)
    targets = int(trials.labels.sum())
    if not 0 < targets < len(trials):
        raise BadList(f"{path}: {targets} of {len(trials)} trials are targets; error rates need both kinds")
    if "not cleaned" in trials.name:
        print(f"note: {trials.name}: published results mostly use the cleaned list", file=sys.stderr)
    return trials


def _files(root: Path, names: Sequence[str]) -> dict[str, Path]:
    """Where each utterance's recording is: through wav.scp in a Kaldi data folder, else by its path."""
    if not root.is_dir():
        raise BadList(f"{root}: not a folder; name the one that the trial list's paths are relative to")
    if not (root / "wav.scp").is_file():
        return {name: locate(root, name) for name in names}
    paths = {row.fields["key"]: root / row.path for row in read_manifest(root)}
    unknown = [name for name in names if name not in paths]
    if unknown:
        raise BadList(f"{root / 'wav.scp'}: no utterance {unknown[0]!r} and {len(unknown) - 1} more of the trial list")
    return {name: paths[name] for name in names}


def _embed_each(
    model: Embedder,
    files: Sequence[Path],
    workers: int,
    quiet: bool,
    on_error: Callable[[Excluded], None] | None = None,
) -> tuple[list[Embeddings | None], list[BadFile | None]]:
    """For every file its embedding or its error, in order, whatever the number of threads."""
    vectors: list[Embeddings | None] = []
    errors: list[BadFile | None] = []

    def one(path: Path) -> Embeddings | BadFile:
        try:
            return model.embed(wav.read(path, model.rate, model.min_samples))
        except BadFile as error:
            return error

    with click.progressbar(length=len(files), label="embedding", file=sys.stderr, hidden=quiet) as bar:
        for path, result in zip(files, _in_threads(one, files, workers), strict=True):
            error = result if isinstance(result, BadFile) else None
            vectors.append(None if isinstance(result, BadFile) else result)
            errors.append(error)
            if error is not None and on_error:
                on_error(_failure(path, error))
            bar.update(1)
    return vectors, errors


def _in_threads(
    one: Callable[[Path], Embeddings | BadFile], files: Sequence[Path], workers: int
) -> Iterator[Embeddings | BadFile]:
    if workers <= 1:
        yield from map(one, files)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(one, files)
    finally:  # an interrupt must not wait for thousands of recordings that are still queued
        pool.shutdown(cancel_futures=True)


def _failure(path: str | Path, error: BadFile) -> Excluded:
    return {"path": str(path), "error": f"{type(error).__name__}: {error}"}
