"""Commands that look for damage: `drift` between files, `analyze` inside a network, `probe` in its embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sottovoce.cli.frame import ENGINE, WORKERS, as_typed, command, lab_extra, options
from sottovoce.cli.show import interval, percent, show, table
from sottovoce.errors import BadInput

OUT = click.option("--out", type=click.Path(dir_okay=False), help="Also write the report here, as JSON.")
DRAWS = click.option("--draws", type=click.IntRange(0), default=1000, show_default=True, help="Bootstrap; 0: none.")


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise BadInput(
            f"{option} {text!r} cannot be read; write numbers with commas between, as in 0.05,0.15"
        ) from None


def _named(entries: Sequence[str], option: str) -> dict[str, str]:
    """`name=value` of a repeated option."""
    pairs = [entry.partition("=") for entry in entries]
    bad = next((entry for entry, (name, sign, value) in zip(entries, pairs, strict=True) if not (name and value)), None)
    if bad is not None:
        raise BadInput(f"{option} {bad!r} cannot be read; write NAME=VALUE")
    return {name.strip(): value.strip() for name, _, value in pairs}


@command("drift")
@click.argument("files", nargs=-1, required=True, type=click.Path(dir_okay=False))
@click.option("--trials", multiple=True, type=click.Path(dir_okay=False), help="Trial list; repeatable.")
@click.option(
    "--out-of-domain", multiple=True, type=click.Path(dir_okay=False), help="Trial list of another domain; repeatable."
)
@click.option("--audio", required=True, type=click.Path(file_okay=False), help="Folder the lists' paths start from.")
@click.option("--edges", default="0.05,0.15", show_default=True, help="Of the margin bins, in units of the cosine.")
@DRAWS
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
@OUT
@WORKERS
@ENGINE
def drift_command(
    files: tuple[str, ...], trials: tuple[str, ...], audio: str, edges: str, as_json: bool, **settings: Any
) -> None:
    """How far scores move and which decisions flip between FILES (.onnx); the first is what others are compared with.

    Full: both sides of a trial by the other file. Test only: enrolled in the first file, tested in the other.
    """
    from sottovoce.lab.drift import drift

    bounds = _numbers(edges, "--edges")
    report = drift(files, trials, audio, edges=bounds, command=as_typed(), **settings)
    show(report, as_json, _drift(report))


def _drift(report: dict[str, Any]) -> str:
    heads = ["list", "file", "bits", "sides", "EER %", "change, 95 %", "mean |drift|", "targets", "nontargets", "r"]
    rows = []
    flips = []
    for one in report["lists"]:
        for model, row in zip(report["models"][1:], one["models"][1:], strict=True):
            for kind, told in (("full", "both"), ("test_only", "test")):
                if row[kind] is not None:
                    rows.append(_drift_row(one["list"], model, told, row[kind]))
                    flips.append([one["list"], model["model"], told, *_flip_cells(row[kind]["flips"])])
    names = [part["bin"] for part in report["lists"][0]["models"][1]["full"]["flips"]["bins"]]
    flip_heads = ["list", "file", "sides", "harmful", "beneficial", *(f"harmful {name} %" for name in names)]
    bend = report["knee"] and report["knee"]["model"]
    knee = f"\nknee over bits: {bend}, {report['knee']['bits']:g} bits a weight" if bend else ""
    means = "\n".join(_mean_line(one, model) for one, model in zip(report["means"], report["models"], strict=True))
    return f"{table(heads, rows)}\n\n{table(flip_heads, flips)}\n\n{means}{knee}"


def _drift_row(name: str, model: dict[str, Any], told: str, part: dict[str, Any]) -> list[str]:
    change = f"{100 * part['eer_change']:+.2f}"
    bounds = part["eer_change_interval"]
    between = f" ({100 * bounds[0]:+.2f} to {100 * bounds[1]:+.2f})" if bounds else ""
    bits = "" if model["bits"] is None else f"{model['bits']:.2f}"
    moved = [f"{part[key]:+.4f}" for key in ("target_mean", "nontarget_mean")]
    same = "" if part["correlation"] is None else f"{part['correlation']:.4f}"
    return [
        name,
        model["model"],
        bits,
        told,
        percent(part["eer"]),
        change + between,
        f"{part['mean_abs']:.4f}",
        *moved,
        same,
    ]


def _flip_cells(flips: dict[str, Any]) -> list[str]:
    rates = ["" if one["harmful_rate"] is None else percent(one["harmful_rate"]) for one in flips["bins"]]
    return [str(flips["harmful"]), str(flips["beneficial"]), *rates]


def _mean_line(means: dict[str, Any], model: dict[str, Any]) -> str:
    if "eer" in means:
        return f"mean over lists, {model['model']}: EER % {percent(means['eer']['all'])}"
    parts = [
        f"{told} EER % {percent(one['eer']['all'])}, mean |drift| {one['mean_abs']['all']:.4f}, harmful flips "
        f"{one['harmful']['count']}, beneficial {one['beneficial']['count']}"
        for told, one in (("both sides:", means["full"]), ("test side:", means["test_only"]))
        if one is not None
    ]
    return f"mean over lists, {model['model']}: {'; '.join(parts)}"


@command("analyze")
@click.argument("checkpoint", type=click.Path(dir_okay=False))
@click.option("--bits", type=click.Choice(["8", "4", "3", "2", "1"]), help="The standard plan of this width.")
@click.option("--plan", help="A plan instead, for example 'layer1.*=uniform8; *=kmeans4'; @FILE reads it.")
@click.option("--data", required=True, type=click.Path(), help="Folder or manifest of unlabelled recordings.")
@click.option("--trials", multiple=True, type=click.Path(dir_okay=False), help="Trial list, for EER; repeatable.")
@click.option("--audio", type=click.Path(file_okay=False), help="Folder the paths of --trials start from.")
@click.option(
    "--eer-of",
    type=click.Choice(["stages", "layers"]),
    default="stages",
    show_default=True,
    help="With --trials: EER with each stage kept in float, or of every layer too; long.",
)
@click.option("--utterances", type=click.IntRange(1), default=32, show_default=True, help="Recordings to measure on.")
@click.option("--seed", type=int, default=0, show_default=True)
@OUT
def analyze_command(checkpoint: str, bits: str | None, plan: str | None, as_json: bool, **settings: Any) -> None:
    """Where in CHECKPOINT (float .safetensors) a plan does its damage, layer by layer and stage by stage.

    With --out, what is measured is kept beside it and a stopped call goes on.
    """
    from sottovoce.cli.make import _plan_text

    with lab_extra("analysis"):
        from sottovoce.lab.analyze import analyze
    report = analyze(
        checkpoint, bits=int(bits) if bits else None, plan=_plan_text(plan), command=as_typed(), **settings
    )
    show(report, as_json, _analysis(report))


def _analysis(report: dict[str, Any]) -> str:
    heads = ["layer", "parameters", "kurtosis", "weights off", "local", "propagated", "alone", "won back %"]
    layers = [_layer(row) for row in report["layers"]]
    stages = [
        [row["stage"], f"{row['parameters']:,}", percent(row["share"], 1), *_recovered(row["kept_in_float"])]
        for row in report["stages"]
    ]
    stage_heads = ["kept in float", "parameters", "% of all", "drift", "won back %", "EER %", "won back %"]
    found = [
        [row["of"], row["with"], row["layers"], f"{row['spearman']:+.2f}", f"{row['p']:.4f}"]
        for row in report["correlations"]
        if row["spearman"] is not None
    ]
    whole = f"whole network: drift {report['whole']['drift']:.4f}"
    if "eer" in report["whole"]:
        rates = " to ".join(percent(report["whole"][key]) for key in ("float_eer", "eer"))
        whole += f", mean EER % {rates}"
    parts = [table(heads, layers), table(stage_heads, stages), table(["of", "with", "layers", "Spearman", "p"], found)]
    return "\n\n".join([*parts, f"{whole}\nplan {report['plan']}"])


def _layer(row: dict[str, Any]) -> list[str]:
    moved = [f"{row['activations'][kind]['relative_error']:.4f}" for kind in ("local", "propagated")]
    if row["weights"] is None:
        return [row["layer"], f"{row['parameters']:,}", "", "float", *moved, "", ""]
    weights = [f"{row['weights']['kurtosis']:.2f}", f"{row['weights']['relative_error']:.4f}"]
    back = row["kept_in_float"]["drift_recovery"]
    won = "" if back is None else percent(back, 1)
    return [row["layer"], f"{row['parameters']:,}", *weights, *moved, f"{row['alone']['drift']:.2e}", won]


def _recovered(row: dict[str, Any] | None) -> list[str]:
    if row is None:
        return ["float already", "", "", ""]
    cells = [f"{row['drift']:.4f}", "" if row["drift_recovery"] is None else percent(row["drift_recovery"], 1)]
    if "eer" not in row:
        return [*cells, "", ""]
    return [*cells, percent(row["eer"]), "" if row["eer_recovery"] is None else percent(row["eer_recovery"], 1)]


@command("probe")
@click.argument("files", nargs=-1, required=True, type=click.Path(dir_okay=False))
@click.option("--manifest", required=True, type=click.Path(), help="Recordings, speakers and their labels.")
@click.option("--labels", multiple=True, required=True, help="Column of the manifest; repeatable.")
@click.option("--bins", multiple=True, help="NAME=EDGE,EDGE: bins of a label of numbers, as in age=18,40.")
@click.option("--path-part", multiple=True, help="NAME=N: the label is part N of the path, -1 the file's name.")
@click.option("--speaker-column", help="What folds are kept apart by.  [default: the manifest's speaker]")
@click.option("--audio", type=click.Path(file_okay=False), help="Folder paths start from.  [default: the manifest's]")
@options(
    [
        click.option("--folds", type=click.IntRange(2), default=5, show_default=True),
        click.option("--drop-small", is_flag=True, help="Leave out classes of fewer speakers than folds."),
        click.option("--hidden", type=click.IntRange(1), default=128, show_default=True, help="Units between layers."),
        click.option("--steps", type=click.IntRange(1), default=400, show_default=True, help="Of the training."),
    ]
)
@DRAWS
@click.option("--seed", type=int, default=0, show_default=True)
@OUT
@WORKERS
@ENGINE
def probe_command(
    files: tuple[str, ...],
    manifest: str,
    labels: tuple[str, ...],
    bins: tuple[str, ...],
    path_part: tuple[str, ...],
    audio: str | None,
    folds: int,
    hidden: int,
    steps: int,
    seed: int,
    as_json: bool,
    **settings: Any,
) -> None:
    """What the embeddings of FILES (.onnx) still know: a small classifier, trained and tested on other speakers."""
    edges = {name: _numbers(value, "--bins") for name, value in _named(bins, "--bins").items()}
    parts = {name: _whole(value) for name, value in _named(path_part, "--path-part").items()}
    with lab_extra("probing"):
        from sottovoce.lab.probe import Probe, chosen_labels, probe
    how = Probe(hidden=hidden, steps=steps, folds=folds, seed=seed)
    wanted = chosen_labels(labels, edges, parts)
    report = probe(files, manifest, wanted, audio, settings=how, command=as_typed(), **settings)
    show(report, as_json, _probe(report))


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise BadInput(f"--path-part {text!r} is not a whole number; 1 is the first folder") from None


def _probe(report: dict[str, Any]) -> str:
    heads = ["label", "classes", "file", "bits", "accuracy %", "95 %", "balanced %", "95 %", "chance %", "change, 95 %"]
    rows = []
    for index, label in enumerate(report["labels"]):
        chance = f"{percent(label['chance_accuracy'], 1)}, {percent(label['chance_balanced_accuracy'], 1)}"
        for model in report["models"]:
            one = model["probes"][index]
            bounds = one["balanced_change_interval"]
            between = f" ({100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f})" if bounds else ""
            rows.append(
                [
                    label["label"],
                    len(label["classes"]),
                    Path(model["model"]).name,
                    "" if model["bits"] is None else f"{model['bits']:.2f}",
                    percent(one["accuracy"], 1),
                    interval(one["accuracy_interval"], 1),
                    percent(one["balanced_accuracy"], 1),
                    interval(one["balanced_accuracy_interval"], 1),
                    chance,
                    f"{100 * one['balanced_change']:+.1f}{between}",
                ]
            )
    told = [
        f"{one['label']}: {one['recordings']} recordings of {one['speakers']} speakers; "
        + ", ".join(f"{part['class']} {part['recordings']}" for part in one["classes"])
        + (f"; left out: {', '.join(one['dropped_classes'])}" if one["dropped_classes"] else "")
        for one in report["labels"]
    ]
    return "\n".join([table(heads, rows), "", *told])
