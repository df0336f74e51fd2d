"""8 bits in one group of layers at a time: what each costs and saves, and the smallest file within a loss of EER.

The framework of Hong, Chung and Kang (arXiv 2407.08991): weights in 8 bits per output channel by their maximum,
activations in 8 bits per tensor over all that was observed, all other layers in float. Activations are observed on
training recordings. How groups are chosen is not published; here, our reading: by loss of EER per byte saved, and every
set of groups is measured again as a written file.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from sottovoce import export as writer
from sottovoce import quant
from sottovoce.audio.features import preset
from sottovoce.audio.wav import read
from sottovoce.errors import BadAudio, BadInput, BadList
from sottovoce.lab import checkpoint as checkpoints
from sottovoce.lab.bench import machine, versions
from sottovoce.lab.compress import LONGEST_S, RATE, recordings
from sottovoce.lab.evaluate import embed_names, measure, readable
from sottovoce.lab.groups import Group, parse_groups, plan_of, stages
from sottovoce.lab.lists import Trials, locate
from sottovoce.lab.run import write_text
from sottovoce.runtime.engine import load as load_model

PRIOR = "0.05"  # of a target trial, for minDCF: the one in the code of the paper's first author

Wave = NDArray[np.float32]
Row = dict[str, Any]  # one measured set of groups
Names = tuple[str, ...]  # of the groups of a set, in the order of the network


def sweep(
    checkpoint: str | Path,
    *,
    data: str | Path,
    trials: Sequence[str | Path],
    audio: str | Path,
    out: str | Path,
    groups: str | None = None,
    max_eer_loss: float = 0.0007,
    utterances: int = 100,
    draws: int = 1000,
    seed: int = 0,
    quiet: bool = False,
    command: str = "",
) -> dict[str, Any]:
    """Measure every group alone, then add groups greedily; returns the report, which `out` (JSON) also holds.

    data: folder or manifest of training recordings that ranges are observed on.   trials, audio: lists and their root;
    EER is the mean over lists, a fraction.   groups: as `parse_groups`; None = the stages of the network.
    max_eer_loss: absolute, a fraction.   draws: of the bootstrap, 0 = no intervals.   A measured set stays in `out`, so
    that a stopped sweep goes on; an `out` of other settings is refused.   command: for the report. Raises BadPlan,
    BadInput, BadList, BadCheckpoint before any work.
    """
    loaded = checkpoints.load(checkpoint)
    if loaded.plan:
        raise BadInput(f"{checkpoint}: has plan {loaded.plan!r}; a sweep starts from a float checkpoint")
    if not trials or max_eer_loss < 0:
        raise BadInput("a sweep needs at least one trial list and a loss of EER of at least 0")
    layers = quant.quantizable(loaded.network)
    chosen = parse_groups(groups, layers) if groups else stages(loaded.network)
    bench = _Bench(loaded, [readable(Path(path)) for path in trials], Path(audio), draws, quiet)
    paths = _apart(recordings(data), bench)
    settings = {
        "checkpoint_sha256": hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest(),
        "lists_sha256": [one.sha256 for one in bench.lists],
        "observed_on": Path(data).name,
        "observed_sha256": _digest(paths, Path(data)),
        "groups": {group.name: list(group.layers) for group in chosen},
        "utterances": utterances,
        "draws": draws,
        "seed": seed,
    }
    known = _measured_before(Path(out), settings)
    bench.waves = _read(paths, utterances, seed, bench.min_samples, quiet)
    report: dict[str, Any] = {"complete": False, "settings": settings, "sets": list(known.values())}

    def measured(names: Names) -> Row:
        if names not in known:
            known[names] = bench.measure([group for group in chosen if group.name in names], Path(out))
            write_text(Path(out), json.dumps({**report, "sets": list(known.values())}, indent=1) + "\n")
        return known[names]

    steps = greedy(chosen, measured, max_eer_loss)
    report = {
        "what": "8-bit weights and activations in groups of layers, the rest float; every set measured as a file",
        "command": command,
        "machine": machine(),
        "versions": versions(),
        "complete": True,
        "checkpoint": str(checkpoint),
        "lists": [one.name for one in bench.lists],
        "max_eer_loss": max_eer_loss,
        "settings": settings,
        **summary(chosen, known, steps, max_eer_loss, {name: int(np.prod(shape)) for name, shape in layers.items()}),
        "sets": list(known.values()),
    }
    write_text(Path(out), json.dumps(report, indent=1) + "\n")
    return report


def greedy(groups: Sequence[Group], measured: Callable[[Names], Row], max_eer_loss: float) -> list[dict[str, Any]]:
    """Add groups to a set, the least loss of EER per byte saved first, and keep each that stays within the loss.

    measured: the row of a set of names, in the order of `groups`.   returns: what each step tried. A group is tried
    once; ties go to the larger saving, then to the earlier group.
    """
    float_row = measured(())
    alone = {group.name: measured((group.name,)) for group in groups}
    measured(tuple(group.name for group in groups))  # all of them: the other end of the curve
    rank = [group.name for group in groups if alone[group.name]["bytes"] < float_row["bytes"]]
    rank.sort(key=lambda name: (_price(alone[name], float_row), alone[name]["bytes"]))
    kept: set[str] = set()
    steps = []
    for name in rank:
        row = measured(tuple(group.name for group in groups if group.name in kept | {name}))
        fits = row["mean_eer"] - float_row["mean_eer"] <= max_eer_loss + 1e-12
        kept |= {name} if fits else set()
        steps.append({"tried": name, "groups": row["groups"], "kept": fits})
    return steps


def pareto(rows: Iterable[Row]) -> list[Row]:
    """Rows that no other beats in bytes and EER, the smallest file first."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["bytes"], row["mean_eer"])):
        if not front or row["mean_eer"] < front[-1]["mean_eer"]:
            front.append(row)
    return front


