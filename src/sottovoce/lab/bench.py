"""How fast is a file on this machine, beside its peers, in the same run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.audio.features import FrontEndConfig
from sottovoce.audio.talker import talker
from sottovoce.errors import BadInput, BadModel
from sottovoce.lab.footprint import measured
from sottovoce.lab.peers import BATCH, MODEL, Peer, batches, open_file, open_peer, peers_of
from sottovoce.runtime.engine import SHIPPED, load

if TYPE_CHECKING:
    from torch import nn

BUDGET_S = 2.0  # of processor time, for each peer and length: as many rounds on a machine that does other work too
FEWEST, MOST = 7, 200  # rounds
REST_S = 0.1  # of several threads, before each turn
BATCH_S = 3.0  # of audio, each recording of a batch
LOADED_ON_S = 3.0  # of audio, of the run whose memory is measured

Wave = NDArray[np.float32]
Run = Callable[[Wave], object]
Facts = dict[str, dict[str, Any]]
Row = dict[str, Any]


def bench(
    path: str | Path | None = None,
    *,
    seconds: Sequence[float] = (3.0,),
    threads: int | Sequence[int] = 1,
    peers: bool = False,
    encoder: nn.Module | None = None,
    nncf: str | None = None,
    exported: str | Path | None = None,
    footprints: bool = False,
    batch: bool = False,
) -> dict[str, Any]:
    """Time a file on `seconds` of audio, waveform in, embedding out; returns {rows: [...], machine, versions, ...}.

    Peers are those of `lab.peers`. All take turns in every round. A row: {name, seconds, threads, median_ms, min_ms,
    cpu_ms, rounds, ratio, bytes, load_ms}; median and least are of wall time, cpu_ms is the least processor time, ratio
    is the time over this file's (processor time for one thread, else wall time).   `failed`: peers that could not
    compute a length, {name, seconds, threads, error}.   footprints: load_ms (processor time) and peak_mb come from a
    process of its own for each.   batch: `throughput`, recordings of 3 s a second, one by one
    and 16 at once, features in.   `slower_than`: the rows this file is slower than, with the ratio.   encoder, nncf,
    exported: see `lab.peers`. Raises BadInput, BadModel, MissingExtra.
    """
    counts = [threads] if isinstance(threads, int) else list(threads)
    if not seconds or min(seconds) <= 0:
        raise BadInput(f"seconds is {seconds}; give lengths above 0")
    if not counts or min(counts) < 1:
        raise BadInput(f"threads is {threads}; give 1 or more")
    place = Path(path) if path is not None else SHIPPED
    if not place.is_file():
        raise BadModel(f"{place}: there is no such model file; check the path")
    rows: list[Row] = []
    failed: list[Row] = []
    with TemporaryDirectory() as folder:
        there = [Peer(MODEL, "ours", place, place.stat().st_size)]
        plain = None if exported is None else Path(exported)
        there += peers_of(place, Path(folder), encoder, nncf, plain) if peers else []
        told = {peer.name: measured(peer, LOADED_ON_S, counts[0]) if footprints else {} for peer in there}
        for count in counts:
            runners, facts = _opened(there, count, encoder, told)
            for length in seconds:
                running, refused = _able(runners, length, count)
                failed += refused
                rows += _rows(running, facts, length, count)
        throughput = _throughput(place, Path(folder)) if batch else []
    return {
        "model": str(place),
        "sha256": hashlib.sha256(place.read_bytes()).hexdigest(),
        "bytes": place.stat().st_size,
        "threads": threads,
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
        "failed": failed,
        "throughput": throughput,
        "slower_than": slower_than(rows),
    }


def slower_than(rows: Sequence[Row]) -> list[Row]:
    """Peers that took less time than the file, {name, seconds, threads, times}; `times`: its time over theirs."""
    return [
        {**{key: row[key] for key in ("name", "seconds", "threads")}, "times": 1 / row["ratio"]}
        for row in rows
        if row["name"] != MODEL and row["ratio"] < 1
    ]


def machine() -> dict[str, Any]:
    """Processor and system that a measurement was made on."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        vnni = any("vnni" in line for line in lines if line.startswith("flags"))
    except (OSError, StopIteration):
        vnni = None
    return {"processor": name, "cores": os.cpu_count(), "vnni": vnni, "system": platform.platform()}


