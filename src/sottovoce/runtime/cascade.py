"""A cascade from its file: a small JSON that names model files, the maps between their scores, and the gates.

The file holds `format` ("sottovoce cascade"), `version`, `threshold`, `stages`, `operating_points` (as in a model's
metadata) and `tuning` (how it was made). A stage: `file`, a path relative to the cascade's folder; its `sha256`; `bits`
of its weights; all but the last have `map` (`knots`, `values`) and `gate` (`low`, `high`, null for never; `below`,
`above`, the bounds on disagreement or null). Version 2, where stages weigh the evidence of those before them: each has
`weights` too, of its own score and theirs, first stage first. A file without weights is written as version 1.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import BadInput, BadModel
from sottovoce.runtime.engine import Model, load
from sottovoce.scores.cascade import SAME, Gate, Map, Weights, check_weights, run

FORMAT, VERSIONS = "sottovoce cascade", (1, 2)  # 2: with weights
LARGEST_FILE = 1 << 24  # bytes


@dataclass(frozen=True)
class Stage:
    """One model of a cascade."""

    model: Model
    bits: float  # of most of its layers' weights
    to_last: Map  # from its scores to the last stage's


@dataclass(frozen=True)
class Verdict:
    """The cascade's score of one pair, and how far it had to go."""

    score: float  # on the last stage's scale
    stage: int  # that answered, from 1
    disagreement: float | None  # at most this share of such answers would be another by the last stage; None: unknown


@dataclass(frozen=True)
class Cascade:
    """A loaded cascade. Nothing in it changes after loading, so one instance serves all threads."""

    path: Path
    id: str  # first 12 hexadecimal digits of the file's sha256
    metadata: Mapping[str, Any]  # the file's content
    stages: tuple[Stage, ...]
    gates: tuple[Gate, ...]
    threshold: float
    weights: tuple[tuple[float, ...], ...] | None = None  # of the evidence of all stages so far; None: each alone

    @property
    def rate(self) -> int:
        """Samples per second that `score` takes."""
        return self.stages[0].model.rate

    @property
    def min_samples(self) -> int:
        """Fewest samples that `score` takes: what the most demanding stage needs."""
        return max(stage.model.min_samples for stage in self.stages)

    @property
    def maps(self) -> list[Map]:
        """One for each stage, to the last one's scale."""
        return [stage.to_last for stage in self.stages]

    def score(self, a: NDArray[np.float32], b: NDArray[np.float32]) -> Verdict:
        """Compare two recordings, (samples,) each: a stage embeds both when none before it has answered.

        Raises as `Model.embed`.
        """

        def by(stage: int, _: object) -> list[float]:
            left, right = (self.stages[stage].model.embed(wave).astype(np.float64) for wave in (a, b))
            return [float(np.dot(left, right))]

        found = run(by, 1, self.maps, self.gates, self.weights)
        score, stage = float(found.scores[0]), int(found.stage[0])
        return Verdict(score, stage + 1, self.disagreement(score, stage))

    def disagreement(self, score: float, stage: int) -> float | None:
        """The bound on answers like this one, by the stage numbered from 0, being another by the last stage."""
        if stage == len(self.gates):
            return 0.0
        gate = self.gates[stage]
        return gate.below if score < gate.low else gate.above


def load_cascade(path: str | Path, engine: str = "onnxruntime", threads: int = 1, check: bool = False) -> Cascade:
    """Load a cascade and all its models; the settings are those of `engine.load`.

    Raises BadModel for a file that is missing, not a cascade or damaged, and for a model that is missing, is not the
    one that the cascade was tuned with, or takes another sample rate than the first.
    """
    place = Path(path)
    raw = _read(place)
    content = _content(place, raw)
    try:
        maps = [*(Map(tuple(one["map"]["knots"]), tuple(one["map"]["values"])) for one in content["stages"][:-1]), SAME]
        gates = tuple(_gate(one["gate"]) for one in content["stages"][:-1])
        bits = [float(one["bits"]) for one in content["stages"]]
        weights = _weights(content)
        files = [place.parent / _relative(place, one["file"]) for one in content["stages"]]
        sums = [str(one["sha256"]) for one in content["stages"]]
        threshold = float(content["threshold"])
        if not math.isfinite(threshold) or not isinstance(content.get("operating_points", {}), dict):
            raise ValueError(f"threshold {threshold} is not a score, or its operating points are not a table")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadModel(
            f"{place}: damaged ({type(error).__name__}: {error}); make it with `sotto cascade tune`"
        ) from None
    for file, wanted in zip(files, sums, strict=True):
        _refuse_changed(place, file, wanted)
    models = [load(file, engine=engine, threads=threads, check=check) for file in files]
    odd = next((model for model in models if model.rate != models[0].rate), None)
    if odd:
        raise BadModel(f"{place}: {odd.path.name} takes {odd.rate} Hz, {models[0].path.name} {models[0].rate}")
    stages = tuple(Stage(*parts) for parts in zip(models, bits, maps, strict=True))
    return Cascade(place, hashlib.sha256(raw).hexdigest()[:12], content, stages, gates, threshold, weights)