def summary(
    groups: Sequence[Group], rows: dict[Names, Row], steps: list[Row], max_eer_loss: float, weights: dict[str, int]
) -> dict[str, Any]:
    """The table per group, the greedy steps, the Pareto curve, and the smallest file within the loss of EER.

    weights: number of weights by layer.
    """
    base, total = rows[()], sum(weights.values())

    def against(row: Row) -> Row:
        return {
            "groups": row["groups"],
            "bytes": row["bytes"],
            "bytes_saved": base["bytes"] - row["bytes"],
            "share_saved": 1 - row["bytes"] / base["bytes"],
            "eer": row["mean_eer"],
            "eer_change": row["mean_eer"] - base["mean_eer"],
            "min_dcf_change": row["mean_min_dcf"][PRIOR] - base["mean_min_dcf"][PRIOR],
            "cosine": row["cosine"],
        }

    table = []
    for group in groups:
        count = sum(weights[layer] for layer in group.layers)
        table.append({"group": group.name, "weights": count, "share": count / total, **against(rows[(group.name,)])})
    within = [row for row in rows.values() if row["mean_eer"] - base["mean_eer"] <= max_eer_loss + 1e-12]
    best = min(within, key=lambda row: (row["bytes"], row["mean_eer"]))
    return {
        "float": against(base),
        "table": table,
        "steps": [{**step, **against(rows[tuple(step["groups"])])} for step in steps],
        "pareto": [against(row) for row in pareto(rows.values())],
        "chosen": {**against(best), "plan": best["plan"]},
    }


