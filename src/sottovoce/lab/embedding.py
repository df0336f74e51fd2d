"""A model on many recordings: each embedded once, the unusable ones named with their reason.

A model here is anything with `embed(wave)`, `min_samples`, `rate`, `id` and `path`, so that any engine or baseline is
measured by the same code.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import click
import numpy as np
from numpy.typing import NDArray

from sottovoce.audio import wav
from sottovoce.errors import BadAudio, BadFile, BadList
from sottovoce.lab.lists import locate, read_manifest
from sottovoce.scores.views import ENROLMENTS, Vectors, Way, standing_for

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


@dataclass(frozen=True)
class Viewed:
    """A model as one way of scoring sees it: `embed` gives the vector whose dot products are the scores."""

    model: Embedder
    way: Way
    centre: Vectors | None = None  # (dim,) taken from every embedding

    @property
    def min_samples(self) -> int:
        """Fewest samples of a recording."""
        return self.model.min_samples

    @property
    def rate(self) -> int:
        """Samples per second."""
        return self.model.rate

    @property
    def id(self) -> str:
        """The model's."""
        return self.model.id

    @property
    def path(self) -> Path | None:
        """The model's."""
        return self.model.path

    def embed(self, wave: NDArray[np.float32]) -> Vectors:
        """(samples,) → (views · dim,). Pieces that are silent are left out; raises as the model when all are."""
        return standing_for([_pieces(self.model, cut(wave, self.rate)) for cut in self.way.views], self.centre)


def embed_names(
    model: Embedder,
    names: Sequence[str],
    root: str | Path,
    *,
    workers: int = 1,
    quiet: bool = False,
    strict: bool = False,
) -> tuple[dict[str, Embeddings], dict[str, BadFile]]:
    """The embedding of each utterance that trial lists name, and why others have none; BadList when all fail.

    strict: a recording that does not exist is a BadList, before any is read.
    """
    files = find_files(Path(root), names, strict)
    vectors, errors = _embed_each(model, [(files[name],) for name in names], workers, quiet)
    return _known(names, vectors, errors, root)


def embed_models(
    model: Embedder,
    names: Sequence[str],
    root: str | Path,
    enrolments: Mapping[str, Sequence[str]],
    *,
    enrolment: str = "mean",
    views: int = 1,
    workers: int = 1,
    quiet: bool = False,
    strict: bool = False,
) -> tuple[dict[str, Embeddings], dict[str, BadFile]]:
    """As `embed_names`, but a name in `enrolments` stands for its usable recordings, joined as `enrolment` says.

    enrolment: a name in ENROLMENTS   views: of the model's vectors, each of which is brought to unit length.
    """
    several_of = recordings(names, enrolments)
    join = ENROLMENTS[enrolment][1]
    if join is None:
        return _joined_audio(model, several_of, root, workers, quiet, strict)
    wanted = list(dict.fromkeys(one for each in several_of.values() for one in each))
    known, failed = embed_names(model, wanted, root, workers=workers, quiet=quiet, strict=strict)
    for name, several in several_of.items():
        if several == (name,):
            continue
        usable = [known[one] for one in several if one in known]
        if usable:
            known[name] = join(np.stack(usable), views)
        else:
            failed[name] = failed[several[0]]
    return known, failed


