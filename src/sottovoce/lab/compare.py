"""Several files on the same trial lists: rates, and differences between files with intervals of their own.

Two files make mostly the same errors on the same speakers, so the interval of a difference is far narrower than what
the intervals of the two rates suggest. Speakers are drawn once for all files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import BadInput
from sottovoce.lab.evaluate import Embeddings, embed_names, identity, measure, readable, trial_scores
from sottovoce.lab.lists import Trials, speakers_of
from sottovoce.lab.scoring import Scoring
from sottovoce.runtime.engine import Model, load
from sottovoce.scores.metrics import equal_error, redrawn


def compare(
    files: Mapping[str, str | Path],
    lists: Sequence[str | Path],
    root: str | Path,
    *,
    pairs: Sequence[tuple[str, str]] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
    draws: int = 1000,
    seed: int = 0,
    workers: int = 1,
) -> dict[str, list[dict[str, Any]]]:
    """Measure every file on every list; the first file is what the others are compared with.

    returns: `models`, for each file its name, bytes, plan, figures per list (as `evaluate`), mean_eer over the lists
    with a 95 % interval, mean_min_dcf, and against the first file: relative_eer with its interval (bootstrap over
    speakers, the same draws for both) and the mean cosine between embeddings; `groups`, for each group of files, such
    as one method under several seeds, the mean of its files in the same figures; `pairs`, for each pair of names asked
    for, files or groups, relative_eer of the first against the second, with its interval. Raises BadInput, BadList.
    """
    if not files:
        raise BadInput("compare: no file given")
    grouped = {name: list(members) for name, members in (groups or {}).items()}
    _check_names(files, grouped, pairs)
    loaded = [readable(Path(path)) for path in lists]
    names = list(dict.fromkeys(name for trials in loaded for name in trials.utterances))
    models = {name: load(path) for name, path in files.items()}
    embedded = {name: embed_names(model, names, root, workers=workers)[0] for name, model in models.items()}
    means = mean_draws(list(embedded.values()), loaded, draws, seed)
    first = next(iter(embedded.values()))
    rates: dict[str, Rates] = {}
    found: list[dict[str, Any]] = []
    for index, (name, known) in enumerate(embedded.items()):
        measured = [measure(trials, known, draws=draws, seed=seed) for trials in loaded]
        rates[name] = Rates(float(np.mean([one["eer"] for one in measured])), means[:, index])
        cosine = float(np.mean([float(first[key] @ known[key]) for key in first]))
        told = {
            "lists": measured,
            **rates[name].told(),
            "mean_min_dcf": float(np.mean([one["min_dcf"]["0.01"] for one in measured])),
            **rates[name].against(rates[next(iter(files))]),
            "cosine_to_first": cosine,
        }
        found.append({"name": name, **_described(models[name], Path(files[name])), **told})
    base = rates[next(iter(files))]
    for name, members in grouped.items():
        rates[name] = Rates.mean([rates[member] for member in members])
    together = [
        {"name": name, "files": members, **rates[name].told(), **rates[name].against(base)}
        for name, members in grouped.items()
    ]
    against = [{"name": name, "against": other, **rates[name].against(rates[other])} for name, other in pairs]
    return {"models": found, "groups": together, "pairs": against}


@dataclass(frozen=True)
class Rates:
    """Mean EER over the lists of a file or of a group of files, and in every draw of speakers."""

    eer: float
    draws: NDArray[np.float64]  # (draws,)

    @classmethod
    def mean(cls, parts: Sequence[Rates]) -> Rates:
        """Of several files, draw by draw."""
        drawn = np.mean([part.draws for part in parts], axis=0)
        return cls(float(np.mean([part.eer for part in parts])), drawn)

    def told(self) -> dict[str, Any]:
        """The rate and its 95 % interval."""
        return {"mean_eer": self.eer, "mean_eer_interval": percentiles(self.draws)}

    def against(self, other: Rates) -> dict[str, Any]:
        """The relative difference to another's under the same draws, and its interval."""
        return {
            "relative_eer": self.eer / other.eer - 1,
            "relative_eer_interval": percentiles(self.draws / other.draws - 1),
        }


def _described(model: Model, path: Path) -> dict[str, Any]:
    """What a result says of a file beside its rates."""
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "plan": model.metadata.get("plan"),
        "recipe_sha256": model.metadata.get("provenance", {}).get("recipe_sha256"),
        **identity(model),
        **Scoring().says(),
    }


def _check_names(
    files: Mapping[str, str | Path], groups: Mapping[str, Sequence[str]], pairs: Sequence[tuple[str, str]]
) -> None:
    """Raises BadInput for a name that no file or group has, a group of nothing, a group named as a file."""
    known = [*files, *groups]
    if len(set(known)) < len(known) or not all(groups.values()):
        raise BadInput("compare: a group has the name of a file, or no files; name groups apart and fill them")
    asked = [name for members in groups.values() for name in members if name not in files]
    asked += [name for pair in pairs for name in pair if name not in known]
    if asked:
        raise BadInput(f"compare: no file is named {asked[0]!r}; known: {', '.join(known)}")


def mean_draws(
    embedded: Sequence[Mapping[str, Embeddings]], lists: Sequence[Trials], draws: int, seed: int
) -> NDArray[np.float64]:
    """Mean EER over the lists of every file in every draw of speakers: (draws, files); draws that lost a class of
    some list are left out. Lists of the same speakers share their draws, as errors on them are no news of other people;
    those of different speakers are drawn apart."""
    rates = []
    numbers: dict[frozenset[str], int] = {}
    for trials in lists:
        number = numbers.setdefault(frozenset(speakers_of(trials).values()), len(numbers))
        scored = [trial_scores(trials, known) for known in embedded]
        labels, enrol, test = scored[0][1:]
        systems = [one[0] for one in scored]
        rates.append(redrawn(systems, labels, enrol, test, [equal_error], draws, seed + number)[:, :, 0])
    mean = np.mean(rates, axis=0)
    kept = mean[~np.isnan(mean).any(axis=1)]
    if not len(kept):
        raise BadInput(f"bootstrap: none of {draws} draws has targets and nontargets in every list")
    return np.asarray(kept)


def percentiles(values: NDArray[np.float64]) -> list[float]:
    """The middle 95 % of values."""
    return [float(edge) for edge in np.percentile(values, [2.5, 97.5])]
