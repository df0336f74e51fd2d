"""Manifests, recognised by what is in them: tables with a header (TSV or CSV), Kaldi data folders, corpora.

Folders of recordings are read by `corpora`, trial lists by `trials`; their names can be imported from here too.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

from sottovoce.errors import BadList
from sottovoce.lab import corpora
from sottovoce.lab.corpora import Utterance
from sottovoce.lab.trials import (
    AUDIO_SUFFIXES,
    Trials,
    locate,
    read_enrolments,
    read_trials,
    speakers_of,
    text_lines,
)

__all__ = [
    "AUDIO_SUFFIXES",
    "Trials",
    "Utterance",
    "locate",
    "read_enrolments",
    "read_manifest",
    "read_trials",
    "speakers_of",
]

_COLUMNS = {  # what a column is called in tables of several toolkits → the field of Utterance
    "path": ("path", "wav", "file", "filename", "audio", "audio_filepath"),
    "speaker": ("speaker", "spk", "spk_id", "speaker_id", "label"),
    "seconds": ("seconds", "duration", "dur"),
}


def read_manifest(path: str | Path) -> list[Utterance]:
    """The recordings that a table, a Kaldi data folder or a folder of recordings names.

    Raises BadList with file and line for what cannot be read, and for a Kaldi entry that is a shell command.
    """
    path = Path(path)
    if path.is_dir():
        found = _kaldi(path / "wav.scp") if (path / "wav.scp").is_file() else corpora.read(path)
    else:
        lines = text_lines(path)
        found = _table(path, lines) if _has_header(lines) else _kaldi(path)
    if not found:
        raise BadList(f"{path}: names no recordings")
    return found


def _has_header(lines: list[str]) -> bool:
    names = {name.strip().strip('"').lower() for name in re.split(r"[\t,]", lines[0])}
    return bool(names & set(_COLUMNS["path"]))


def _table(path: Path, lines: list[str]) -> list[Utterance]:
    tabs = "\t" in lines[0] or "," not in lines[0]
    rows = csv.reader(lines, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)
    header = [name.strip() for name in next(rows)]
    lowered = [name.lower() for name in header]
    place = {
        part: next((lowered.index(name) for name in names if name in lowered), None) for part, names in _COLUMNS.items()
    }
    found = []
    try:
        for row in rows:
            if any(cell.strip() for cell in row):
                found.append(_utterance(f"{path}, line {rows.line_num}", header, row, place))
    except csv.Error as error:
        raise BadList(f"{path}, line {rows.line_num}: {error}") from None
    return found


def _utterance(where: str, header: list[str], row: list[str], place: dict[str, int | None]) -> Utterance:
    if len(row) != len(header):
        raise BadList(f"{where}: {len(row)} columns, the header has {len(header)}")

    def cell(part: str) -> str:
        index = place[part]
        return "" if index is None else row[index].strip()

    if not cell("path"):
        raise BadList(f"{where}: the path is empty")
    fields = {name: value for i, (name, value) in enumerate(zip(header, row, strict=True)) if i not in place.values()}
    return Utterance(cell("path"), cell("speaker"), _seconds(where, cell("seconds")), fields)


def _seconds(where: str, text: str) -> float | None:
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not 0 <= seconds < float("inf"):
        raise BadList(f"{where}: {text!r} is not a duration in seconds")
    return seconds


def _kaldi(scp: Path) -> list[Utterance]:
    """wav.scp with the files that belong to it: utt2spk (or spk2utt), utt2dur."""
    folder = scp.parent
    if (folder / "segments").exists():
        raise BadList(f"{folder / 'segments'}: segments of recordings are not supported; cut the recordings first")
    paths = _pairs(scp, _refuse_command)
    speakers = _speakers(folder)
    durations = _pairs(folder / "utt2dur") if (folder / "utt2dur").is_file() else {}
    missing = [key for key in paths if speakers and key not in speakers]
    if missing:
        raise BadList(f"{folder / 'utt2spk'}: no speaker for utterance {missing[0]!r} and {len(missing) - 1} more")
    seconds = {key: _seconds(f"{folder / 'utt2dur'}, {key}", value) for key, value in durations.items()}
    return [Utterance(value, speakers.get(key, ""), seconds.get(key), {"key": key}) for key, value in paths.items()]


def _refuse_command(where: str, value: str) -> None:
    if value.endswith("|") or value.startswith("|"):
        raise BadList(f"{where}: {value!r} is a shell command, which is never run; write the files first")
    if re.search(r"\.ark:\d+$", value):
        raise BadList(f"{where}: {value!r} lies inside an archive; name audio files")


def _speakers(folder: Path) -> dict[str, str]:
    if (folder / "utt2spk").is_file():
        return _pairs(folder / "utt2spk")
    if (folder / "spk2utt").is_file():
        return {key: speaker for speaker, keys in _pairs(folder / "spk2utt").items() for key in keys.split()}
    return {}


def _pairs(path: Path, check: Callable[[str, str], None] | None = None) -> dict[str, str]:
    """Lines `key rest` of a Kaldi table, each passed to `check` with its place."""
    found: dict[str, str] = {}
    for number, line in enumerate(text_lines(path, skip=False), 1):
        if not line.strip():
            continue
        key, *rest = line.split(maxsplit=1)
        if not rest:
            raise BadList(f"{path}, line {number}: expected a key and a value, found {line.strip()!r}")
        if key in found:
            raise BadList(f"{path}, line {number}: key {key!r} is there twice")
        found[key] = rest[0].strip()
        if check:
            check(f"{path}, line {number}", found[key])
    return found
