"""Commands that make a model: `train`, `allocate`, `compress`, `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sottovoce.cli.frame import command, lab_extra, options
from sottovoce.cli.show import percent, show, table
from sottovoce.errors import BadInput


@command("train")
@click.argument("recipe", type=click.Path(dir_okay=False))
@click.option("--run", "run", type=click.Path(file_okay=False), help="Run folder.  [default: runs/RECIPE's name]")
@click.option("--data", type=click.Path(file_okay=False), default=".", help="Folder the recipe's paths start from.")
@click.option(
    "--cache", type=click.Path(file_okay=False), help="Decoded recordings, kept batches.  [default: the run's]"
)
@click.option("--resume", is_flag=True, help="Demand that there is a run to go on with.")
def train_command(recipe: str, run: str | None, data: str, cache: str | None, resume: bool, as_json: bool) -> None:
    """Train a network as RECIPE (TOML) says; goes on where a killed run stopped.

    With torchrun, several processes share the work.
    """
    folder = Path(run) if run else Path("runs") / Path(recipe).stem
    if resume and not (folder / "state.safetensors").exists():
        raise BadInput(f"{folder}: holds no saved state to resume; leave --resume out to start")
    with lab_extra("training"):
        from sottovoce.lab.train import train
    report = train(recipe, folder, data, cache=cache)
    loss = "" if report["loss"] is None else f", loss {report['loss']:.4f}"  # none: it had ended before
    show(report, as_json, f"{report['model']}: {report['steps']} steps{loss}")


BUDGETS = [
    click.option("--size", help="Budget: bytes of the whole file, as in 500kB, 3MB or 1.5MiB."),
    click.option("--bits-per-weight", type=float, help="Budget: bits a weight on average."),
    click.option("--max-eer-loss", help="Budget: EER on --trials, as in 2% (relative) or 0.1 (absolute, in per cent)."),
]
ALLOCATION = [
    click.option(
        "--sensitivity",
        type=click.Choice(["drift", "hessian", "training-loss", "weights", "eer"]),
        default="drift",
        show_default=True,
        help="What the damage of a format to a layer is measured by.",
    ),
    click.option("--search", type=click.Choice(["dp", "milp", "sections"]), default="dp", show_default=True),
    click.option("--widths", default="1,2,3,4,8", show_default=True, help="Bits that a layer can have."),
    click.option("--format", "family", default="kmeans", show_default=True, help="Of the levels; or kmeans/codebook."),
]


def _widths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise BadInput(f"widths {text!r} cannot be read; write numbers of bits, as in 2,3,4") from None


@command("allocate")
@click.argument("checkpoint", type=click.Path(dir_okay=False))
@options(BUDGETS)
@click.option("--data", type=click.Path(), help="Folder or manifest of unlabelled recordings to measure damage on.")
@click.option("--trials", multiple=True, type=click.Path(dir_okay=False), help="Trial list; for EER; repeatable.")
@click.option("--audio", type=click.Path(file_okay=False), help="Folder the paths of --trials start from.")
@options(ALLOCATION)
@click.option("--utterances", type=click.IntRange(1), default=32, show_default=True, help="Recordings to measure on.")
@click.option("--front-end", help="What makes the features of a published .onnx, by its preset's name.")
@click.option("--out", type=click.Path(dir_okay=False), help="The plan to write; what was measured is kept beside it.")
@click.option("--seed", type=int, default=0, show_default=True)
def allocate_command(checkpoint: str, widths: str, as_json: bool, **settings: Any) -> None:
    """Find the plan for CHECKPOINT (.safetensors, or a published .onnx) that does the least damage within a budget.

    Give one budget. `sotto compress --plan @FILE` uses the plan that --out writes.
    """
    if checkpoint.endswith(".onnx"):
        _readable(checkpoint)
    with lab_extra("allocation"):
        from sottovoce.lab.budget import allocate
    report = allocate(checkpoint, widths=_widths(widths), **settings)
    show(report, as_json, _allocation(report))


def _allocation(report: dict[str, Any]) -> str:
    heads = ["layer", "shape", "format", "bits", "bytes", "damage"]
    rows = [
        [
            layer["name"],
            "×".join(map(str, layer["shape"])),
            layer["spec"],
            layer["bits"],
            f"{layer['bytes']:,}",
            f"{layer['damage']:.3e}",
        ]
        for layer in report["layers"]
    ]
    tried = [
        f"tried {one['bits_per_weight']:g} bits a weight: {one['bytes']:,} bytes, EER % {percent(one['eer'])}"
        for one in report.get("tried", [])
    ]
    if tried:
        tried.append(f"{report['evaluations']} evaluations; float EER % {percent(report['float_eer'])}")
    size = f"{report['bits_per_weight']:.3f} bits a weight, file of at most {report['file_bytes']:,} bytes"
    damage = f"{report['predicted_damage']:.3e} by {report['sensitivity']}"
    return "\n".join([table(heads, rows), "", *tried, f"{size}, damage {damage}", f"plan {report['plan']}"])


@command("compress")
@click.argument("checkpoint", type=click.Path(dir_okay=False))
@click.option("--bits", type=click.Choice(["8", "4", "3", "2", "1"]), help="The standard plan of this width.")
@click.option("--plan", help="A plan instead, for example 'layer1.*=uniform8; *=kmeans4'; @FILE reads it.")
@click.option("--data", type=click.Path(), help="Folder or manifest of unlabelled recordings to work on.")
@click.option("--out", type=click.Path(dir_okay=False), required=True, help="The .onnx to write.")
@click.option("--trials", multiple=True, type=click.Path(dir_okay=False), help="Store this list's EER threshold.")
@click.option("--audio", type=click.Path(file_okay=False), help="Folder the paths of --trials start from.")
@options(BUDGETS)
@options(ALLOCATION)
@click.option(
    "--method",
    type=click.Choice(["nearest", "correct", "round", "follow"]),
    default="follow",
    show_default=True,
    help="With --data: nearest levels; those, means corrected; rounded on recordings; that, then label-free steps.",
)
@click.option("--front-end", help="What makes the features of a published .onnx, by its preset's name.")
@click.option("--seed", type=int, default=0, show_default=True)
def compress_command(
    checkpoint: str,
    bits: str | None,
    plan: str | None,
    size: str | None,
    bits_per_weight: float | None,
    max_eer_loss: str | None,
    sensitivity: str,
    search: str,
    widths: str,
    family: str,
    front_end: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Quantize CHECKPOINT (.safetensors, or a published .onnx that takes features) and write one .onnx.

    Give --bits, --plan or a budget (--size, --bits-per-weight, --max-eer-loss), with which the plan is found as by
    `sotto allocate`; a checkpoint that was trained with a plan keeps its own. What scores mean is learned from --trials
    and --audio, or else from pseudo-trials: crops of the same recording of --data against others.
    """
    if checkpoint.endswith(".onnx"):
        _readable(checkpoint)
    elif front_end is not None:
        raise BadInput("--front-end is for a published .onnx; a checkpoint says how its features are made")
    budget: dict[str, Any] = {"size": size, "bits_per_weight": bits_per_weight, "max_eer_loss": max_eer_loss}
    shared = {"front_end": front_end, **settings}
    if all(value is None for value in budget.values()):
        with lab_extra("compression"):
            from sottovoce.lab.compress import compress
        report = compress(checkpoint, bits=int(bits) if bits else None, plan=_plan_text(plan), **shared)
        show(report, as_json, _compression(report))
        return
    if bits or plan:
        raise BadInput("a budget finds the plan; leave --bits and --plan out, or the budget")
    how = {"sensitivity": sensitivity, "search": search, "widths": _widths(widths), "family": family}
    with lab_extra("compression"):
        from sottovoce.lab.budget import compress_within
    report = compress_within(checkpoint, **budget, allocation=how, **shared)
    show(report, as_json, f"{_allocation(report['allocation'])}\n\n{_compression(report)}")