def save_cascade(
    path: str | Path,
    files: Sequence[str | Path],
    bits: Sequence[float],
    maps: Sequence[Map],
    gates: Sequence[Gate],
    threshold: float,
    more: Mapping[str, Any],
    weights: Weights | None = None,
) -> None:
    """Write a cascade of model files; their paths are stored relative to its folder, so that both move together.

    bits, maps: one a file   gates: one a file but the last   more: further entries, plain values   weights: as of
    `scores.cascade.run`
    """
    place = Path(path)
    stages: list[dict[str, Any]] = []
    for file, width, to_last, gate in zip(files, bits, maps, [*gates, None], strict=True):
        relative = Path(os.path.relpath(Path(file).resolve(), place.parent.resolve())).as_posix()
        stage: dict[str, Any] = {"file": relative, "sha256": _digest(Path(file)), "bits": width}
        if gate is not None:
            low, high = (edge if math.isfinite(edge) else None for edge in (gate.low, gate.high))
            stage["gate"] = {"low": low, "high": high, "below": gate.below, "above": gate.above}
            stage["map"] = {"knots": list(to_last.knots), "values": list(to_last.values)}
        if weights is not None:
            stage["weights"] = list(weights[len(stages)])
        stages.append(stage)
    version = VERSIONS[0] if weights is None else VERSIONS[1]
    content = {"format": FORMAT, "version": version, "threshold": threshold, "stages": stages, **more}
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(part, place)
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise BadModel(f"{path}: there is no such cascade; check the path")
    if path.stat().st_size > LARGEST_FILE:
        raise BadModel(f"{path}: {path.stat().st_size} bytes; a cascade's file is small, this is something else")
    return path.read_bytes()


def _content(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadModel(f"{path}: not JSON, so not a cascade; make one with `sotto cascade tune`") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BadModel(f"{path}: not a cascade; make one with `sotto cascade tune`")
    if content.get("version") not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise BadModel(f"{path}: version {content.get('version')!r}, this sottovoce reads {known}; update the older")
    stages = content.get("stages")
    if not isinstance(stages, list) or len(stages) < 2:
        raise BadModel(f"{path}: a cascade has two stages or more; make it with `sotto cascade tune`")
    return content


def _gate(entry: Mapping[str, Any]) -> Gate:
    low, high = entry["low"], entry["high"]
    below, above = (None if entry[name] is None else float(entry[name]) for name in ("below", "above"))
    return Gate(-math.inf if low is None else float(low), math.inf if high is None else float(high), below, above)


def _weights(content: Mapping[str, Any]) -> tuple[tuple[float, ...], ...] | None:
    if content["version"] == VERSIONS[0]:
        return None
    return tuple(check_weights([one["weights"] for one in content["stages"]], len(content["stages"])))


def _relative(path: Path, name: str) -> PurePosixPath:
    relative = PurePosixPath(name)
    if relative.is_absolute() or "\0" in name or "\\" in name or ":" in name:
        raise BadInput(f"stage {name!r} must be a path relative to the cascade's folder")
    return relative


def _refuse_changed(path: Path, file: Path, wanted: str) -> None:
    if not file.is_file():
        raise BadModel(f"{path}: its stage {file} is not there; put it back, or tune the cascade again")
    found = _digest(file)
    if found != wanted:
        raise BadModel(
            f"{path}: its stage {file} is {found[:12]}, the cascade was tuned with {wanted[:12]}; "
            "put that file back, or tune the cascade again"
        )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
