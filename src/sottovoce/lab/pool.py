"""Trials of several lists as one, in parts without a speaker in common; pairs of recordings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from sottovoce.lab.scored import Scored

Real = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Pool:
    """The trials of all lists together; rows (trials,)."""

    scores: Real
    labels: NDArray[np.uint8]
    enrol_speaker: Rows
    test_speaker: Rows
    of: Rows  # number of the list
    lists: tuple[str, ...]
    measures: Mapping[str, Real]

    def only(self, kept: NDArray[np.bool_]) -> Pool:
        """Some of the trials. kept: (trials,)."""
        rows = (self.scores, self.labels, self.enrol_speaker, self.test_speaker, self.of)
        places = np.flatnonzero(kept)
        beside = {name: one[places] for name, one in self.measures.items()}
        return Pool(*(row[places] for row in rows), self.lists, beside)

    def speakers(self) -> Rows:
        """Numbers of the speakers that are heard, ascending."""
        sides = (self.enrol_speaker, self.test_speaker)
        most = max((int(side.max(initial=0)) for side in sides), default=0) + 1
        return np.flatnonzero(sum(np.bincount(side, minlength=most) for side in sides))

    def two_kinds(self) -> bool:
        """Whether there are targets and nontargets."""
        return bool(0 < self.labels.sum() < len(self.labels))


def pooled(lists: Sequence[Scored], measures: Mapping[str, Sequence[Real]] | None = None) -> Pool:
    """All lists as one; a speaker's name means the same in each. measures: name → one row for each list."""
    _, number = np.unique([name for one in lists for name in one.speakers], return_inverse=True)
    starts = np.cumsum([0, *(len(one.speakers) for one in lists)])
    of = [number[start:] for start in starts[:-1]]
    return Pool(
        np.concatenate([one.scores.astype(np.float64) for one in lists]),
        np.concatenate([one.labels for one in lists]),
        np.concatenate([rows[one.enrol_speaker] for rows, one in zip(of, lists, strict=True)]),
        np.concatenate([rows[one.test_speaker] for rows, one in zip(of, lists, strict=True)]),
        np.repeat(np.arange(len(lists)), [len(one) for one in lists]),
        tuple(one.name for one in lists),
        {name: np.concatenate(list(rows)) for name, rows in (measures or {}).items()},
    )


def both_ways(pool: Pool, seed: int) -> list[tuple[Pool, Pool]]:
    """Two halves without a speaker in common, each in the place of the other; every list's speakers are halved."""
    one, two = _dealt(pool, 2, seed)
    parts = [pool.only((one == number) & (two == number)) for number in (0, 1)]
    return [(parts[0], parts[1]), (parts[1], parts[0])]


def apart(pool: Pool, parts: int, seed: int) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Trials to fit on and trials to test on, without a speaker in common; in the end each trial is tested on once.

    The speakers of every list are dealt over `parts`. Tested are the trials within one part or between two; fitted is
    on all trials that no speaker of these parts has a side in. Yields (fit, test), each (trials,).
    """
    one, two = _dealt(pool, parts, seed)
    low, high = np.minimum(one, two), np.maximum(one, two)
    for first, second in combinations_with_replacement(range(parts), 2):
        test = (low == first) & (high == second)
        if test.any():
            yield ~((one == first) | (one == second) | (two == first) | (two == second)), test


def _dealt(pool: Pool, parts: int, seed: int) -> tuple[Rows, Rows]:
    """The part of each trial's two speakers: dealt one by one in turn, list after list, each list in random order."""
    rng = np.random.default_rng([seed, 7])
    speakers = [rng.permutation(pool.only(pool.of == number).speakers()) for number in range(len(pool.lists))]
    part: dict[int, int] = {}
    for speaker in np.concatenate(speakers).tolist():
        part.setdefault(speaker, len(part) % parts)
    of = np.zeros(max(part) + 1, dtype=np.int64)
    of[list(part)] = list(part.values())
    return of[pool.enrol_speaker], of[pool.test_speaker]


def pairs(speakers: Rows, most: int, seed: int) -> tuple[Rows, Rows]:
    """Pairs of recordings, each once: all of them, or `most` drawn by seed, of which at most half are of one speaker.

    speakers: (recordings,) numbers. Memory is of the order of `most` plus the number of pairs of one speaker.
    """
    count = len(speakers)
    if count * (count - 1) // 2 <= most:
        first, second = np.triu_indices(count, 1)
        return first.astype(np.int64), second.astype(np.int64)
    rng = np.random.default_rng([seed, 11])
    order = np.argsort(speakers, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(speakers[order])) + 1)
    same = np.concatenate([group[np.stack(np.triu_indices(len(group), 1))] for group in groups], axis=1)
    if same.shape[1] > most // 2:
        same = same[:, np.sort(rng.permutation(same.shape[1])[: most // 2])]
    drawn = np.sort(rng.integers(count, size=(2, 2 * most)), axis=0)
    drawn = drawn[:, speakers[drawn[0]] != speakers[drawn[1]]]
    _, once = np.unique(drawn[0] * count + drawn[1], return_index=True)
    other = drawn[:, np.sort(once)[: most - same.shape[1]]]
    both = np.concatenate([same, other], axis=1)
    return both[0].astype(np.int64), both[1].astype(np.int64)
