"""The command that shows results: `report`. It reads files and runs no model."""

from __future__ import annotations

from typing import Any

import click

from sottovoce.cli.frame import command, lab_extra
from sottovoce.cli.show import show, table


@command("report")
@click.argument("results", nargs=-1, required=True, type=click.Path())
@click.option("--out", type=click.Path(dir_okay=False), required=True, help="The page to write, .html.")
@click.option("--title", default="What compression costs", show_default=True, help="Heading of the page.")
@click.option("--date", help="Words below the heading, such as a date.  [default: none]")
def report_command(results: tuple[str, ...], out: str, as_json: bool, **settings: Any) -> None:
    """One self-contained page from RESULTS: JSON of other commands, scores (.npz) and run folders, in any order.

    Each is recognised by its content. What is missing is named on the page, with the command that makes it.
    """
    with lab_extra("a report"):
        from sottovoce.lab.report import report

        made = report(results, out, **settings)
    show(made, as_json, _made(made))


def _made(made: dict[str, Any]) -> str:
    files = table(["file", "kind"], [[one["file"], one["kind"]] for one in made["files"]])
    missing = [f"not in it: {one['section']} ({one['command']})" for one in made["missing"]]
    told = f"{made['out']}: {made['bytes']:,} bytes, {len(made['sections'])} sections"
    return "\n".join([files, *missing, told])