def _readable(path: str) -> None:
    """Refuse an .onnx that cannot be used before torch is loaded."""
    with lab_extra("compression"):
        from sottovoce.export.source import read_source
    read_source(path)


def _compression(report: dict[str, Any]) -> str:
    """What was done, for people: stages, damage, calibration, layers that stayed wide or in float, speed, bytes."""
    return "\n".join(
        [
            *map(_stage, report.get("stages", [])),
            *_damage(report.get("damage", {})),
            *_meaning(report),
            *_wide(report.get("wide_layers", [])),
            *_in_float(report),
            *_speed(report.get("speed")),
            f"{report['model']}: {report['bytes']:,} bytes, {report['bits_per_weight']:.3f} bits a weight, mean cosine "
            f"to the checkpoint {report['cosine_to_checkpoint']['mean']:.4f}",
        ]
    )


def _damage(damage: dict[str, Any]) -> list[str]:
    lines = [f"embedding drift {damage['drift']:.4f} (1 - cosine to the float network)"] if "drift" in damage else []
    trials = damage.get("pseudo_trials")
    if trials:
        lines.append(
            f"estimated damage: EER {percent(trials['eer'])} %, of the float network {percent(trials['float_eer'])} %, "
            f"on {trials['targets']:,} + {trials['nontargets']:,} pseudo-trials; scores move by "
            f"{trials['score_change']:.4f} on average"
        )
    return lines