class _Bench:
    """Writes a file for a set of groups and measures it; remembers the embeddings of the float file."""

    def __init__(
        self, loaded: checkpoints.Checkpoint, lists: list[Trials], root: Path, draws: int, quiet: bool
    ) -> None:
        self.network, self.path, self.lists, self.root = loaded.network, loaded.path, lists, root
        self.front_end = preset(loaded.about["front_end"])
        self.min_samples = self.front_end.samples(int(loaded.network.min_frames))  # type: ignore[arg-type]
        self.draws, self.quiet = draws, quiet
        self.names = list(dict.fromkeys(name for one in lists for name in one.utterances))
        self.waves: list[Wave] = []
        self._float: dict[str, Wave] = {}

    def measure(self, groups: Sequence[Group], beside: Path) -> Row:
        """bytes, EER, minDCF of the file in which these groups have 8 bits, and the mean cosine to the float file."""
        began = time.monotonic()
        label = "+".join(group.name for group in groups) or "float"
        found, size = self._embedded(groups, beside, label)
        if not groups:
            self._float = found
        elif not self._float:
            self._float, _ = self._embedded([], beside, "float")
        lists = [measure(one, found, draws=self.draws) for one in self.lists]
        return {
            "groups": [group.name for group in groups],
            "plan": str(plan_of(groups)),
            "bytes": size,
            "mean_eer": float(np.mean([one["eer"] for one in lists])),
            "mean_min_dcf": {
                prior: float(np.mean([one["min_dcf"][prior] for one in lists])) for prior in lists[0]["min_dcf"]
            },
            "cosine": float(np.mean([float(found[name] @ self._float[name]) for name in self._float if name in found])),
            "lists": [{key: value for key, value in one.items() if key != "excluded"} for one in lists],
            "excluded": sum(len(one["excluded"]) for one in lists),
            "seconds": round(time.monotonic() - began, 1),
        }

    def _embedded(self, groups: Sequence[Group], beside: Path, label: str) -> tuple[dict[str, Wave], int]:
        """Embedding of every recording of the lists by the written file, and the bytes of that file."""
        part = beside.with_name(f".{beside.name}.{os.getpid()}.onnx")
        try:
            writer.save(self._model(groups), part)
            size = part.stat().st_size
            if not self.quiet:
                print(f"{label}: {size:,} bytes", file=sys.stderr)
            return embed_names(load_model(part), self.names, self.root, quiet=self.quiet)[0], size
        finally:
            part.unlink(missing_ok=True)

    def _model(self, groups: Sequence[Group]) -> Any:
        network = checkpoints.load(self.path).network
        quant.positive_gains(network, torch.zeros(2, self.front_end.rows, 64))
        quant.attach(network, plan_of(groups))
        coded = quant.coded(network)
        quant.detach(network)
        about = {"plan": str(plan_of(groups))}
        return writer.build(
            network.eval(), self.front_end, coded, self.waves, metadata=about, ranges="minmax", centred=False
        )


def _price(row: Row, base: Row) -> float:
    """Loss of EER per byte saved."""
    return float((row["mean_eer"] - base["mean_eer"]) / (base["bytes"] - row["bytes"]))


def _apart(paths: list[Path], bench: _Bench) -> list[Path]:
    """The recordings to observe, none of which may be a recording of the lists."""
    tested = {locate(bench.root, name).resolve() for name in bench.names}
    shared = next((path for path in paths if path.resolve() in tested), None)
    if shared is not None:
        raise BadInput(f"{shared}: is in a trial list; observe ranges on training recordings, never on test ones")
    return paths


def _digest(paths: list[Path], data: Path) -> str:
    """Hash of the names of the recordings, wherever their folder is."""
    root = data if data.is_dir() else data.parent
    return hashlib.sha256("\n".join(os.path.relpath(path, root) for path in paths).encode()).hexdigest()


def _measured_before(out: Path, settings: dict[str, Any]) -> dict[Names, Row]:
    """Sets that an earlier sweep of the same settings has measured."""
    if not out.resolve().parent.is_dir():
        raise BadInput(f"{out}: the folder {out.resolve().parent} does not exist; make it first")
    if not out.exists():
        return {}
    try:
        before = json.loads(out.read_text(encoding="utf-8"))
        kept, rows = before["settings"], before["sets"]
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{out}: exists and is not a sweep; name another file") from None
    other = next((key for key in settings if kept.get(key) != settings[key]), None)
    if other is not None:
        raise BadInput(f"{out}: holds a sweep with another {other}; name another file, or remove it")
    return {tuple(row["groups"]): row for row in rows}


def _read(paths: list[Path], utterances: int, seed: int, min_samples: int, quiet: bool) -> list[Wave]:
    """Recordings drawn by seed, (samples,) each; unusable ones are reported and passed over."""
    order = np.random.default_rng([seed, 2]).permutation(len(paths))[: 2 * utterances]
    waves: list[Wave] = []
    with click.progressbar(order, label="reading recordings", file=sys.stderr, hidden=quiet) as bar:
        for index in bar:
            if len(waves) == utterances:
                continue
            try:
                waves.append(read(paths[index], RATE, min_samples)[: int(LONGEST_S * RATE)])
            except BadAudio as error:
                print(f"passed over: {error}", file=sys.stderr)
    if not waves:
        raise BadList(f"none of {len(paths)} recordings to observe can be used; the first: {paths[0]}")
    return waves
