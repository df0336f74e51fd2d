"""Sections of a report on what stands behind its figures: speed, training, machine and commands, what was left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from sottovoce.lab import figures, page
from sottovoce.lab.page import Section
from sottovoce.lab.report_words import count, decimal, filled, list_name, percent
from sottovoce.lab.sources import Found, Json, Source

WINDOWS = 160  # points of a loss curve
MOST_EXCLUDED = 25  # shown without opening
MOST_COLUMNS = 14  # of a table made from any rows

LIMITS = (
    "Not a protection against playback or synthetic voices: a recording of a speaker, played back, is accepted as the "
    "speaker. Nothing here measures such attacks.",
    "Not for identifying people without their knowledge, nor for decisions about them that nobody checks. Voices are "
    "personal data: ask the people whose recordings are embedded.",
    "A threshold belongs to one file and to the recordings that it was measured on. Measure on recordings of your own.",
    "Trials whose two recordings come from one session are easier than life, as the room and the microphone help. A "
    "list does not tell whether its trials are such; what a result says of itself stands below.",
    "Intervals are by bootstrap over the speakers of a list. They say nothing of other languages, rooms or devices, "
    "and are wide where speakers are few. A difference whose interval holds 0 is not measurable here.",
    "Times hold for the machine that is named with them, and beside the peers of the same run.",
)


def speed(found: Found) -> Section | None:
    """Time of a recording, by file and peer, in the run that measured both."""
    parts: list[str] = []
    data: list[Json] = []
    heads = ["what", "audio s", "median ms", "least ms", "processor ms", "time over this file's", "bytes", "load ms"]
    for index, source in enumerate(found.of("timing")):
        rows = source.content["rows"]
        svg = figures.drawn(
            f"speed-{index}",
            "Processor time of a recording",
            "; ".join(f"{row['name']}, {row['seconds']:g} s: {row['cpu_ms']:.1f} ms" for row in rows),
            partial(_times, rows=rows),
            height=1.1 + 0.26 * len(rows),
        )
        machine = source.content.get("machine") or {}
        told = (
            f"{source.content.get('threads', 1)} thread(s) on {machine.get('processor', 'a machine that is not named')}"
        )
        cells = [
            [
                str(row["name"]),
                f"{row['seconds']:g}",
                *(decimal(row.get(key), 2) for key in ("median_ms", "min_ms", "cpu_ms", "ratio")),
                count(row.get("bytes")),
                decimal(row.get("load_ms"), 1),
            ]
            for row in rows
        ]
        parts += [page.figure(svg, f"{source.content.get('model', source.name)}: {told}.")]
        parts.append(page.table("Time of a recording, waveform in, embedding out", heads, cells))
        data.append({"source": source.name, "rows": rows})
    for source in found.of("contract"):
        parts += [page.heading(source.name), page.table("What any file keeps to", *_contract(source.content["rows"]))]
        data.append({"source": source.name, "rows": source.content["rows"]})
    return Section("speed", "Speed", parts, data) if parts else None


def _contract(rows: Sequence[Json]) -> tuple[list[str], list[list[str]]]:
    """Size, likeness to the plain int8 file and times, a row a network and width; times of the fastest peer."""
    heads = [
        "network",
        "bits",
        "bytes",
        "limit",
        "as its int8 twin",
        "ms for 3 s",
        "int8 peer's ms",
        "torch float's ms",
    ]
    cells = []
    for row in rows:
        twins = [one.get("identical_to_twin") for one in row.get("engines", [])]
        times = {
            peer: min((one["cpu_ms"] for one in row.get("speed", []) if one["name"].startswith(peer)), default=None)
            for peer in ("this file", "onnxruntime static int8", "torch float")
        }
        start = [str(row["network"]), str(row["bits"]), count(row["bytes"]), count(row["limit_bytes"])]
        alike = ("yes" if all(twins) else "no") if twins else ""
        cells.append([*start, alike, *(decimal(ms, 1) for ms in times.values())])
    return filled(heads, cells)


def _times(axes: Axes, rows: Sequence[Json]) -> None:
    names = [f"{figures.short(row['name'], 40)}, {row['seconds']:g} s" for row in rows]
    figures.side_bars(axes, names, [row["cpu_ms"] for row in rows])
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("least processor time, ms")


def training(found: Found) -> Section | None:
    """Loss over the steps of trainings."""
    runs = found.of("run")
    if not runs:
        return None
    curves = {source.name: _smoothed(source.steps) for source in runs}
    told = "; ".join(f"{name}: {losses[0]:.2f} to {losses[-1]:.2f}" for name, (_, losses) in curves.items())
    svg = figures.drawn("training", "Loss over steps", told, partial(_losses, curves=curves), height=3.8)
    heads = ["run", "steps", "last loss", "right %", "median seconds a step", "recipe"]
    rows = [
        [
            source.name,
            count(len(source.steps)),
            decimal(curves[source.name][1][-1]),
            percent(source.steps[-1].get("correct")),
            decimal(median(step.get("seconds", 0.0) for step in source.steps), 2),
            str(source.content.get("name", "")),
        ]
        for source in runs
    ]
    parts = [page.figure(svg, "Medians of neighbouring steps."), page.table("Trainings", *filled(heads, rows))]
    data = [{"run": name, "steps": steps, "loss": losses} for name, (steps, losses) in curves.items()]
    return Section("training", "Training", parts, data)


def _smoothed(steps: Sequence[Json]) -> tuple[list[int], list[float]]:
    parts = np.array_split(np.arange(len(steps)), min(WINDOWS, len(steps)))
    places = [int(steps[part[len(part) // 2]]["step"]) for part in parts]
    return places, [round(float(np.median([steps[at]["loss"] for at in part])), 5) for part in parts]


def _losses(axes: Axes, curves: Mapping[str, tuple[list[int], list[float]]]) -> None:
    for index, (name, (steps, losses)) in enumerate(curves.items()):
        axes.plot(steps, losses, **figures.line(index), label=figures.short(name))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    figures.legend_below(axes)


def others(found: Found) -> Section | None:
    """Results that have no section of their own, as tables."""
    parts: list[str] = []
    sources = found.of("measurement", "demo", "compression")
    for source in sources:
        what = source.content.get("what")
        parts += [page.heading(source.name), *([page.paragraph(f"{what}.")] if what else [])]
        parts += list(_tables(source.content))
    data = [{"source": source.name, **source.content} for source in sources]
    return Section("other-measurements", "Other measurements", parts, data) if parts else None


def _tables(content: Json) -> Iterator[str]:
    """Every list of rows as a table, and single values together in one."""
    single = [[key, _cell(value)] for key, value in _flat(content) if key.split(" ")[0] not in _TOLD]
    if single:
        yield page.table("Values", ["what", "value"], single)
    for key, rows in content.items():
        if isinstance(rows, list) and rows and all(isinstance(row, Mapping) for row in rows):
            flat = [dict(_flat(row)) for row in rows]
            heads = list(dict.fromkeys(name for row in flat for name in row))[:MOST_COLUMNS]
            yield page.table(
                key.replace("_", " "), *filled(heads, [[_cell(row.get(name)) for name in heads] for row in flat])
            )


_TOLD = {"what", "command", "machine", "versions"}  # elsewhere on the page


def _flat(content: Json, before: str = "") -> Iterator[tuple[str, Any]]:
    """Values that are no lists, those of inner objects under both names."""
    for key, value in content.items():
        name = f"{before} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        elif not isinstance(value, list):
            yield name, value


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value or "")


def behind(found: Found) -> Section:
    """Every file that the page was made from: what made it, where, with which versions and seeds; and licences."""
    heads = ["file", "kind", "SHA-256", "what it says of itself", "command", "machine", "versions", "seed"]
    rows = [
        [
            source.name,
            source.kind,
            source.sha256[:12],
            _said(source),
            str(source.content.get("command") or ""),
            _machine(source.content.get("machine")),
            ", ".join(f"{name} {version}" for name, version in (source.content.get("versions") or {}).items()),
            str(_seed(source.content)),
        ]
        for source in found.sources
    ]
    parts = [page.table("What this page was made from", *filled(heads, rows), code=(4,))]
    models = [source.content for source in found.of("inspection")]
    if models:
        cells = [
            [
                str(one.get("model")),
                str(one.get("sha256"))[:12],
                _words(one.get("licence")),
                _words(one.get("provenance")),
            ]
            for one in models
        ]
        parts.append(page.table("Licences and provenance", ["model", "SHA-256", "licence", "provenance"], cells))
    data = [{"file": source.name, "kind": source.kind, "sha256": source.sha256} for source in found.sources]
    return Section("machine-and-commands", "Machine and commands", parts, data)


def _said(source: Source) -> str:
    about = source.content
    words = [str(about[key]) for key in ("what", "scoring", "enrolment", "normalisation") if about.get(key)]
    return "; ".join(words)


def _machine(machine: Any) -> str:
    if not isinstance(machine, Mapping):
        return str(machine or "")
    vnni = {True: ", VNNI", False: ", no VNNI"}.get(machine.get("vnni"), "")  # type: ignore[arg-type]
    return f"{machine.get('processor')}, {machine.get('cores')} cores{vnni}, {machine.get('system')}"


def _seed(content: Json) -> Any:
    settings = content.get("settings")
    inner = settings.get("seed", "") if isinstance(settings, Mapping) else ""
    return content.get("seed", inner)


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_words(one)}" for key, one in value.items())
    return ", ".join(map(_words, value)) if isinstance(value, list) else str(value or "")


def excluded(found: Found) -> Section | None:
    """Recordings that could not be used, and how many trials fell with them."""
    told = [(source, one) for source in found.sources for one in _with_excluded(source.content)]
    if not told:
        return None
    files = {(row["path"], row["error"]) for _, one in told for row in one["excluded"]}
    fallen = {
        (source.name, list_name(one), one["trials_excluded"]) for source, one in told if one.get("trials_excluded")
    }
    parts = [
        page.paragraph(
            f"{len(files)} recordings could not be used by some file; {len(told)} measurements say what they left out."
        )
    ]
    if files:
        rows = sorted(([str(path), str(error)] for path, error in files))
        shown = page.table("Recordings left out", ["recording", "why"], rows)
        parts.append(shown if len(rows) <= MOST_EXCLUDED else page.folded(f"All {len(rows)}", [shown]))
    if fallen:
        cells = [[source, name, count(number)] for source, name, number in sorted(fallen)]
        parts.append(page.table("Trials left out", ["file", "list", "trials"], cells))
    return Section("excluded", "Left out", parts, [{"path": path, "error": error} for path, error in sorted(files)])


def _with_excluded(value: Any) -> Iterator[Json]:
    """Every measurement inside that lists what it left out."""
    if isinstance(value, Mapping):
        if isinstance(value.get("excluded"), list):
            yield value
        for one in value.values():
            yield from _with_excluded(one)
    elif isinstance(value, list):
        for one in value:
            yield from _with_excluded(one)


def limits(found: Found) -> Section:
    """What the figures do not say."""
    own = [f"{source.name}: {source.content['what']}" for source in found.sources if source.content.get("what")]
    parts = [page.listing(LIMITS)]
    if own:
        parts += [page.heading("What the results say of themselves"), page.listing(own)]
    return Section("limits", "Limits", parts, {"limits": list(LIMITS), "of results": own})
