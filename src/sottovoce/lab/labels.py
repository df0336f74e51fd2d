"""Labels of recordings from a manifest, and folds of speakers to learn and test them in."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import BadInput, BadList
from sottovoce.lab.corpora import Utterance
from sottovoce.lab.lists import read_manifest

MOST_CLASSES = 50  # more are hardly a label; numbers want bins from NUMBERS on
NUMBERS = 12
ORDERS = 20  # of speakers that are tried until every class is in two folds


@dataclass(frozen=True)
class LabelSpec:
    """Where a label comes from: a column of its name, perhaps in bins of numbers, or a part of the path."""

    name: str
    edges: tuple[float, ...] = ()  # of bins: below the first, ..., from the last on
    part: int | None = None  # of the path, from 1; negative from the end, as in -1 for the file's name


@dataclass(frozen=True)
class Labelled:
    """Recordings that have a label, and how it was read."""

    name: str
    paths: tuple[str, ...]
    speakers: tuple[str, ...]
    values: tuple[str, ...]  # the class of each recording
    unlabelled: int  # rows of the manifest without this label
    manifest: str
    manifest_sha256: str | None
    dropped: tuple[str, ...] = ()  # classes of too few speakers

    @property
    def classes(self) -> list[str]:
        """The classes there are, sorted; bins by their bounds."""
        return sorted(set(self.values), key=lambda value: (_bound(value), value))

    @property
    def classes_of(self) -> NDArray[np.int64]:
        """The number of each recording's class in `classes`: (n,)."""
        number = {value: index for index, value in enumerate(self.classes)}
        return np.array([number[value] for value in self.values], dtype=np.int64)

    def only(self, paths: Collection[str]) -> Labelled:
        """Those recordings alone that are in `paths`."""
        return self._chosen([path in paths for path in self.paths])

    def without(self, classes: Collection[str]) -> Labelled:
        """All classes but these, which are named as dropped."""
        kept = self._chosen([value not in classes for value in self.values])
        return replace(kept, dropped=(*self.dropped, *sorted(classes)))

    def _chosen(self, kept: list[bool]) -> Labelled:
        rows = [
            tuple(value for value, keep in zip(row, kept, strict=True) if keep)
            for row in (self.paths, self.speakers, self.values)
        ]
        return replace(self, paths=rows[0], speakers=rows[1], values=rows[2])

    def speakers_of_class(self) -> dict[str, int]:
        """How many speakers each class has, by class."""
        pairs = Counter(value for value, _ in set(zip(self.values, self.speakers, strict=True)))
        return {value: pairs[value] for value in self.classes}

    def about(self) -> dict[str, Any]:
        """What a report says of the label: its classes, and what guessing would reach."""
        recordings, speakers = Counter(self.values), self.speakers_of_class()
        return {
            "label": self.name,
            "manifest": self.manifest,
            "manifest_sha256": self.manifest_sha256,
            "classes": [
                {"class": one, "recordings": recordings[one], "speakers": speakers[one]} for one in self.classes
            ],
            "recordings": len(self.paths),
            "speakers": len(set(self.speakers)),
            "unlabelled": self.unlabelled,
            "dropped_classes": list(self.dropped),
            "chance_accuracy": max(recordings.values()) / len(self.paths),
            "chance_balanced_accuracy": 1 / len(self.classes),
        }


def labelled(manifest: str | Path, spec: LabelSpec, speaker_column: str | None = None) -> Labelled:
    """The recordings of a manifest that have a label. Raises BadList and BadInput for what cannot be one.

    speaker_column: what stands for the speaker; None = the speaker of the manifest.
    """
    rows = read_manifest(manifest)
    values = [_value(manifest, row, spec) for row in rows]
    speakers = [_speaker(manifest, row, speaker_column) for row in rows]
    kept = [(row.path, who, value) for row, who, value in zip(rows, speakers, values, strict=True) if value]
    if not kept:
        raise BadList(f"{manifest}: no recording has a {spec.name!r}; check the column")
    paths, who, found = (tuple(column) for column in zip(*kept, strict=True))
    if len(set(paths)) < len(paths):
        twice = next(path for path, count in Counter(paths).items() if count > 1)
        raise BadList(f"{manifest}: {twice!r} is there twice; name every recording once")
    _check_classes(manifest, spec, set(found))
    digest = hashlib.sha256(Path(manifest).read_bytes()).hexdigest() if Path(manifest).is_file() else None
    return Labelled(spec.name, paths, who, found, len(rows) - len(kept), Path(manifest).name, digest)


def check_folds(table: Labelled, folds: int, drop_small: bool = False) -> Labelled:
    """The table, without classes of fewer speakers than folds where `drop_small` allows it. Raises BadInput.

    Every fold then has a speaker, and every class is in the training part of each.
    """
    if folds < 2:
        raise BadInput(f"{folds} folds: give 2 or more, one part to test and others to train on")
    small = [one for one, count in table.speakers_of_class().items() if count < folds]
    kept = table.without(small) if drop_small and small else table
    if small and not drop_small:
        count = table.speakers_of_class()[small[0]]
        raise BadInput(
            f"label {table.name!r}: class {small[0]!r} has {count} speakers, {folds} folds need {folds}; give fewer "
            f"--folds{f' (at most {count})' if count > 1 else ''}, or leave such classes out with --drop-small"
        )
    if len(set(kept.values)) < 2:
        raise BadInput(f"label {table.name!r}: has {len(set(kept.values))} class to tell apart; a probe needs two")
    return kept


