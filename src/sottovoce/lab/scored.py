"""Scored trials: what error rates are read from, in memory and in a file that other tools read.

The file is an .npz without pickled objects. Arrays over all trials: `list` (row of `lists`), `enrol` and `test` (rows
of `utterances`), `enrol_speaker` and `test_speaker` (rows of `speakers`), `labels`, `scores`. Tables of text: `lists`,
`list_sha256`, `utterances`, `speakers`. `about`: what the scores are, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import BadFile, BadInput, BadList
from sottovoce.lab.lists import Trials, speakers_of
from sottovoce.lab.scoring import Normalise
from sottovoce.scores.scoring import cosine_trials

_TEXTS = ("lists", "list_sha256", "utterances", "speakers")
_ROWS = {"list": "lists", "enrol": "utterances", "test": "utterances"}
_SPEAKERS = {"enrol_speaker": "speakers", "test_speaker": "speakers"}
_SHOWN_FROM = 1 << 21  # trials from which scoring takes seconds

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Scored:
    """The trials of one list whose utterances are known, with their scores; rows count into the two tables of names."""

    name: str
    sha256: str
    utterances: list[str]
    speakers: list[str]
    enrol: Rows  # (trials,) of `utterances`
    test: Rows
    enrol_speaker: Rows  # (trials,) of `speakers`
    test_speaker: Rows
    labels: NDArray[np.uint8]  # (trials,) 1 = target
    scores: NDArray[Any]  # (trials,) float32, or float64 where normalised

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, kept: NDArray[np.bool_]) -> Scored:
        """Some of the trials. kept: (trials,)."""
        rows = {name: getattr(self, name)[kept] for name in (*_ROWS, *_SPEAKERS, "labels", "scores") if name != "list"}
        return Scored(self.name, self.sha256, self.utterances, self.speakers, **rows)


def score_trials(
    trials: Trials,
    embeddings: Mapping[str, NDArray[np.float32]],
    normalise: Normalise | None = None,
    quiet: bool = True,
) -> Scored:
    """The trials whose utterances are both known, scored; normalise: as `scoring.prepare` gives it.

    Raises BadList when a whole class is left out, BadInput for a score that is not finite.
    """
    known = [name for name in trials.utterances if name in embeddings]
    number = {name: index for index, name in enumerate(known)}
    sides = [np.fromiter((number.get(name, -1) for name in side), np.int64) for side in (trials.enrol, trials.test)]
    kept = (sides[0] >= 0) & (sides[1] >= 0)
    enrol, test, labels = sides[0][kept], sides[1][kept], trials.labels[kept]
    if not 0 < labels.sum() < len(labels):
        raise BadList(f"{trials.name}: {labels.sum()} of the {len(labels)} trials left are targets; need both kinds")
    table = np.stack([embeddings[name] for name in known])
    with click.progressbar(
        length=len(labels), label="scoring", file=sys.stderr, hidden=quiet or len(labels) < _SHOWN_FROM
    ) as bar:
        scores: NDArray[Any] = cosine_trials(table, enrol, test, bar.update)
    if normalise:
        scores = normalise(table, enrol, test, scores)
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        pair = f"{known[enrol[bad[0]]]} and {known[test[bad[0]]]}"
        raise BadInput(
            f"{trials.name}: the score of {pair} is {scores[bad[0]]}, as are {bad.size - 1} more; embed again"
        )
    of = speakers_of(trials)
    speakers, speaker = np.unique([of[name] for name in known], return_inverse=True)
    return Scored(
        trials.name,
        trials.sha256,
        known,
        [str(name) for name in speakers],
        enrol,
        test,
        speaker[enrol],
        speaker[test],
        labels,
        scores,
    )


def write_scores(path: str | Path, lists: Sequence[Scored], about: Mapping[str, Any]) -> None:
    """All lists in one .npz, written beside its place and then moved there. about: plain values for JSON."""
    path = Path(path)
    utterances = list(dict.fromkeys(name for one in lists for name in one.utterances))
    speakers = list(dict.fromkeys(name for one in lists for name in one.speakers))
    columns: dict[str, Any] = {
        **{name: np.concatenate(rows) for name, rows in _renumbered(lists, utterances, speakers).items()},
        "lists": [one.name for one in lists],
        "list_sha256": [one.sha256 for one in lists],
        "utterances": utterances,
        "speakers": speakers,
        "about": json.dumps(about, allow_nan=False),
    }
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            np.savez_compressed(file, **columns)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _renumbered(
    lists: Sequence[Scored], utterances: Sequence[str], speakers: Sequence[str]
) -> dict[str, list[NDArray[Any]]]:
    """The arrays of every list, counted into the tables of all."""
    place = {"utterances": {name: row for row, name in enumerate(utterances)}}
    place["speakers"] = {name: row for row, name in enumerate(speakers)}
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in (*_ROWS, *_SPEAKERS, "labels", "scores")}
    for index, one in enumerate(lists):
        new = {
            "utterances": np.array([place["utterances"][name] for name in one.utterances], dtype=np.int32),
            "speakers": np.array([place["speakers"][name] for name in one.speakers], dtype=np.int32),
        }
        found["list"].append(np.full(len(one), index, dtype=np.int32))
        for name in ("enrol", "test", *_SPEAKERS):
            found[name].append(new[{**_ROWS, **_SPEAKERS}[name]][getattr(one, name)])
        found["labels"].append(one.labels.astype(np.uint8))
        found["scores"].append(one.scores)
    return found


def read_scores(path: str | Path) -> tuple[list[Scored], dict[str, Any]]:
    """What `write_scores` wrote: the lists, and what is said about them. Raises BadFile for anything else."""
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*_TEXTS, *_ROWS, *_SPEAKERS, "labels", "scores", "about")}
        about = json.loads(str(arrays["about"]))
        _check(path, arrays)
    except FileNotFoundError:
        raise BadFile(f"{path}: there is no such file; write one with `sotto evaluate --scores`") from None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        line = " ".join(str(error).split())
        raise BadFile(f"{path}: not scores of `sotto evaluate --scores` ({line}); write them again") from None
    return [_one(arrays, index) for index in range(len(arrays["lists"]))], about


def _check(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    trials = arrays["scores"].shape
    for name, table in {**_ROWS, **_SPEAKERS}.items():
        rows = arrays[name]
        if rows.shape != trials or rows.dtype.kind not in "iu" or not _inside(rows, len(arrays[table])):
            raise BadFile(f"{path}: {name} does not count into {table}; write the scores again")
    if arrays["labels"].shape != trials or not np.isin(arrays["labels"], (0, 1)).all():
        raise BadFile(f"{path}: labels are not 0 or 1 for each score; write the scores again")
    if arrays["scores"].dtype.kind != "f" or not np.isfinite(arrays["scores"]).all():
        raise BadFile(f"{path}: scores are not finite numbers; write them again")


def _inside(rows: NDArray[Any], count: int) -> bool:
    return not rows.size or bool(rows.min() >= 0 and rows.max() < count)


def _one(arrays: Mapping[str, NDArray[Any]], index: int) -> Scored:
    chosen = arrays["list"] == index
    rows = {name: arrays[name][chosen].astype(np.int64) for name in ("enrol", "test", *_SPEAKERS)}
    return Scored(
        str(arrays["lists"][index]),
        str(arrays["list_sha256"][index]),
        [str(name) for name in arrays["utterances"]],
        [str(name) for name in arrays["speakers"]],
        labels=arrays["labels"][chosen],
        scores=arrays["scores"][chosen],
        **rows,
    )
