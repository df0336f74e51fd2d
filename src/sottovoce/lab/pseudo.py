"""Pseudo-trials: two crops of one recording as a target, crops of two recordings as a nontarget, without any label.

They stand in for trials where there are none, and are said to be such wherever they are used. Both crops of a target
share the session, the channel and the words around them, which makes it easier than life; two recordings of one
speaker count as a nontarget, which makes that one harder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import BadAudio, BadInput
from sottovoce.lab.calibrate import fitted
from sottovoce.lab.pool import pooled
from sottovoce.lab.scored import Scored
from sottovoce.runtime.engine import Model
from sottovoce.scores.scoring import cosine_trials

LONGEST_S = 3.0  # of a crop
SHORTEST_S = 1.0  # of a crop: a recording of less than twice this makes no pseudo-trials
FEWEST = 10  # recordings
METHOD = "affine"  # a line: more of the shape of pseudo-trials is their own, and costs more on real ones

Wave = NDArray[np.float32]


@dataclass(frozen=True)
class Crops:
    """The first and the last piece of each recording that is long enough; the two never overlap."""

    pairs: list[tuple[Wave, Wave]]
    left_out: int  # recordings that are too short, or have a silent piece

    @property
    def samples(self) -> int:
        """Median length of a crop."""
        return int(np.median([len(first) for first, _ in self.pairs]))


def cut(waves: Sequence[Wave], rate: int, least_samples: int = 0) -> Crops:
    """Two crops of each recording: half of it each, at most LONGEST_S, from its two ends.

    least_samples: that a model needs. Raises BadInput where fewer than FEWEST recordings give a pair.
    """
    shortest = max(round(SHORTEST_S * rate), least_samples)
    lengths = [min(len(wave) // 2, round(LONGEST_S * rate)) for wave in waves]
    pairs = [(wave[:n], wave[-n:]) for wave, n in zip(waves, lengths, strict=True) if n >= shortest]
    loud = [(first, last) for first, last in pairs if np.ptp(first) > 0 and np.ptp(last) > 0]
    if len(loud) < FEWEST:
        raise BadInput(
            f"{len(loud)} recordings of {2 * shortest / rate:g} s or more are too few for pseudo-trials; give {FEWEST},"
            " or trials"
        )
    return Crops(loud, len(waves) - len(loud))


def scored(model: Model, crops: Crops) -> Scored:
    """All pseudo-trials of a model: n targets, and one nontarget for each of the n (n - 1) / 2 pairs of recordings.

    A nontarget is the first crop of one recording and the last of a later one, so that no two share both. A recording
    stands for a speaker. Raises BadInput where the model cannot embed a crop.
    """
    flat = [crop for pair in crops.pairs for crop in pair]
    with click.progressbar(flat, label="embedding pseudo-trials", file=sys.stderr) as bar:
        try:
            table = np.stack([model.embed(crop) for crop in bar])
        except BadAudio as error:
            raise BadInput(f"pseudo-trials: a crop cannot be embedded ({error})") from None
    count = len(crops.pairs)
    one, other = np.triu_indices(count)
    enrol, test = 2 * one, 2 * other + 1
    labels = (one == other).astype(np.uint8)
    names = [f"{number}/{end}" for number in range(count) for end in ("first", "last")]
    scores = cosine_trials(table, enrol, test)
    rows = (enrol.astype(np.int64), test.astype(np.int64), one.astype(np.int64), other.astype(np.int64))
    return Scored(_told(count), "", names, [str(number) for number in range(count)], *rows, labels, scores)


def calibrated(trials: Scored, crops: Crops, rate: int, seed: int = 0) -> dict[str, Any]:
    """Metadata entries of `lab.calibrate.fitted`, marked as those of pseudo-trials.

    `calibration` has `pseudo`: {recordings, crop_s, left_out}, and no number of speakers, which nobody knows. A point
    whose rate the number of pseudo-trials cannot support is refused as with labelled ones. Raises BadInput where
    nothing can be fitted.
    """
    entries, _ = fitted(pooled([trials]), method=METHOD, seed=seed)
    about = {key: value for key, value in entries["calibration"].items() if key not in ("speakers", "support")}
    halves = [{key: value for key, value in one.items() if key != "speakers"} for one in about.get("held_out", [])]
    known = {"recordings": len(crops.pairs), "crop_s": crops.samples / rate, "left_out": crops.left_out}
    return {**entries, "calibration": {**about, "held_out": halves, "pseudo": known}}


def _told(recordings: int) -> str:
    return f"pseudo-trials (crops of {recordings} unlabelled recordings)"