def folds_of(table: Labelled, folds: int, seed: int = 0) -> NDArray[np.int64]:
    """The fold of every recording, (n,): no speaker is in two, and classes are spread evenly.

    Raises BadInput when a fold stays empty, or a class in one fold alone, however speakers are ordered.
    """
    names, of = np.unique(table.speakers, return_inverse=True)
    counts = np.zeros((len(names), len(table.classes)))
    np.add.at(counts, (of, table.classes_of), 1)
    share = counts / counts.sum(axis=0)
    rng = np.random.default_rng(seed)
    for _ in range(ORDERS):
        place, held = _spread(share, folds, rng.permutation(len(names)))
        alone = np.flatnonzero((held > 0).sum(axis=0) < 2)
        if held.sum(axis=1).all() and not alone.size:
            return place[of]
    if not held.sum(axis=1).all():
        raise BadInput(f"label {table.name!r}: {len(names)} speakers do not fill {folds} folds; give fewer --folds")
    raise BadInput(f"label {table.name!r}: class {table.classes[alone[0]]!r} would be in one fold alone")


def _spread(
    share: NDArray[np.float64], folds: int, order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The fold of each speaker, and what share of each class a fold holds, (folds, classes).

    share: (speakers, classes), of a class's recordings. Speakers of the rarest classes come first, else in `order`;
    each goes where its rarest class is scarcest, then where its other classes are, then to the smallest fold.
    """
    rarity = (share > 0).sum(axis=0)
    rarest = np.where(share > 0, rarity, len(share) + 1).argmin(axis=1)
    held, place = np.zeros((folds, share.shape[1])), np.zeros(len(share), dtype=np.int64)
    for speaker in order[np.argsort(rarity[rarest[order]], kind="stable")]:
        crowd = held[:, share[speaker] > 0].sum(axis=1)
        place[speaker] = np.lexsort((held.sum(axis=1), crowd, held[:, rarest[speaker]]))[0]
        held[place[speaker]] += share[speaker]
    return place, held


def _value(manifest: str | Path, row: Utterance, spec: LabelSpec) -> str:
    """The class of a recording; empty where it has none."""
    if spec.part is not None:
        parts = PurePosixPath(row.path.replace("\\", "/")).parts
        if not -len(parts) <= spec.part <= len(parts) or spec.part == 0:
            raise BadInput(f"{manifest}: path {row.path!r} has no part {spec.part}; it has {len(parts)}, from 1")
        text = parts[spec.part - 1 if spec.part > 0 else spec.part]
    else:
        text = _cell(manifest, row, spec.name)
    return _bin(manifest, row, spec, text) if spec.edges and text else text


def _cell(manifest: str | Path, row: Utterance, column: str) -> str:
    cells = {**row.fields, "speaker": row.speaker, "seconds": "" if row.seconds is None else f"{row.seconds:g}"}
    if column not in cells:
        near = difflib.get_close_matches(column, cells, 1, cutoff=0.5)
        told = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(cells)}"
        raise BadList(f"{manifest}: has no column {column!r}; {told}")
    return cells[column].strip()


def _bin(manifest: str | Path, row: Utterance, spec: LabelSpec, text: str) -> str:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadInput(f"{manifest}: {spec.name} of {row.path!r} is {text!r}, not a number; bins are for numbers")
    index = int(np.searchsorted(spec.edges, number, side="right"))
    bounds = [f"{edge:g}" for edge in spec.edges]
    if index == 0:
        return f"below {bounds[0]}"
    return f"{bounds[index - 1]} up" if index == len(bounds) else f"{bounds[index - 1]} to below {bounds[index]}"


def _bound(value: str) -> float:
    """What bins are sorted by: their lower bound; other classes all alike."""
    words = value.split()
    if value.startswith("below "):
        return -math.inf
    try:
        return float(words[0]) if words[1:] and words[1] in ("up", "to") else 0.0
    except (ValueError, IndexError):
        return 0.0


def _speaker(manifest: str | Path, row: Utterance, column: str | None) -> str:
    who = row.speaker if column is None else _cell(manifest, row, column)
    if not who:
        raise BadList(
            f"{manifest}: {row.path!r} has no speaker, by whom folds are kept apart; add a column, or name one "
            "with --speaker-column"
        )
    return who


def _check_classes(manifest: str | Path, spec: LabelSpec, found: set[str]) -> None:
    if not spec.edges and len(found) > NUMBERS and all(_numeric(value) for value in found):
        raise BadInput(
            f"{manifest}: {spec.name!r} has {len(found)} values, all numbers; put them in bins, as in "
            f"--bins {spec.name}=18,40"
        )
    if len(found) > MOST_CLASSES:
        raise BadInput(f"{manifest}: {spec.name!r} has {len(found)} classes; at most {MOST_CLASSES} can be probed")


def _numeric(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