def recordings(names: Sequence[str], enrolments: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """What each name of a trial list stands for: the recordings of a model that `enrolments` knows, or itself."""
    return {name: tuple(enrolments.get(PurePosixPath(name).stem, (name,))) for name in names}


def _joined_audio(
    model: Embedder,
    several: Mapping[str, Sequence[str]],
    root: str | Path,
    workers: int,
    quiet: bool,
    strict: bool,
) -> tuple[dict[str, Embeddings], dict[str, BadFile]]:
    """A model's usable recordings one after the other, embedded as one."""
    files = find_files(Path(root), list(dict.fromkeys(one for each in several.values() for one in each)), strict)
    parts: dict[Path, BadFile] = {}
    places = [[files[one] for one in each] for each in several.values()]
    vectors, errors = _embed_each(model, places, workers, quiet, parts=parts)
    known, failed = _known(list(several), vectors, errors, root)
    return known, {**{name: parts[path] for name, path in files.items() if path in parts}, **failed}


def _known(
    names: Sequence[str],
    vectors: Sequence[Embeddings | None],
    errors: Sequence[BadFile | None],
    root: str | Path,
) -> tuple[dict[str, Embeddings], dict[str, BadFile]]:
    known = {name: vector for name, vector in zip(names, vectors, strict=True) if vector is not None}
    failed = {name: error for name, error in zip(names, errors, strict=True) if error is not None}
    if not known:
        raise BadList(f"none of the {len(names)} recordings under {root} can be used; the first: {errors[0]}")
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
    vectors, errors = _embed_each(model, [(Path(path),) for path in paths], workers, quiet, on_error)
    kept = [str(path) for path, vector in zip(paths, vectors, strict=True) if vector is not None]
    found = [vector for vector in vectors if vector is not None]
    failures = [failure(path, error) for path, error in zip(paths, errors, strict=True) if error is not None]
    table = np.stack(found) if found else np.zeros((0, int(getattr(model, "dim", 0))), dtype=np.float32)
    return kept, table, failures


def identity(model: Embedder) -> dict[str, Any]:
    """What a result says of the model it was measured on."""
    if model.path is None:
        return {"model": model.id, "model_id": model.id, "model_sha256": None}
    digest = hashlib.sha256(Path(model.path).read_bytes()).hexdigest()
    return {"model": Path(model.path).name, "model_id": model.id, "model_sha256": digest}


def find_files(root: Path, names: Sequence[str], strict: bool = False) -> dict[str, Path]:
    """Where each utterance's recording is: through wav.scp in a Kaldi data folder, else by its path.

    Raises BadList for a root that is no folder, a key that wav.scp does not have, and, where strict, for recordings
    that do not exist.
    """
    if not root.is_dir():
        raise BadList(f"{root}: not a folder; name the one that the trial list's paths are relative to")
    files = _keyed(root, names) if (root / "wav.scp").is_file() else {name: locate(root, name) for name in names}
    missing = [name for name in names if strict and not files[name].exists()]
    if missing:
        raise BadList(
            f"{root}: {len(missing)} of {len(names)} recordings of the trial list are not there, the first "
            f"{missing[0]!r}; check the folder, or leave their trials out with --skip-missing"
        )
    return files


def _keyed(root: Path, names: Sequence[str]) -> dict[str, Path]:
    paths = {row.fields["key"]: root / row.path for row in read_manifest(root)}
    unknown = [name for name in names if name not in paths]
    if unknown:
        raise BadList(f"{root / 'wav.scp'}: no utterance {unknown[0]!r} and {len(unknown) - 1} more of the trial list")
    return {name: paths[name] for name in names}


def failure(path: str | Path, error: BadFile) -> Excluded:
    """A recording that could not be used, for a result."""
    return {"path": str(path), "error": f"{type(error).__name__}: {error}"}


def _pieces(model: Embedder, waves: Sequence[NDArray[np.float32]]) -> Vectors:
    """The embeddings of the pieces that can be used: (pieces, dim)."""
    found, first = [], None
    for wave in waves:
        try:
            found.append(model.embed(wave))
        except BadAudio as error:
            first = first or error
    if first is not None and not found:
        raise first
    return np.stack(found)


def _wave(model: Embedder, files: Sequence[Path], parts: dict[Path, BadFile]) -> NDArray[np.float32]:
    """A recording, or the usable ones of several one after the other; why others are not usable goes into `parts`."""
    if len(files) == 1:
        return wav.read(files[0], model.rate, model.min_samples)
    waves = []
    for path in files:
        try:
            waves.append(wav.read(path, model.rate))
        except BadFile as error:
            parts[path] = error
    if not waves:
        raise parts[files[0]]
    return np.concatenate(waves)


def _embed_each(
    model: Embedder,
    files: Sequence[Sequence[Path]],
    workers: int,
    quiet: bool,
    on_error: Callable[[Excluded], None] | None = None,
    parts: dict[Path, BadFile] | None = None,
) -> tuple[list[Embeddings | None], list[BadFile | None]]:
    """For every recording (of one file, or of several joined) its embedding or its error, in order."""
    unusable = {} if parts is None else parts
    vectors: list[Embeddings | None] = []
    errors: list[BadFile | None] = []

    def one(paths: Sequence[Path]) -> Embeddings | BadFile:
        try:
            return model.embed(_wave(model, paths, unusable))
        except BadFile as error:
            return error

    with click.progressbar(length=len(files), label="embedding", file=sys.stderr, hidden=quiet) as bar:
        for paths, result in zip(files, _in_threads(one, files, workers), strict=True):
            error = result if isinstance(result, BadFile) else None
            vectors.append(None if isinstance(result, BadFile) else result)
            errors.append(error)
            if error is not None and on_error:
                on_error(failure(paths[0], error))
            bar.update(1)
    return vectors, errors


def _in_threads(
    one: Callable[[Sequence[Path]], Embeddings | BadFile], files: Sequence[Sequence[Path]], workers: int
) -> Iterator[Embeddings | BadFile]:
    if workers <= 1:
        yield from map(one, files)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(one, files)
    finally:  # an interrupt must not wait for thousands of recordings that are still queued
        pool.shutdown(cancel_futures=True)
