"""What an embedding still knows beside the speaker: a small classifier on frozen embeddings, speakers kept apart.

The probe of arXiv 2210.17326, section 4: two fully connected layers with a ReLU between them, here trained and tested
in folds that share no speaker. Labels are columns of a manifest, or parts of its paths. Several files on the same
folds give the table accuracy × bits.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sottovoce.errors import BadInput
from sottovoce.lab.bench import machine, versions
from sottovoce.lab.compare import percentiles
from sottovoce.lab.drift import check_out, describe_model
from sottovoce.lab.evaluate import embed_files
from sottovoce.lab.labels import Labelled, LabelSpec, check_folds, folds_of, labelled
from sottovoce.lab.run import write_text
from sottovoce.runtime.engine import Model, load
from sottovoce.scores.drift import redrawn_sums

WHAT = (
    "what frozen embeddings know: a classifier of two layers with a ReLU, trained and tested in folds that share no "
    "speaker; accuracy and balanced accuracy (mean recall over classes) are fractions, over all folds together"
)


@dataclass(frozen=True)
class Probe:
    """How the classifier is made and trained: steps of AdamW on batches drawn by seed, every recording in its turn."""

    hidden: int = 128
    steps: int = 400
    batch: int = 128
    rate: float = 3e-3
    decay: float = 1e-2  # of the weights, decoupled (AdamW)
    folds: int = 5
    seed: int = 0


def probe(
    files: Sequence[str | Path],
    manifest: str | Path,
    labels: Sequence[LabelSpec],
    root: str | Path | None = None,
    *,
    speaker_column: str | None = None,
    drop_small: bool = False,
    settings: Probe | None = None,
    draws: int = 1000,
    workers: int = 1,
    engine: str = "onnxruntime",
    out: str | Path | None = None,
    command: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Probe every file for every label; returns the report, which `out` (JSON) also holds.

    manifest: a table, or a folder of recordings.   root: what its paths start from; None = its own folder.
    speaker_column: what is kept apart between folds, another column than the speaker's.   drop_small: leave classes of
    fewer speakers than folds out instead of refusing them.   draws: of the bootstrap over speakers.
    Raises BadInput and BadList for labels that cannot be probed, before any recording is read.
    """
    how = settings or Probe()
    check_out(out)
    if not files:
        raise BadInput("a probe needs at least one model file")
    tables = [labelled(manifest, spec, speaker_column) for spec in labels]
    tables = [check_folds(table, how.folds, drop_small) for table in tables]
    for table in tables:
        folds_of(table, how.folds, how.seed)  # a fold that would stay empty is named before anything is embedded
    models = [load(path, engine=engine) for path in files]
    places = Path(root) if root is not None else Path(manifest) if Path(manifest).is_dir() else Path(manifest).parent
    paths = list(dict.fromkeys(path for table in tables for path in table.paths))
    embedded, excluded = _embedded(models, paths, places, workers, quiet)
    tables = [check_folds(table.only(embedded[0].keys()), how.folds, drop_small) for table in tables]
    folded = [folds_of(table, how.folds, how.seed) for table in tables]
    rows: list[list[dict[str, Any]]] = [[] for _ in models]
    with click.progressbar(
        length=len(tables) * len(models), label="labels × files", file=sys.stderr, hidden=quiet
    ) as b:
        for table, folds in zip(tables, folded, strict=True):
            right: list[NDArray[np.bool_]] = []
            for place, known in enumerate(embedded):
                x = np.stack([known[path] for path in table.paths])
                predicted = predict(x, table.classes_of, folds, how)
                right.append(predicted == table.classes_of)
                rows[place].append(_figures(table, predicted, right, folds, draws, how.seed))
                b.update(1)
    report = {
        "what": WHAT,
        "command": command,
        "machine": machine(),
        "versions": versions(),
        "settings": {**asdict(how), "draws": draws},
        "labels": [table.about() for table in tables],
        "excluded": excluded,
        "models": [{**describe_model(model), "probes": row} for model, row in zip(models, rows, strict=True)],
    }
    if out is not None:
        write_text(Path(out), json.dumps(report, indent=1) + "\n")
    return report


def predict(
    embeddings: NDArray[np.float32], classes: NDArray[np.int64], folds: NDArray[np.int64], how: Probe
) -> NDArray[np.int64]:
    """The class of every recording by a classifier that was trained on all other folds.

    embeddings: (n, dim)   classes, folds: (n,) numbers from 0   returns: (n,). One seed gives the same twice.
    """
    x, y = torch.from_numpy(np.ascontiguousarray(embeddings)).float(), torch.from_numpy(classes)
    predicted = np.empty(len(classes), dtype=np.int64)
    for fold in range(int(folds.max()) + 1):
        inside = torch.from_numpy(folds == fold)
        network = train(x[~inside], y[~inside], int(classes.max()) + 1, how, fold)
        with torch.no_grad():
            predicted[folds == fold] = network(x[inside]).argmax(dim=1).numpy()
    return predicted


