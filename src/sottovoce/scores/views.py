"""What of a recording is embedded, and the one vector that then stands for it.

A view is the whole recording, or several pieces of it. The mean of the cosines of all pairs of pieces equals the dot
product of the means of their unit embeddings, so a recording is kept as those means and a trial costs one dot product,
however many pieces there are. It is exact: sum_ij a_i·b_j = (sum_i a_i)·(sum_j b_j).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import BadInput

SEGMENT_S, OVERLAP_S = 4.0, 1.0  # arXiv 2210.17326
CROP_S, CROPS = 3.015, 5  # arXiv 2407.08991: 300 hops of 160 samples and 240 more, at 16 kHz

Wave = NDArray[np.float32]
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Way:
    """One way of scoring: each view is a list of pieces; the score is the mean over views of mean pair cosines."""

    says: str  # in results
    views: tuple[Callable[[Wave, int], list[Wave]], ...]  # (samples,), rate in Hz → pieces


def whole(wave: Wave, rate: int) -> list[Wave]:
    """The recording as it is."""
    return [wave]


def segments(wave: Wave, rate: int) -> list[Wave]:
    """Segments of 4 s that overlap by 1 s; a recording that is no longer than one segment is taken whole.

    Source: arXiv 2210.17326, section 3. What it leaves open is our reading: the last segment ends with the recording,
    so nothing is lost, and overlaps more.
    """
    length, hop = round(SEGMENT_S * rate), round((SEGMENT_S - OVERLAP_S) * rate)
    if len(wave) <= length:
        return [wave]
    starts = [*range(0, len(wave) - length, hop), len(wave) - length]
    return [wave[start : start + length] for start in starts]


def crops(wave: Wave, rate: int) -> list[Wave]:
    """Five crops of 3 s with evenly spaced starts; a shorter recording is repeated until it fills one crop.

    Source: the repository of arXiv 2407.08991. Five crops of a short recording are the same, so one stands for them.
    """
    length = round(CROP_S * rate)
    if len(wave) <= length:
        return [np.resize(wave, length)]
    starts = np.linspace(0, len(wave) - length, CROPS).astype(int)
    return [wave[start : start + length] for start in starts]


WAYS = {
    "whole": Way("cosine of whole recordings", (whole,)),
    "segments": Way("mean cosine of pairs of segments of 4 s that overlap by 1 s", (segments,)),
    "crops": Way(
        "mean of the cosine of whole recordings and the mean cosine of pairs of 5 crops of 3 s", (whole, crops)
    ),
}


def standing_for(views: Sequence[Vectors], centre: Vectors | None = None) -> Vectors:
    """The vector whose dot product with another recording's is their score: (views · dim,).

    views: for each view the unit embeddings of its pieces, (pieces, dim)   centre: (dim,), taken from every embedding,
    which is then brought back to unit length.
    """
    means = [np.mean(view if centre is None else unit(view - centre), axis=0) for view in views]
    return np.asarray(np.concatenate(means) / np.sqrt(len(means)), dtype=np.float32)


def unit(rows: Vectors) -> Vectors:
    """Every row at unit length; a row of zeros stays one. rows: (..., dim)."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.maximum(length, 1e-12), dtype=np.float32)


def mean_of_units(vectors: Vectors, views: int = 1) -> Vectors:
    """Several recordings of one speaker as one: their mean, each view of it brought to unit length.

    vectors: (recordings, views · dim), as `standing_for` gives them   returns: (views · dim,)
    """
    means = np.mean(vectors, axis=0).reshape(views, -1)
    return np.asarray(unit(means).reshape(-1) / np.sqrt(views), dtype=np.float32)


def mean_of_scores(vectors: Vectors, views: int = 1) -> Vectors:
    """Several recordings of one speaker as the vector whose score is the mean of their scores."""
    return np.asarray(np.mean(vectors, axis=0), dtype=np.float32)


ENROLMENTS: dict[str, tuple[str, Callable[[Vectors, int], Vectors] | None]] = {  # None: joined before embedding
    "mean": ("mean of the embeddings of each model's recordings", mean_of_units),
    "scores": ("mean of the scores of each model's recordings", mean_of_scores),
    "concatenate": ("one embedding of each model's recordings, joined one after the other", None),
}


def way_named(name: str) -> Way:
    """The way of scoring with this name. Raises BadInput."""
    if name not in WAYS:
        raise BadInput(f"scoring {name!r} is unknown; known: {', '.join(WAYS)}")
    return WAYS[name]
