"""Results on standard output: JSON for programs, aligned text for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click


def show(result: Any, as_json: bool, text: str) -> None:
    """Print a result: `result` as JSON, or `text` for people."""
    click.echo(json.dumps(result, indent=2) if as_json else text)


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows as aligned text: a column of numbers to the right, of words to the left."""
    cells = [[str(cell) for cell in row] for row in rows]
    columns = list(zip(heads, *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(_numeric(cell) for cell in column[1:]) for column in columns]

    def line(row: Sequence[str]) -> str:
        cells = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([line(heads), *(line(row) for row in cells)])


def _numeric(cell: str) -> bool:
    return not cell or cell[0].isdigit() or (cell[0] in "-+." and cell[1:2].isdigit())


def percent(value: float, digits: int = 2) -> str:
    """A fraction as per cent, without the sign."""
    return f"{100 * value:.{digits}f}"


def interval(bounds: Sequence[float] | None, digits: int = 2) -> str:
    """A 95 % interval of fractions, in per cent."""
    return f"{percent(bounds[0], digits)}–{percent(bounds[1], digits)}" if bounds else ""