def versions() -> dict[str, str]:
    """Versions of what runs the models."""
    found = {"python": platform.python_version()}
    for name in ("onnxruntime", "openvino", "torch", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def interleave(
    runners: dict[str, Run], wave: Wave, budget_s: float = BUDGET_S, rest_s: float = 0.0
) -> dict[str, list[tuple[float, float]]]:
    """Let all take turns, round by round; returns (wall, processor) seconds of every turn by name.

    budget_s: processor time for each, after which no further round begins, FEWEST once done.   rest_s: before each
    turn, until threads that the last one left spinning sleep; then one more run goes before, which wakes its own.
    """
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    for run in runners.values():
        run(wave)
    began = time.process_time()
    for count in range(MOST):
        if count >= FEWEST and time.process_time() - began > budget_s * len(runners):
            break
        for name, run in runners.items():
            if rest_s:
                time.sleep(rest_s)
                run(wave)
            wall, processor = time.perf_counter(), time.process_time()
            run(wave)
            turns[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return turns


def _opened(
    there: Sequence[Peer], threads: int, encoder: nn.Module | None, told: Mapping[str, Row]
) -> tuple[dict[str, Run], Facts]:
    """What runs each peer that can be run here, and its bytes, load_ms and what is told of it."""
    runners: dict[str, Run] = {}
    facts: Facts = {}
    for peer in there:
        began = time.process_time()
        run = open_peer(peer, threads, encoder)
        if run is not None:
            runners[peer.name] = run
            here = {"bytes": peer.bytes, "load_ms": 1e3 * (time.process_time() - began)}
            facts[peer.name] = {**here, **told[peer.name]}
    return runners, facts


def _able(runners: Mapping[str, Run], seconds: float, threads: int) -> tuple[dict[str, Run], list[Row]]:
    """The runners that compute so much audio, and for each other one why not; the file itself must."""
    able: dict[str, Run] = {}
    failed: list[Row] = []
    for name, run in runners.items():
        try:
            run(talker(seconds, seed=1))
            able[name] = run
        except Exception as error:  # every engine has errors of its own
            if name == MODEL:
                raise
            told = " ".join(str(error).split())[:200]
            failed.append({"name": name, "seconds": seconds, "threads": threads, "error": told})
    return able, failed


def _rows(runners: dict[str, Run], facts: Facts, seconds: float, threads: int) -> list[Row]:
    rows = []
    rest_s = REST_S if threads > 1 else 0.0
    for name, turns in interleave(runners, talker(seconds, seed=1), rest_s=rest_s).items():
        wall, processor = zip(*turns, strict=True)
        rows.append(
            {
                "name": name,
                "seconds": seconds,
                "threads": threads,
                "median_ms": 1e3 * statistics.median(wall),
                "min_ms": 1e3 * min(wall),
                "cpu_ms": 1e3 * min(processor),
                "rounds": len(turns),
                **facts[name],
            }
        )
    deciding = "cpu_ms" if threads == 1 else "median_ms"
    return [{**row, "ratio": row[deciding] / rows[0][deciding]} for row in rows]


def _throughput(path: Path, folder: Path) -> list[Row]:
    """Recordings of BATCH_S a second of processor time, one by one and BATCH at once: [{name, one, batch}]."""
    config = FrontEndConfig(**load(path).metadata["front_end"])
    frames = config.frames(round(BATCH_S * config.rate))
    several = np.random.default_rng(0).standard_normal((BATCH, config.rows, frames)).astype(np.float32)
    opened = {peer.name: open_file(peer.engine, peer.path, 1) for peer in batches(path, folder)}
    alone, together = (interleave(opened, array) for array in (several[:1], several)) if opened else ({}, {})
    return [
        {
            "name": name,
            "one": 1 / min(processor for _, processor in alone[name]),
            "batch": BATCH / min(processor for _, processor in together[name]),
        }
        for name in opened
    ]
