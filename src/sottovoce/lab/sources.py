"""Files that a report is made from, each recognised by what is in it, never by its name.

Results in JSON, scores of `sotto evaluate --scores` and run folders of `sotto train`. Models and recordings are never
opened here.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sottovoce.errors import BadFile, BadInput
from sottovoce.lab.scored import Scored, read_scores

MOST_BYTES = 1 << 28  # of a file of results; a larger one is no result of ours

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """One file: `content` holds what its JSON says, `scored` the lists of scores, `steps` the log of a run."""

    name: str
    kind: str
    sha256: str
    content: Json
    scored: tuple[Scored, ...] = ()
    steps: tuple[Json, ...] = ()


class Found:
    """The sources of a report, by kind."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)

    def of(self, *kinds: str) -> list[Source]:
        """Sources of these kinds, in the order in which they were given."""
        return [source for source in self.sources if source.kind in kinds]


def _keys(*names: str) -> Callable[[Json], bool]:
    return lambda content: set(names) <= content.keys()


def _rows(of: str, *names: str) -> Callable[[Json], bool]:
    """Whether the content has a list by that name whose first entry has these keys."""
    return lambda content: set(names) <= _first(content.get(of)).keys()


def _first(rows: Any) -> Json:
    there = isinstance(rows, list) and rows and isinstance(rows[0], Mapping)
    return rows[0] if there else {}


def _first_value(named: Any) -> Json:
    values = list(named.values()) if isinstance(named, Mapping) else []
    return values[0] if values and isinstance(values[0], Mapping) else {}


def _one_list(content: Json) -> bool:
    return {"list", "eer", "min_dcf"} <= content.keys()


# The first that fits decides: name → what is looked for, what writes it.
KINDS: dict[str, tuple[Callable[[Json], bool], str]] = {
    "drift": (_keys("models", "lists", "means", "knee"), "sotto drift --json"),
    "probe": (lambda one: "labels" in one and _rows("models", "probes")(one), "sotto probe --json"),
    "analysis": (_keys("layers", "stages", "whole", "correlations"), "sotto analyze --json"),
    "cascade": (_keys("stages", "cost", "lists", "all"), "sotto cascade run --json"),
    "tuning": (_keys("gates", "eer_of_stages", "stopped"), "sotto cascade tune --json"),
    "cascades": (_rows("rows", "cascade", "tuned", "measured"), "benchmarks/cascade.py"),
    "comparison": (_rows("models", "name", "lists", "mean_eer"), "benchmarks/real.py, benchmarks/quantizers.py"),
    "inspection": (_keys("layers", "float_layers", "bit_operations"), "sotto inspect --json"),
    "allocation": (_keys("layers", "predicted_damage", "plan"), "sotto allocate --json"),
    "sensitivity": (_keys("settings", "values", "rank"), "sotto allocate --out PLAN (PLAN.sensitivity.json)"),
    "sweep": (lambda one: "settings" in one and _rows("sets", "groups", "bytes")(one), "sotto sweep --out"),
    "evaluation": (
        lambda one: _one_list(one) or _rows("lists", "list", "eer", "min_dcf")(one),
        "sotto evaluate --json",
    ),
    "calibration": (_keys("calibration", "operating_points"), "sotto calibrate --json"),
    "calibrations": (lambda one: "pooled" in _first_value(one.get("models")), "benchmarks/calibration.py"),
    "contract": (_rows("rows", "network", "packed_bytes", "limit_bytes"), "benchmarks/file_contract.py"),
    "timing": (_rows("rows", "name", "seconds", "median_ms"), "sotto bench --json"),
    "timings": (lambda one: "rows" in _first_value(one.get("networks")), "benchmarks/peers.py"),
    "demo": (_rows("rows", "weights", "size_ratio"), "sotto demo --json"),
    "compression": (_keys("cosine_to_checkpoint", "plan", "bytes"), "sotto compress --json"),
    "measurement": (
        lambda one: _keys("command", "machine", "versions")(one) or bool(_first(one.get("rows"))),
        "the other scripts of benchmarks/",
    ),
}
SCORES, RUN = "sotto evaluate --scores FILE.npz", "a run folder of sotto train, with its log.jsonl"


def read_sources(paths: Sequence[str | Path]) -> Found:
    """Read everything that a report is to show. Raises BadFile for what is not recognised, BadInput for nothing."""
    if not paths:
        raise BadInput("a report needs results: name JSON files, scores or run folders")
    return Found([_read(Path(path)) for path in paths])


def _read(path: Path) -> Source:
    if path.is_dir():
        return _run(path)
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= MOST_BYTES else b""
    except OSError as error:
        raise BadFile(f"{path}: cannot be read ({error.strerror}); check the path") from None
    digest = hashlib.sha256(content).hexdigest()
    if zipfile.is_zipfile(path):
        lists, about = read_scores(path)
        return Source(path.name, "scores", digest, about, scored=tuple(lists))
    return Source(path.name, *_recognised(path, content, digest))


def _recognised(path: Path, content: bytes, digest: str) -> tuple[str, str, Json]:
    """The kind, hash and content of a JSON file."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise BadFile(f"{path}: is neither JSON nor scores; a report reads {known()}") from None
    if isinstance(found, Mapping):
        for kind, (fits, _) in KINDS.items():
            if fits(found):
                return kind, digest, found
    raise BadFile(f"{path}: is JSON, but no result that a report knows; it reads {known()}")


def _run(folder: Path) -> Source:
    log = folder / "log.jsonl"
    try:
        text = log.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise BadFile(f"{folder}: a folder without log.jsonl; a report reads {known()}") from None
    steps = tuple(_steps(text))
    if not steps:
        raise BadFile(f"{log}: holds no step of a training with its loss; train first")
    try:
        recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        recipe = {}
    about = recipe if isinstance(recipe, Mapping) else {}
    return Source(folder.resolve().name, "run", hashlib.sha256(text.encode()).hexdigest(), about, steps=steps)


def _steps(text: str) -> Iterator[Json]:
    """Lines of a log that can be read; the last one of a running training may be cut off."""
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, Mapping) and isinstance(entry.get("loss"), (int, float)) and "step" in entry:
            yield entry


def known() -> str:
    """What a report can be made from, in words."""
    return "; ".join([SCORES, RUN, *(f"{kind}: {made}" for kind, (_, made) in KINDS.items())])
