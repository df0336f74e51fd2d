"""Commands of cascades: `cascade tune`, `cascade run`. They need no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sottovoce.cli.frame import ENGINE, command
from sottovoce.cli.show import interval, percent, show, table
from sottovoce.errors import BadInput

TRIALS = click.option(
    "--trials", multiple=True, required=True, type=click.Path(dir_okay=False), help="Trial list; repeatable."
)
AUDIO = click.option(
    "--audio", required=True, type=click.Path(file_okay=False), help="Folder the lists' paths start from."
)


@click.group("cascade")
def cascade_group() -> None:
    """Several models as one: the cheap one first, the next only where it is unsure."""


@command("tune")
@click.argument("models", nargs=-1, required=True, type=click.Path(dir_okay=False))
@TRIALS
@AUDIO
@click.option("--stop-at-least", help="Share of trials that the first model answers: 75%.")
@click.option("--target-eer", help="EER above the last model's at most: 2% (relative) or 0.1 (absolute, in per cent).")
@click.option("--target-cost", help="Mean cost of a trial at most: 2.5 (bits) or 12ms.")
@click.option("--max-disagreement", help="Share of a stage's answers that the last may change, at most, as in 0.5%.")
@click.option(
    "--confidence", type=float, default=0.95, show_default=True, help="Of --stop-at-least and --max-disagreement."
)
@click.option(
    "--cost", type=click.Choice(["bits", "ms"]), default="bits", show_default=True, help="What --target-eer keeps low."
)
@click.option("--fuse", is_flag=True, help="A later model's score is weighed with those of the models before it.")
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="The cascade to write, .json.")
def tune_command(models: tuple[str, ...], trials: tuple[str, ...], audio: str, as_json: bool, **settings: Any) -> None:
    """Tune a cascade of MODELS (.onnx, cheapest first) on development trials, for one target.

    Use lists that nothing is reported on.
    """
    from sottovoce.lab.cascade_tuning import tune

    report = tune(models, list(trials), audio, **settings)
    show(report, as_json, _tuned(report))


def _tuned(report: dict[str, Any]) -> str:
    stages = zip(report["eer_of_stages"], report["stopped"], [*report["gates"], None], strict=True)
    rows = [
        [number, percent(rate), percent(share, 1), _edge(gate, "low"), _edge(gate, "high")]
        for number, (rate, share, gate) in enumerate(stages, 1)
    ]
    heads = ["stage", "EER % alone", "answers %", "rejects below", "accepts above"]
    return "\n".join(
        [
            table(heads, rows),
            f"{report['out']}: EER % {percent(report['eer'])} at {report['bits_per_trial']:.2f} bits a trial on "
            f"{report['trials']} development trials, threshold {report['threshold']:.4f}; the last stage would change "
            f"{percent(report['disagreement'])} % of the decisions",
            *_weighed(report),
        ]
    )


def _weighed(report: dict[str, Any]) -> list[str]:
    """What the stages weigh, where they do."""
    if report["weights"] is None:
        return []
    last = " + ".join(f"{weight:.2f} × stage {stage}" for stage, weight in enumerate(report["weights"][-1], 1))
    return [f"the last stage goes by {last}: EER % {percent(report['eer_all_go_on'])} if all trials reach it"]


def _edge(gate: dict[str, Any] | None, side: str) -> str:
    if gate is None:
        return ""
    return "never" if gate[side] is None else f"{gate[side]:.4f}"


@command("run")
@click.argument("cascade", type=click.Path(dir_okay=False))
@TRIALS
@AUDIO
@click.option("--full", is_flag=True, help="Every stage also scores every trial: what each gives alone.")
@click.option("--record", type=click.Path(dir_okay=False), help="Where each trial stopped: an .npz or .json to write.")
@click.option("--draws", type=click.IntRange(0), default=1000, show_default=True, help="Of the bootstrap; 0: none.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
@ENGINE
def run_command(cascade: str, trials: tuple[str, ...], audio: str, engine: str, as_json: bool, **settings: Any) -> None:
    """Measure CASCADE (.json): EER with intervals, where trials stop, and what one costs.

    Times are of the processor, one thread, reading left out. A fresh pair: both recordings are new in every trial.
    Shared: each recording is embedded at most once by each stage.
    """
    from sottovoce.runtime.cascade import load_cascade

    show_evaluation(load_cascade(cascade, engine=engine), trials, audio, None, as_json, **settings)


def show_evaluation(
    cascade: Any, trials: Sequence[str], audio: str, enrolments: str | None, as_json: bool, **settings: Any
) -> None:
    """Measure a loaded cascade and print it, for `cascade run` and `evaluate`."""
    from sottovoce.lab.cascade import evaluate_cascade

    if enrolments is not None:
        raise BadInput("a cascade compares two recordings; --enrolments, several of one speaker, needs a model")
    report = evaluate_cascade(cascade, list(trials), audio, **settings)
    show(report, as_json, _measured(report))


def _measured(report: dict[str, Any]) -> str:
    """The report of `evaluate_cascade` for people: its lists, its stages, its cost."""
    lists = [*((Path(one["list"]).name, one) for one in report["lists"])]
    lists += [("all", report["all"])] if len(lists) > 1 else []
    rows = [
        [
            name,
            one["trials"],
            one["targets"],
            percent(one["eer"]),
            interval(one["eer_interval"]),
            f"{one['min_dcf']['0.01']:.4f}",
            *(percent(share, 1) for share in one["stopped"]),
        ]
        for name, one in lists
    ]
    stages = [f"stops at {number} %" for number in range(1, len(report["stages"]) + 1)]
    heads = ["list", "trials", "targets", "EER %", "95 %", "minDCF 0.01", *stages]
    alone = [
        [f"stage {number} alone", stage["alone"], stage["alone"]["mean_eer"], stage["alone"]["all"]]
        for number, stage in enumerate(report["stages"], 1)
        if "alone" in stage
    ]
    costs = [
        [
            name,
            *(f"{cost[key]:.2f}" for key in ("bits", "ms_fresh_pair", "ms_shared")),
            percent(mean),
            percent(together),
        ]
        for name, cost, mean, together in [
            ["cascade", report["cost"], report["mean_eer"], report["all"]["eer"]],
            *alone,
        ]
    ]
    if "relative_eer_all_go_on" in report["all"]:
        both = report["all_go_on"]
        costs.append(["all weighed, all go on", "", "", "", percent(both["mean_eer"]), percent(both["all"])])
    cost_heads = ["a trial", "bits", "ms fresh pair", "ms shared", "mean EER %", "EER % all"]
    changed = [f"the last stage would change {percent(report['disagreement'])} % of the decisions"] if alone else []
    return "\n".join([table(heads, rows), "", _stages(report["stages"]), "", table(cost_heads, costs), *changed])


def _stages(stages: Sequence[dict[str, Any]]) -> str:
    heads = ["stage", "file", "bits", "bytes", "bytes in memory", "reached %", "recordings", "ms a recording"]
    rows = [
        [
            number,
            stage["file"],
            f"{stage['bits']:g}",
            f"{stage['bytes']:,}",
            "" if stage["resident_bytes"] is None else f"{stage['resident_bytes']:,}",
            percent(stage["reached"], 1),
            stage["recordings"],
            "" if stage["ms"] is None else f"{stage['ms']:.2f}",
        ]
        for number, stage in enumerate(stages, 1)
    ]
    return table(heads, rows)


for entry in (tune_command, run_command):
    cascade_group.add_command(entry)
