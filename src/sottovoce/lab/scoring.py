"""How recordings become scores: the way they are seen, how several enrol one speaker, and the cohort of strangers.

Every choice is named in every result, because each moves the error rates.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import BadInput, BadList
from sottovoce.lab.corpora import Utterance
from sottovoce.lab.embedding import Embedder, Viewed, embed_files
from sottovoce.lab.lists import read_manifest
from sottovoce.scores.snorm import DEVIATIONS, as_norm, check_top, cohort_statistics, speaker_means
from sottovoce.scores.views import ENROLMENTS, Vectors, way_named

COHORT_BY = ("utterance", "speaker")
ONE_RECORDING = "one recording a model"

Real = NDArray[np.float64]
Rows = NDArray[np.int64]
Normalise = Callable[[Vectors, Rows, Rows, NDArray[np.float32]], Real]


@dataclass(frozen=True)
class Scoring:
    """What `evaluate` is told about scoring; unknown names are refused when it is made (BadInput)."""

    way: str = "whole"  # a name in WAYS
    enrolment: str = "mean"  # a name in ENROLMENTS, for models of several recordings
    cohort: str | Path | None = None  # folder or manifest of strangers
    top: int = 300  # of the cohort, for AS-norm; 0: no AS-norm
    cohort_by: str = "utterance"
    deviation: str = "population"
    subtract_mean: bool = False  # the cohort's mean embedding from every embedding

    def __post_init__(self) -> None:
        way_named(self.way)
        for what, word, known in (
            ("enrolment", self.enrolment, ENROLMENTS),
            ("cohort by", self.cohort_by, COHORT_BY),
            ("deviation", self.deviation, DEVIATIONS),
        ):
            if word not in known:
                raise BadInput(f"{what} {word!r} is unknown; known: {', '.join(known)}")
        if self.subtract_mean and self.cohort is None:
            raise BadInput("the mean that is subtracted is that of a cohort; name one")
        if self.cohort is not None and not self.top and not self.subtract_mean:
            raise BadInput("a cohort with top 0 is for nothing; subtract its mean, or take a top of 2 or more")

    @property
    def views(self) -> int:
        """Views of a recording."""
        return len(way_named(self.way).views)

    def says(self, enrolments: str | Path | None = None) -> dict[str, str]:
        """What a result says of it: scoring, enrolment, normalisation."""
        enrolment = f"{ENROLMENTS[self.enrolment][0]}, by {Path(enrolments).name}" if enrolments else ONE_RECORDING
        return {"scoring": way_named(self.way).says, "enrolment": enrolment, "normalisation": self._normalisation()}

    def _normalisation(self) -> str:
        if self.cohort is None:
            return "none"
        members = "utterances" if self.cohort_by == "utterance" else "speakers"
        steps = [f"mean of {Path(self.cohort).name} subtracted"] if self.subtract_mean else []
        if self.top:
            steps.append(f"AS-norm, top {self.top} {members} of {Path(self.cohort).name}, {self.deviation} deviation")
        return "; ".join(steps)


@dataclass(frozen=True)
class Strangers:
    """The recordings of a cohort, known to be enough before any is read."""

    source: Path
    rows: list[Utterance]

    @property
    def paths(self) -> list[Path]:
        """Where they are: a manifest's paths start from its folder."""
        root = self.source if self.source.is_dir() else self.source.parent
        return [root / row.path for row in self.rows]


def read_cohort(scoring: Scoring) -> Strangers | None:
    """The cohort that scoring names. Raises BadList, and BadInput when it is smaller than the top or lacks speakers."""
    if scoring.cohort is None:
        return None
    found = Strangers(Path(scoring.cohort), read_manifest(scoring.cohort))
    speakers = {row.speaker for row in found.rows}
    if scoring.cohort_by == "speaker" and "" in speakers:
        raise BadInput(f"{scoring.cohort}: a recording has no speaker, so take the cohort by utterance")
    if scoring.top:
        members = len(found.rows) if scoring.cohort_by == "utterance" else len(speakers)
        check_top(scoring.top, members, str(scoring.cohort))
    return found


def prepare(
    model: Embedder, scoring: Scoring, cohort: Strangers | None, *, workers: int = 1, quiet: bool = False
) -> tuple[Embedder, Normalise | None]:
    """The model as scoring sees it, and what normalises its scores (None: nothing), the cohort embedded.

    Raises BadInput when too few recordings of the cohort can be used.
    """
    way = way_named(scoring.way)
    seen: Embedder = model if scoring.way == "whole" else Viewed(model, way)
    if cohort is None:
        return seen, None
    if scoring.subtract_mean:
        seen = Viewed(model, way, _centre(model, cohort, workers, quiet))
    if not scoring.top:
        return seen, None
    kept, vectors = _embedded(seen, cohort, workers, quiet)
    if scoring.cohort_by == "speaker":
        vectors = speaker_means(vectors, [row.speaker for row in kept], scoring.views)
    check_top(scoring.top, len(vectors), f"what can be used of {cohort.source}")
    return seen, _normaliser(vectors, scoring, quiet)


def _centre(model: Embedder, cohort: Strangers, workers: int, quiet: bool) -> Vectors:
    """The mean embedding of the cohort's whole recordings: (dim,)."""
    return np.asarray(_embedded(model, cohort, workers, quiet)[1].mean(axis=0))


def _embedded(model: Embedder, cohort: Strangers, workers: int, quiet: bool) -> tuple[list[Utterance], Vectors]:
    paths = cohort.paths
    names, vectors, failed = embed_files(model, paths, workers, quiet=quiet)
    if not names:
        raise BadList(f"{cohort.source}: none of the {len(paths)} recordings can be used; {failed[0]['error']}")
    bad = {one["path"] for one in failed}
    return [row for row, path in zip(cohort.rows, paths, strict=True) if str(path) not in bad], vectors


def _normaliser(members: Vectors, scoring: Scoring, quiet: bool) -> Normalise:
    def normalise(vectors: Vectors, enrol: Rows, test: Rows, scores: NDArray[np.float32]) -> Real:
        hidden = quiet or len(vectors) * len(members) < 1 << 28
        with click.progressbar(length=len(vectors), label="AS-norm", file=sys.stderr, hidden=hidden) as bar:
            found = cohort_statistics(vectors, members, scoring.top, scoring.deviation, bar.update)
        return as_norm(scores, found[enrol], found[test])

    return normalise
