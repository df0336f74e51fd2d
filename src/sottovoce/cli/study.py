"""Commands that study methods: `sweep`, `reproduce`."""

from __future__ import annotations

from typing import Any

import click

from sottovoce.cli.frame import as_typed, command, lab_extra
from sottovoce.cli.show import percent, show, table


@command("sweep")
@click.argument("checkpoint", type=click.Path(dir_okay=False))
@click.option("--data", required=True, type=click.Path(), help="Folder or manifest of training recordings to observe.")
@click.option("--trials", multiple=True, required=True, type=click.Path(dir_okay=False), help="Trial list; repeatable.")
@click.option("--audio", required=True, type=click.Path(file_okay=False), help="Folder the lists' paths start from.")
@click.option("--groups", help="name=pattern pattern; name=pattern.  [default: the stages of the network]")
@click.option(
    "--max-eer-loss", type=click.FloatRange(0), default=0.07, show_default=True, help="Absolute, in per cent."
)
@click.option("--utterances", type=click.IntRange(1), default=100, show_default=True, help="Recordings to observe.")
@click.option("--draws", type=click.IntRange(0), default=1000, show_default=True, help="Of the bootstrap; 0: none.")
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False), help="The report, JSON; a stopped sweep goes on."
)
@click.option("--seed", type=int, default=0, show_default=True)
def sweep_command(
    checkpoint: str,
    data: str,
    trials: tuple[str, ...],
    audio: str,
    groups: str | None,
    max_eer_loss: float,
    utterances: int,
    draws: int,
    out: str,
    seed: int,
    as_json: bool,
) -> None:
    """8 bits in one group of CHECKPOINT's layers at a time, then in as many as --max-eer-loss allows.

    Every set of groups is written as a file and measured on all lists.
    """
    with lab_extra("a sweep"):
        from sottovoce.lab.sweep import sweep
    report = sweep(
        checkpoint,
        data=data,
        trials=trials,
        audio=audio,
        out=out,
        groups=groups,
        max_eer_loss=max_eer_loss / 100,
        utterances=utterances,
        draws=draws,
        seed=seed,
        command=as_typed(),
    )
    show(report, as_json, _sweep(report))


def _sweep(report: dict[str, Any]) -> str:
    heads = ["8 bits in", "bytes saved", "saved %", "EER %", "change", "minDCF change", "cosine"]
    named = [("nothing", report["float"]), *((row["group"], row) for row in report["table"])]
    named += [("+".join(row["groups"]), row) for row in report["pareto"] if len(row["groups"]) > 1]
    rows = [
        [
            name,
            f"{row['bytes_saved']:,}",
            f"{100 * row['share_saved']:.2f}",
            percent(row["eer"]),
            f"{100 * row['eer_change']:+.2f}",
            f"{row['min_dcf_change']:+.4f}",
            f"{row['cosine']:.4f}",
        ]
        for name, row in named
    ]
    best = report["chosen"]
    return "\n".join(
        [
            table(heads, rows),
            f"smallest within {100 * report['max_eer_loss']:.2f}: {best['bytes']:,} bytes "
            f"({100 * best['share_saved']:.2f} % fewer) at {100 * best['eer_change']:+.2f} % EER",
            f"plan {best['plan']}",
        ]
    )


@command("reproduce")
@click.argument("name", required=False)
@click.option("--list", "list_all", is_flag=True, help="The tables there are.")
@click.option("--corpora", type=click.Path(file_okay=False), default="corpora", show_default=True, help="Their folder.")
@click.option(
    "--results", type=click.Path(file_okay=False), default="results", show_default=True, help="Measured ones."
)
def reproduce_command(name: str | None, list_all: bool, corpora: str, results: str, as_json: bool) -> None:
    """Print a paper's table, NAME, with our column beside it, or what is missing to fill that column."""
    with lab_extra("reproduction"):
        from sottovoce.lab.reproduce import known_tables, reproduce
    if list_all or name is None:
        tables = known_tables()
        heads = ("name", "source", "title")
        show(tables, as_json, table(heads, [[one[head] for head in heads] for one in tables]))
        return
    result = reproduce(name, corpora=corpora, results=results)
    show(result, as_json, _reproduction(result))


def _reproduction(result: dict[str, Any]) -> str:
    columns = [text for column in result["columns"] for text in (column, "ours")]
    rows = [
        [*row["labels"], *(_figure(row[side], column) for column in result["columns"] for side in ("paper", "ours"))]
        for row in result["rows"]
    ]
    statuses = sorted({row["status"] for row in result["rows"]} - {"known"})
    about = {"arithmetic": "our arithmetic, not a number that the paper prints", "missing": "not public"}
    notes = [f"{', '.join(_keys(result, status))}: {about[status]}" for status in statuses]
    absent = [f"missing: {one['what']} ({one['place']})" for one in result["missing"]]
    lines = ["", "to fill our column:", *result["commands"]] if result["commands"] else []
    title = f"{result['title']} ({result['source']})"
    shown = table([*result["labels"], *columns], rows)
    return "\n".join([title, shown, *filter(None, [result["note"]]), *notes, *absent, *lines])


def _keys(result: dict[str, Any], status: str) -> list[str]:
    return [row["key"] for row in result["rows"] if row["status"] == status]


def _figure(values: dict[str, float], column: str) -> str:
    return f"{values[column]:.4g}" if column in values else "-"
