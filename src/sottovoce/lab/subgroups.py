"""Trials by a column of a manifest: by gender, by age band, by duration, by whatever stands there.

A trial belongs to a group when both of its recordings do; trials between two groups are the group `mixed`, and those
with a recording that has no value are `unknown`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import BadInput, BadList
from sottovoce.lab.corpora import Utterance
from sottovoce.lab.lists import read_manifest
from sottovoce.lab.scored import Scored

MOST_GROUPS = 20  # values of a column of words
BANDS = 3  # of a column of numbers whose edges are not given, with as many recordings in each
MIXED, UNKNOWN = "mixed", "unknown"
_ALIASES = {"duration": "seconds"}


@dataclass(frozen=True)
class By:
    """A column, and where its bands begin if it holds numbers: text `age` or `age:12,18`."""

    column: str
    edges: tuple[float, ...] = ()

    @staticmethod
    def parse(text: str) -> By:
        """Raises BadInput for edges that are not rising numbers."""
        column, _, rest = text.partition(":")
        try:
            edges = tuple(float(edge) for edge in rest.split(",")) if rest else ()
        except ValueError:
            edges = (math.nan,)
        if not column or not all(math.isfinite(edge) for edge in edges) or list(edges) != sorted(set(edges)):
            raise BadInput(f"--by {text!r}: give a column, or a column and rising edges as in age:12,18")
        return By(column, edges)

    def __str__(self) -> str:
        return f"{self.column}:{','.join(f'{edge:g}' for edge in self.edges)}" if self.edges else self.column


@dataclass(frozen=True)
class Groups:
    """The group of every utterance, for one column; empty where it has no value."""

    by: By
    of: dict[str, str]
    order: list[str]

    def split(self, scored: Scored) -> Iterator[tuple[str, Scored]]:
        """The trials of each group that has any, in the order of the groups; mixed and unknown last."""
        names = [*self.order, MIXED, UNKNOWN]
        number = {name: index for index, name in enumerate(names)}
        group = np.array([number[self.of[name] or UNKNOWN] for name in scored.utterances])
        first, second = group[scored.enrol], group[scored.test]
        unknown = (first == number[UNKNOWN]) | (second == number[UNKNOWN])
        place = np.where(unknown, number[UNKNOWN], np.where(first == second, first, number[MIXED]))
        for index, name in enumerate(names):
            chosen = place == index
            if chosen.any():
                yield name, scored.only(chosen)


def read_groups(manifest: str | Path, by: Sequence[str], names: Sequence[str]) -> list[Groups]:
    """The groups of these utterances for each column asked for.

    Raises BadList for a column that the manifest does not have and for an utterance that it does not name; BadInput for
    a column of words with more than MOST_GROUPS values, and for edges of a column that does not hold numbers.
    """
    wanted = [By.parse(text) for text in by]
    rows = read_manifest(manifest)
    known = _columns(rows)
    for one in wanted:
        if _ALIASES.get(one.column, one.column) not in known:
            raise BadList(f"{manifest}: no column {one.column!r}; it has: {', '.join(known)}")
    found = _found(manifest, rows, names)
    return [_groups(one, {name: _value(row, one.column) for name, row in found.items()}) for one in wanted]


def _columns(rows: Sequence[Utterance]) -> list[str]:
    named = dict.fromkeys(name for row in rows for name in row.fields)
    own = {"speaker": any(row.speaker for row in rows), "seconds": any(row.seconds is not None for row in rows)}
    return [*(name for name, there in own.items() if there), *named]


def _value(row: Utterance, column: str) -> str:
    column = _ALIASES.get(column, column)
    if column == "seconds":
        return "" if row.seconds is None else f"{row.seconds:g}"
    return (row.speaker if column == "speaker" else row.fields.get(column, "")).strip()


def _found(manifest: str | Path, rows: Sequence[Utterance], names: Sequence[str]) -> dict[str, Utterance]:
    """The row of each utterance: by its path, with or without a suffix, or by its Kaldi key."""
    places: dict[str, Utterance] = {}
    for row in rows:
        for key in (row.fields.get("key", row.path), row.path, _stem(row.path)):
            places.setdefault(key, row)
    found = {name: places[key] for name in names for key in [name if name in places else _stem(name)] if key in places}
    missing = [name for name in names if name not in found]
    if missing:
        raise BadList(
            f"{manifest}: does not name utterance {missing[0]!r} of the trial list, and {len(missing) - 1} more"
        )
    return found


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def _groups(by: By, values: dict[str, str]) -> Groups:
    numbers = _numbers(by, values)
    if numbers is None:
        order = sorted({value for value in values.values() if value})
        if len(order) > MOST_GROUPS:
            raise BadInput(f"column {by.column!r} has {len(order)} values; subgroups are for {MOST_GROUPS} at most")
        return Groups(by, values, order)
    inside = np.array([numbers[name] for name, value in values.items() if value])
    edges = by.edges or _even(inside)
    labels = _labels(edges)
    of = {
        name: labels[int(np.searchsorted(edges, numbers[name], side="right"))] if value else ""
        for name, value in values.items()
    }
    return Groups(By(by.column, edges), of, labels)


def _numbers(by: By, values: dict[str, str]) -> dict[str, float] | None:
    """The values as numbers; None for a column of words, or of so few numbers that they are names."""
    try:
        numbers = {name: float(value) for name, value in values.items() if value}
    except ValueError:
        numbers = {}
    finite = bool(numbers) and all(math.isfinite(number) for number in numbers.values())
    if by.edges and not finite:
        raise BadInput(f"column {by.column!r} does not hold numbers, so it has no edges; take --by {by.column}")
    return numbers if by.edges or (finite and len(set(numbers.values())) > BANDS) else None


def _even(numbers: NDArray[np.float64]) -> tuple[float, ...]:
    """Edges between bands of about as many recordings each."""
    cuts = np.quantile(numbers, np.arange(1, BANDS) / BANDS, method="higher")
    return tuple(float(cut) for cut in np.unique(cuts))


def _labels(edges: Sequence[float]) -> list[str]:
    """`< 12`, `12 to < 18`, `≥ 18`."""
    inner = [f"{low:g} to < {high:g}" for low, high in pairwise(edges)]
    return [f"< {edges[0]:g}", *inner, f"≥ {edges[-1]:g}"]
