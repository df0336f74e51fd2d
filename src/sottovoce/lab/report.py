"""Results in files → one page that shows them all: HTML that loads nothing and runs nothing, the same data as JSON.

No model is run and no recording read. A section appears when there is something for it; what is missing is named, with
the command that makes it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sottovoce import __version__
from sottovoce.errors import BadFile, BadInput
from sottovoce.lab import page
from sottovoce.lab.page import Section
from sottovoce.lab.report_behind import behind, excluded, limits
from sottovoce.lab.report_bits import allocation
from sottovoce.lab.report_calibration import calibration
from sottovoce.lab.report_cascade import cascade
from sottovoce.lab.report_decisions import drift, flips, probes
from sottovoce.lab.report_facts import others, speed, training
from sottovoce.lab.report_front import front
from sottovoce.lab.report_layers import sensitivity, weights
from sottovoce.lab.report_rates import dets, histograms, rates
from sottovoce.lab.report_words import plain
from sottovoce.lab.sources import Found, read_sources

TITLE = "What compression costs"
MOST_BYTES = 2_000_000  # of a page

Make = Callable[[Found], "Section | None"]

# The order of the page: what makes a section, what it is called while it is missing, the command that would fill it.
SECTIONS: tuple[tuple[Make, str, str], ...] = (
    (front, "Size against error", "benchmarks/real.py, or sotto evaluate --json beside sotto inspect --json"),
    (rates, "Error rates, list by list", "sotto evaluate --json"),
    (dets, "DET curves", "sotto evaluate --scores FILE.npz"),
    (histograms, "Scores and operating points", "sotto evaluate --scores FILE.npz, or sotto drift --json"),
    (calibration, "Calibration", "sotto calibrate --json, or sotto evaluate --scores FILE.npz"),
    (flips, "Flipped decisions", "sotto drift --json"),
    (drift, "Drift of scores between files", "sotto drift --json"),
    (sensitivity, "Where the damage sits", "sotto analyze --json, sotto sweep, or sotto allocate --out"),
    (weights, "Weights and levels", "sotto analyze --json"),
    (allocation, "Bits of each layer", "sotto inspect --json, or sotto allocate --json"),
    (probes, "What the embeddings still know", "sotto probe --json"),
    (cascade, "Cascades", "sotto cascade tune --json and sotto cascade run --json"),
    (speed, "Speed", "sotto bench --json"),
    (training, "Training", "sotto train --run FOLDER"),
    (others, "Other measurements", "the scripts of benchmarks/"),
    (excluded, "Left out", "sotto evaluate --json"),
    (limits, "Limits", ""),
    (behind, "Machine and commands", ""),
)


def report(
    paths: Sequence[str | Path], out: str | Path, *, title: str = TITLE, date: str | None = None
) -> dict[str, Any]:
    """Write the page that shows these files, and return the same data as plain values for JSON.

    paths: JSON results, scores (.npz) and run folders in any order, recognised by content.   date: words for below the
    title; left out, none, so that the same files give the same page.
    returns: title, version, `files`, `sections` (title, and data as shown), `missing` (section, command), and the
    page's `out` and `bytes`. Raises BadFile for a file that is not recognised or damaged, BadInput for an `out` that
    cannot be written and a page of more than 2 MB.
    """
    place = Path(out)
    if not place.resolve().parent.is_dir():
        raise BadInput(f"{out}: the folder {place.resolve().parent} does not exist; make it first")
    found = read_sources(paths)
    made = [(_made(make, name, found), name, command) for make, name, command in SECTIONS]
    sections = [section for section, _, _ in made if section is not None]
    missing = [{"section": name, "command": command} for section, name, command in made if section is None]
    data = {
        "title": title,
        "version": __version__,
        **({"date": date} if date else {}),
        "files": [{"file": one.name, "kind": one.kind, "sha256": one.sha256} for one in found.sources],
        "sections": {one.name: {"title": one.title, "data": plain(one.data)} for one in sections},
        "missing": missing,
    }
    text = page.page(title, _lead(found, date), [*sections, *_missing(missing)], data)
    size = _write(place, text)
    return {**data, "out": str(out), "bytes": size}


def _made(make: Make, name: str, found: Found) -> Section | None:
    try:
        return make(found)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        names = ", ".join(sorted({source.name for source in found.sources}))
        raise BadFile(
            f"section {name!r} cannot be made: an entry is missing or damaged ({type(error).__name__}: {error}) in one "
            f"of {names}; make that file again"
        ) from error


def _lead(found: Found, date: str | None) -> list[str]:
    told = f"Made by sottovoce {__version__} from {len(found.sources)} files; no model was run for it."
    return [
        told + (f" {date}." if date else ""),
        "Rates are in per cent; intervals are 95 %, by bootstrap over speakers.",
    ]


def _missing(missing: Sequence[dict[str, str]]) -> list[Section]:
    if not missing:
        return []
    rows = [[one["section"], one["command"]] for one in missing]
    return [
        Section(
            "missing", "Not in this report", [page.table("What would fill it", ["section", "made by"], rows, code=(1,))]
        )
    ]


def _write(place: Path, text: str) -> int:
    """Write the page whole or not at all; returns its bytes."""
    content = text.encode("utf-8", errors="replace")
    if len(content) > MOST_BYTES:
        raise BadInput(
            f"{place}: the page would have {len(content):,} bytes, more than {MOST_BYTES:,}; give fewer files"
        )
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, place)
    finally:
        part.unlink(missing_ok=True)
    return len(content)