def _meaning(report: dict[str, Any]) -> list[str]:
    """What the stored calibration stands on."""
    if "calibration" not in report:
        return []
    points = ", ".join(report["operating_points"]) or "none"
    refused = "".join(f"\n  {name} refused: {why}" for name, why in report["operating_points_refused"].items())
    told = f"calibration from {report['calibration']['measured_on']}; operating points: {points}{refused}"
    pseudo = "\n  pseudo-trials share a session: replace this by sotto calibrate with trials of yours"
    return [told + (pseudo if report["calibration"].get("pseudo") else "")]


def _wide(layers: list[dict[str, Any]]) -> list[str]:
    return [f"{one['layer']} has {one['spec']}, {one['weights']:,} weights; {one['why']}" for one in layers]


def _in_float(report: dict[str, Any]) -> list[str]:
    if "float_operators" not in report:
        return []
    left = ", ".join(f"{count} {name}" for name, count in report["float_operators"].items())
    layers = f"; layers in float: {', '.join(report['float_layers'])}" if report["float_layers"] else ""
    followed = report.get("not_followed")
    return [f"in float: {left or 'nothing'}{layers}", *([f"not followed: {followed}"] if followed else [])]


def _speed(speed: dict[str, float] | None) -> list[str]:
    if speed is None:
        return []
    ratio = speed["float_ms"] / speed["ms"]
    return [
        f"{speed['seconds']:g} s of audio take {speed['ms']:.1f} ms on this machine, one thread; in float "
        f"{speed['float_ms']:.1f} ms ({ratio:.2f} times as long)"
    ]


def _stage(stage: dict[str, Any]) -> str:
    told = "" if stage["kept"] else ", dropped"
    return f"{stage['name']}: 1 - cosine on held-out recordings {stage['drift']:.4f} ({stage['seconds']:.0f} s){told}"


def _plan_text(plan: str | None) -> str | None:
    if plan is None or not plan.startswith("@"):
        return plan
    try:
        return Path(plan[1:]).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"plan {plan}: there is no file {plan[1:]}") from None


@command("export")
@click.argument("checkpoint", type=click.Path())
@click.option("--out", type=click.Path(dir_okay=False), required=True, help="The .onnx to write.")
@click.option("--float", "float_weights", is_flag=True, help="Float weights, also of a network trained with a plan.")
@click.option("--features-in", is_flag=True, help="Leave the front end out: features [1, mels, frames] in.")
@click.option("--for", "engine", type=click.Choice(["sherpa-onnx"]), help="Its input and metadata; features in.")
@click.option("--weights", type=click.Choice(["packed", "int8"]), default="packed", show_default=True)
@click.option("--frames", type=click.IntRange(1), help="One length only: frames, with --features-in.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="One length only: seconds of audio.")
@click.option("--batch", is_flag=True, help="Any number of recordings at once, with --features-in.")
@click.option("--opset", type=click.IntRange(13, 17), default=13, show_default=True)
@click.option("--note", "notes", multiple=True, help="KEY=TEXT for sherpa-onnx: language, url, comment; repeatable.")
def export_command(
    checkpoint: str,
    out: str,
    float_weights: bool,
    engine: str | None,
    weights: str,
    notes: tuple[str, ...],
    as_json: bool,
    **shape: Any,
) -> None:
    """Write CHECKPOINT (a .safetensors, a run folder, or an .onnx of ours) as .onnx in the form that is needed.

    A checkpoint is written in float; an .onnx of ours keeps its weights.
    """
    with lab_extra("export"):
        from sottovoce.export import Form, turn

        form = Form(engine=engine or "", int8_weights=weights == "int8", notes=_notes(notes), **shape)
        if checkpoint.endswith(".onnx"):
            if float_weights:
                raise BadInput(f"{checkpoint}: its weights stay as they are; leave --float out")
            report = turn(checkpoint, form, out)
        else:
            from sottovoce.lab.compress import export

            path = Path(checkpoint) / "model.safetensors" if Path(checkpoint).is_dir() else Path(checkpoint)
            report = export(path, out=out, float_weights=float_weights, form=form)
    show(report, as_json, f"{report['model']}: {report['bytes']:,} bytes, {report['plan']}")


def _notes(texts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    pairs = [text.partition("=") for text in texts]
    if wrong := [text for text, (key, sign, _) in zip(texts, pairs, strict=True) if not key or not sign]:
        raise BadInput(f"note {wrong[0]!r} cannot be read; write KEY=TEXT, as in language=English")
    return tuple((key, value) for key, _, value in pairs)