def train(x: Tensor, y: Tensor, classes: int, how: Probe, fold: int = 0) -> nn.Module:
    """A classifier (batch, dim) → (batch, classes), learned on x (n, dim) and y (n,); it standardises as x needs."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(how.seed * 1009 + fold)
        layers = nn.Sequential(nn.Linear(x.shape[1], how.hidden), nn.ReLU(), nn.Linear(how.hidden, classes))
        optimiser = torch.optim.AdamW(layers.parameters(), lr=how.rate, weight_decay=how.decay)
        mean, std = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
        unit = (x - mean) / std
        passes = -(-how.steps * how.batch // len(x))
        order = torch.cat([torch.randperm(len(x)) for _ in range(passes)])
        for batch in order.split(how.batch)[: how.steps]:
            optimiser.zero_grad()
            nn.functional.cross_entropy(layers(unit[batch]), y[batch]).backward()
            optimiser.step()
    return nn.Sequential(_Standard(mean, std), layers.eval())


class _Standard(nn.Module):
    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def _embedded(
    models: Sequence[Model], paths: Sequence[str], root: Path, workers: int, quiet: bool
) -> tuple[list[dict[str, NDArray[np.float32]]], list[dict[str, str]]]:
    """Embeddings by every model of the recordings that all can use, by path of the manifest, and the others' errors."""
    at = {str(root / path): path for path in paths}
    found, failed = [], dict[str, str]()
    for model in models:
        kept, table, errors = embed_files(model, list(at), workers, quiet=quiet)
        found.append({at[place]: row for place, row in zip(kept, table, strict=True)})
        failed.update({at[one["path"]]: one["error"] for one in errors})
    usable = [{path: row for path, row in one.items() if path not in failed} for one in found]
    if not usable[0]:
        raise BadInput(
            f"{root}: none of the {len(paths)} recordings can be used; the first: {next(iter(failed.values()))}"
        )
    return usable, [{"path": path, "error": error} for path, error in failed.items()]


def _figures(
    table: Labelled,
    predicted: NDArray[np.int64],
    right: Sequence[NDArray[np.bool_]],
    folds: NDArray[np.int64],
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """Accuracy of the last file of `right`, with intervals, and its change to the first; every fold's and confusion."""
    truth, count = table.classes_of, len(table.classes)
    now, first = accuracies(right[-1], truth), accuracies(right[0], truth)
    bounds: dict[str, Any] = {"accuracy": None, "balanced": None, "change": None}
    if draws:
        drawn, before = (_redrawn(one, table, draws, seed) for one in (right[-1], right[0]))
        bounds = {
            "accuracy": percentiles(drawn[:, 0]),
            "balanced": percentiles(drawn[:, 1]),
            "change": percentiles(drawn[:, 1] - before[:, 1]),
        }
    confusion = np.zeros((count, count), dtype=np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    return {
        "label": table.name,
        "accuracy": now[0],
        "accuracy_interval": bounds["accuracy"],
        "balanced_accuracy": now[1],
        "balanced_accuracy_interval": bounds["balanced"],
        "balanced_change": now[1] - first[1],
        "balanced_change_interval": bounds["change"],
        "folds": [_fold(table, right[-1], folds == fold) for fold in range(int(folds.max()) + 1)],
        "confusion": confusion.tolist(),
    }


def _fold(table: Labelled, right: NDArray[np.bool_], inside: NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "recordings": int(inside.sum()),
        "speakers": len(np.unique(np.array(table.speakers)[inside])),
        "accuracy": float(right[inside].mean()),
    }


def accuracies(right: NDArray[np.bool_], truth: NDArray[np.int64]) -> tuple[float, float]:
    """Share of recordings that are right, and the mean over classes of that share."""
    return float(right.mean()), float(np.mean([right[truth == one].mean() for one in np.unique(truth)]))


def _redrawn(right: NDArray[np.bool_], table: Labelled, draws: int, seed: int) -> NDArray[np.float64]:
    """Both accuracies in every draw of speakers: (draws, 2); a class that a draw lost is left out of its mean."""
    truth, count = table.classes_of, len(table.classes)
    marks = np.stack([truth == one for one in range(count)]).astype(np.float64)
    rows = np.concatenate([marks, marks * right])
    _, of = np.unique(table.speakers, return_inverse=True)
    sums = redrawn_sums(rows, of, of, draws, seed)
    there, hits = sums[:, :count], sums[:, count:]
    recalls = np.divide(hits, there, out=np.full_like(hits, np.nan), where=there > 0)
    return np.stack([hits.sum(axis=1) / there.sum(axis=1), np.nanmean(recalls, axis=1)], axis=1)


def chosen_labels(
    names: Sequence[str], bins: Mapping[str, Sequence[float]], parts: Mapping[str, int]
) -> list[LabelSpec]:
    """Labels by name with the bins or the part of the path that each has. Raises BadInput for options of no label."""
    stray = [name for name in (*bins, *parts) if name not in names]
    if stray:
        raise BadInput(f"{stray[0]!r} has bins or a part of the path, but is no label; add --labels {stray[0]}")
    if not names or len(set(names)) < len(names):
        raise BadInput("name at least one label, each once: --labels gender")
    return [LabelSpec(name, tuple(bins.get(name, ())), parts.get(name)) for name in names]
