"""What several models make of the recordings of a trial list: each embedded once by each, when it is first asked for.

Times are of the processor and of one thread, from waveform to embedding; reading the recording is not in them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sottovoce.audio.talker import talker
from sottovoce.errors import BadFile
from sottovoce.lab.evaluate import Embeddings, embed_names
from sottovoce.lab.lists import Trials, speakers_of
from sottovoce.runtime.engine import Model
from sottovoce.scores.scoring import cosine_trials

Rows = NDArray[np.int64]
Store = dict[tuple[str, str], tuple[Embeddings, float]]  # (model's id, recording) → embedding, ms


class Timed:
    """A model that remembers the processor time of each embedding, in the order of the calls that gave one."""

    def __init__(self, model: Model, min_samples: int) -> None:
        self.model, self.min_samples, self.rate = model, min_samples, model.rate
        self.id, self.path = model.id, model.path
        self.ms: list[float] = []
        model.embed(talker(1.0, seed=0))  # the first run of a session does more

    def embed(self, wave: Embeddings) -> Embeddings:
        """As `Model.embed`."""
        began = time.process_time()
        embedding = self.model.embed(wave)
        self.ms.append(1e3 * (time.process_time() - began))
        return embedding


class Bank:
    """What each stage makes of the recordings of a trial list, computed when it is asked for, and once."""

    def __init__(
        self, models: Sequence[Model], trials: Trials, root: str | Path, quiet: bool, store: Store | None = None
    ) -> None:
        """Embeds every recording by the first stage; those that cannot be used are in `failed`.

        store: what is known from other lists over the same root, read and added to
        """
        longest = max(model.min_samples for model in models)
        self.models = [Timed(model, longest) for model in models]
        self.root, self.quiet = root, quiet
        self.store: Store = {} if store is None else store
        self.failed = self._embed(0, trials.utterances)
        self.names = [name for name in trials.utterances if name not in self.failed]
        number = {name: row for row, name in enumerate(self.names)}
        sides = [np.fromiter((number.get(name, -1) for name in side), np.int64) for side in (trials.enrol, trials.test)]
        self.kept = np.flatnonzero((sides[0] >= 0) & (sides[1] >= 0))  # trials of which both recordings are known
        self.enrol, self.test = sides[0][self.kept], sides[1][self.kept]
        self.labels = trials.labels[self.kept]
        self.speaker = self._speakers(trials)
        self.tables = [np.zeros((len(self.names), model.dim), dtype=np.float32) for model in models]
        self.ms = np.full((len(models), len(self.names)), np.nan)  # of each embedding; NaN: not asked for
        self._fill(0, np.arange(len(self.names)))

    def score(self, stage: int, rows: Rows) -> Embeddings:
        """Scores by a stage of some of the kept trials; embeds what is not embedded yet."""
        enrol, test = self.enrol[rows], self.test[rows]
        asked = np.union1d(enrol, test)
        new = asked[np.isnan(self.ms[stage, asked])]
        for error in self._embed(stage, [self.names[row] for row in new]).values():
            raise error
        self._fill(stage, new)
        return cosine_trials(self.tables[stage], enrol, test)

    def _speakers(self, trials: Trials) -> tuple[Rows, Rows]:
        """The speaker numbers of both sides of the kept trials."""
        speaker = speakers_of(trials)
        _, of = np.unique([speaker[name] for name in self.names], return_inverse=True)
        return of[self.enrol], of[self.test]

    def _embed(self, stage: int, names: Sequence[str]) -> dict[str, BadFile]:
        """See to it that the store has what a stage makes of these recordings; returns why some cannot be used."""
        timed = self.models[stage]
        new = [name for name in names if (timed.id, name) not in self.store]
        if not new:
            return {}
        timed.ms.clear()
        known, failed = embed_names(timed, new, self.root, quiet=self.quiet)
        for (name, vector), ms in zip(known.items(), timed.ms, strict=True):
            self.store[timed.id, name] = vector, ms
        return failed

    def _fill(self, stage: int, rows: Rows) -> None:
        for row in rows.tolist():
            self.tables[stage][row], self.ms[stage, row] = self.store[self.models[stage].id, self.names[row]]


def rows_of(loaded: Sequence[Trials], bank: Bank) -> list[Rows]:
    """The rows of each list among the kept trials of a bank of all of them, joined."""
    ends = np.searchsorted(bank.kept, np.cumsum([0, *map(len, loaded)]))
    return [np.arange(start, end) for start, end in pairwise(ends)]


def joined(lists: Sequence[Trials]) -> Trials:
    """Several trial lists over the same recordings as one."""
    enrol = [name for trials in lists for name in trials.enrol]
    test = [name for trials in lists for name in trials.test]
    together = hashlib.sha256("".join(trials.sha256 for trials in lists).encode()).hexdigest()
    name = ", ".join(trials.name for trials in lists)
    return Trials(enrol, test, np.concatenate([trials.labels for trials in lists]), lists[0].form, name, together)
