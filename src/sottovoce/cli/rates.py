"""Error rates as tables for people: of lists, of the groups in them, and how their scores were made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sottovoce.cli.show import interval, percent, table

MARK = "*"

Row = dict[str, Any]


def evaluation(lists: Sequence[Row]) -> str:
    """What `evaluate` found on lists, each named by its size and the beginning of its hash."""
    parts = [rates("list", [_list(one) for one in lists], lists)]
    if len(lists) > 1:
        parts.append(f"mean EER % {percent(sum(one['eer'] for one in lists) / len(lists))}")
    for one in lists:
        for column, rows in one.get("groups", {}).items():
            parts += ["", f"{_list(one)}, by {column}", rates(column, [row["group"] for row in rows], rows)]
    parts += ["", *_how(lists)]
    if any(MARK in part for part in parts):
        parts.append(f"{MARK} fewer than 30 errors of some kind stand behind this rate")
    return "\n".join(parts)


def rates(head: str, names: Sequence[str], rows: Sequence[Row]) -> str:
    """A line for each row of figures; a row with one kind of trials has counts only, a rate on few errors a mark."""
    columns = list(_columns(rows[0]))
    cells = [
        [name, row["trials"], row["targets"], row["speakers"]]
        + ["" if row["eer"] is None else read(row) for _, read in columns]
        for name, row in zip(names, rows, strict=True)
    ]
    return table([head, "trials", "targets", "speakers", *(column for column, _ in columns)], cells)


def _columns(row: Row) -> Iterator[tuple[str, Callable[[Row], str]]]:
    """Heads of columns, and how each is read from a row; priors and calibration are those of the first row."""
    yield "EER %", lambda row: _marked(percent(row["eer"]), row["few_errors"])
    yield "95 %", lambda row: interval(row["eer_interval"])
    for prior in row["min_dcf_few_errors"]:
        yield f"minDCF {prior}", partial(_least_cost, prior)
        if "act_dcf" in row:
            yield f"actDCF {prior}", partial(_actual_cost, prior)
    if "cllr" in row:
        yield "Cllr", lambda row: f"{row['cllr']:.4f}"
    yield "minCllr", lambda row: f"{row['min_cllr']:.4f}"


def _least_cost(prior: str, row: Row) -> str:
    return _marked(f"{row['min_dcf'][prior]:.4f}", row["min_dcf_few_errors"][prior])


def _actual_cost(prior: str, row: Row) -> str:
    return f"{row['act_dcf'][prior]:.4f}"


def _marked(text: str, few: bool) -> str:
    return f"{text}{MARK}" if few else f"{text} "


def _list(one: Row) -> str:
    return f"{Path(one['list']).name} {one['list_sha256'][:8]}"


def _how(lists: Sequence[Row]) -> list[str]:
    lines = [f"{name}: {lists[0][name]}" for name in ("scoring", "enrolment", "normalisation")]
    left = [f"{_list(one)}: {one['trials_excluded']} trials left out" for one in lists if one["trials_excluded"]]
    return [*lines, *left]
