"""Sections of a report on what stands behind its figures: files, machines, commands, what was left out, limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sottovoce.lab import page
from sottovoce.lab.page import Section
from sottovoce.lab.report_words import count, file_name, filled, list_name
from sottovoce.lab.sources import Found, Json, Source

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
    heads, rows = filled(heads, rows)
    code = [heads.index("command")] if "command" in heads else []
    parts = [page.table("What this page was made from", heads, rows, code, most=len(rows))]
    models = [source.content for source in found.of("inspection")]
    if models:
        cells = [
            [
                file_name(one),
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
    words = f"{len(files)} recordings could not be used" if files else "No recording was left out"
    parts = [page.paragraph(f"{words}, by what {len(told)} measurements say.")]
    if files:
        rows = sorted(([str(path), str(error)] for path, error in files))
        parts.append(page.table("Recordings left out", ["recording", "why"], rows))
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
