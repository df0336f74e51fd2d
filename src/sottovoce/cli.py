"""The command `sotto`: each command parses, makes one library call, prints.

Results go to standard output, progress and messages to standard error. Imports stand inside the commands, so that
`sotto --help` starts at once and only the commands that need torch or onnx ask for them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from sottovoce import __version__
from sottovoce.errors import BadInput, MissingExtra, SottoError

REJECTED, FAILED, SOME_FAILED, INTERRUPTED = 1, 2, 3, 130

F = TypeVar("F", bound=Callable[..., Any])


class Commands(click.Group):
    """Prints expected errors as one line and keeps exit code 1 for `verify`'s reject."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except Exception as error:
            if ctx.obj["traceback"]:
                raise
            click.echo(f"error: {_one_line(error)}", err=True)
            ctx.exit(FAILED)


def _one_line(error: Exception) -> str:
    if isinstance(error, (SottoError, OSError)):
        return " ".join(str(error).split())
    return f"{type(error).__name__}: {' '.join(str(error).split())} (a fault of sottovoce: add --traceback, report it)"


def _show_traceback(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    root = ctx.find_root()
    root.ensure_object(dict)
    root.obj["traceback"] = root.obj.get("traceback", False) or value


TRACEBACK = click.option(
    "--traceback",
    is_flag=True,
    envvar="SOTTO_TRACEBACK",
    expose_value=False,
    callback=_show_traceback,
    help="Show where an error came from.",
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="sotto")
@TRACEBACK
def main() -> None:
    """Quantize speaker-verification networks, measure them, and verify speakers with the result.

    Results go to standard output (--json for programs), progress and messages to standard error. Exit code 2 is an
    error in every command.
    """


def command(name: str) -> Callable[[F], click.Command]:
    """A command of `sotto`, with the options that all of them have."""

    def add(function: F) -> click.Command:
        as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, nothing else.")
        return main.command(name)(as_json(TRACEBACK(function)))

    return add


@contextmanager
def lab_extra(doing: str) -> Iterator[None]:
    """Turns a missing torch, onnx or safetensors into an error that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in {"torch", "onnx", "safetensors", "tomli"}:
            raise
        raise MissingExtra(f"{doing} needs {error.name}: pip install 'sottovoce[lab]'") from None


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


MODEL = click.argument("model", required=False, type=click.Path(dir_okay=False))
ENGINE = click.option(
    "--engine", type=click.Choice(["onnxruntime", "openvino"]), default="onnxruntime", show_default=True
)
WORKERS = click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Files at the same time; same result."
)
THREADS = click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
CHECK = click.option("--check", is_flag=True, help="Run the model's own self-test after loading.")


@command("train")
@click.argument("recipe", type=click.Path(dir_okay=False))
@click.option("--run", "run", type=click.Path(file_okay=False), help="Run folder.  [default: runs/RECIPE's name]")
@click.option("--data", type=click.Path(file_okay=False), default=".", help="Folder the recipe's paths start from.")
@click.option("--resume", is_flag=True, help="Demand that there is a run to go on with.")
def train_command(recipe: str, run: str | None, data: str, resume: bool, as_json: bool) -> None:
    """Train a network as RECIPE (TOML) says; goes on where a killed run stopped.

    With torchrun, several processes share the work.
    """
    folder = Path(run) if run else Path("runs") / Path(recipe).stem
    if resume and not (folder / "state.safetensors").exists():
        raise BadInput(f"{folder}: holds no saved state to resume; leave --resume out to start")
    with lab_extra("training"):
        from sottovoce.lab.train import train
    report = train(recipe, folder, data)
    show(report, as_json, f"{report['model']}: {report['steps']} steps, loss {report['loss']:.4f}")


@command("compress")
@click.argument("checkpoint", type=click.Path(dir_okay=False))
@click.option("--bits", type=click.Choice(["8", "4", "3", "2", "1"]), help="The standard plan of this width.")
@click.option("--plan", help="A plan instead, for example 'layer1.*=uniform8; *=kmeans4'; @FILE reads it.")
@click.option("--data", type=click.Path(), help="Folder or manifest of unlabelled recordings to observe ranges on.")
@click.option("--out", type=click.Path(dir_okay=False), required=True, help="The .onnx to write.")
@click.option("--trials", multiple=True, type=click.Path(dir_okay=False), help="Store this list's EER threshold.")
@click.option("--audio", type=click.Path(file_okay=False), help="Folder the paths of --trials start from.")
@click.option("--seed", type=int, default=0, show_default=True)
def compress_command(
    checkpoint: str,
    bits: str | None,
    plan: str | None,
    data: str | None,
    out: str,
    trials: tuple[str, ...],
    audio: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Quantize CHECKPOINT (.safetensors) and write one .onnx.

    Give --bits or --plan; a checkpoint that was trained with a plan keeps its own. With --trials and --audio the file
    also learns the threshold that `sotto verify` decides by.
    """
    with lab_extra("compression"):
        from sottovoce.lab.compress import compress
    report = compress(
        checkpoint,
        bits=int(bits) if bits else None,
        plan=_plan_text(plan),
        data=data,
        out=out,
        trials=trials,
        audio=audio,
        seed=seed,
    )
    size = f"{report['bytes']:,} bytes, {report['bits_per_weight']:.3f} bits a weight"
    kept = report["cosine_to_checkpoint"]["mean"]
    show(report, as_json, f"{report['model']}: {size}, mean cosine to the checkpoint {kept:.4f}")


def _plan_text(plan: str | None) -> str | None:
    if plan is None or not plan.startswith("@"):
        return plan
    try:
        return Path(plan[1:]).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"plan {plan}: there is no file {plan[1:]}") from None


@command("evaluate")
@MODEL
@click.option("--trials", multiple=True, required=True, type=click.Path(dir_okay=False), help="Trial list; repeatable.")
@click.option("--audio", required=True, type=click.Path(file_okay=False), help="Folder the lists' paths start from.")
@click.option("--draws", type=click.IntRange(0), default=1000, show_default=True, help="Of the bootstrap; 0: none.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
@WORKERS
@ENGINE
def evaluate_command(
    model: str | None,
    trials: tuple[str, ...],
    audio: str,
    draws: int,
    seed: int,
    workers: int,
    engine: str,
    as_json: bool,
) -> None:
    """EER and minDCF of MODEL (.onnx; the shipped one if left out), with 95 % intervals over speakers."""
    from sottovoce.lab.evaluate import evaluate, evaluate_many
    from sottovoce.runtime.engine import load

    loaded = load(model, engine=engine)
    if len(trials) == 1:
        result = evaluate(loaded, trials[0], audio, draws=draws, seed=seed, workers=workers)
        show(result, as_json, _evaluation([result]))
        return
    result = evaluate_many(loaded, list(trials), audio, draws=draws, seed=seed, workers=workers)
    show(result, as_json, f"{_evaluation(result['lists'])}\nmean EER % {percent(result['mean_eer'])}")


def _evaluation(lists: Sequence[dict[str, Any]]) -> str:
    heads = ["list", "trials", "targets", "EER %", "95 %", "minDCF 0.01", "minDCF 0.05", "left out"]
    rows = [
        [
            Path(one["list"]).name,
            one["trials"],
            one["targets"],
            percent(one["eer"]),
            interval(one["eer_interval"]),
            f"{one['min_dcf']['0.01']:.4f}",
            f"{one['min_dcf']['0.05']:.4f}",
            len(one["excluded"]),
        ]
        for one in lists
    ]
    return table(heads, rows)


@command("export")
@click.argument("checkpoint", type=click.Path())
@click.option("--out", type=click.Path(dir_okay=False), required=True, help="The .onnx to write.")
@click.option("--float", "float_weights", is_flag=True, help="Float weights, also of a network trained with a plan.")
@click.option("--features-in", is_flag=True, help="Leave the front end out: features [1, mels, frames] in.")
def export_command(checkpoint: str, out: str, float_weights: bool, features_in: bool, as_json: bool) -> None:
    """Write CHECKPOINT (a .safetensors or a run folder) as float .onnx, to compare with or to take elsewhere."""
    with lab_extra("export"):
        from sottovoce.lab.compress import export
    path = Path(checkpoint) / "model.safetensors" if Path(checkpoint).is_dir() else Path(checkpoint)
    report = export(path, out=out, float_weights=float_weights, features_in=features_in)
    show(report, as_json, f"{report['model']}: {report['bytes']:,} bytes, float")


@command("inspect")
@click.argument("model", type=click.Path(dir_okay=False))
def inspect_command(model: str, as_json: bool) -> None:
    """Layers, formats and sizes, read back from the weights in MODEL (.onnx), and what its metadata says."""
    with lab_extra("inspection"):
        from sottovoce.export.inspect import describe
    found = describe(model)
    show(found, as_json, _inspection(found))


def _inspection(found: dict[str, Any]) -> str:
    heads = ["layer", "shape", "format", "bits", "bytes"]
    rows = [
        [layer["name"], "×".join(map(str, layer["shape"])), layer["format"], layer["bits"], f"{layer['bytes']:,}"]
        for layer in found["layers"]
    ]
    weights = sum(layer["bytes"] for layer in found["layers"])
    more = [f"file {found['bytes']:,} bytes, of which packed weights {weights:,}", f"plan {found['plan']}"]
    return "\n".join([table(heads, rows), "", *more])


@command("embed")
@click.argument("files", nargs=-1, type=click.Path())
@click.option("--list", "list_file", type=click.Path(dir_okay=False), help="A file with one path a line.")
@click.option("--out", type=click.Path(dir_okay=False), required=True, help="The .npz to write.")
@WORKERS
@ENGINE
@CHECK
def embed_command(
    files: tuple[str, ...],
    list_file: str | None,
    out: str,
    workers: int,
    engine: str,
    check: bool,
    as_json: bool,
) -> None:
    """Embed recordings: sotto embed [MODEL.onnx] FILE... --out e.npz

    FILE may be a folder. The arrays of the .npz: `paths`, `embeddings` (n, dim) float32 of unit length. A file that
    cannot be used is reported and passed over; the exit code is then 3. Without MODEL.onnx the shipped model is used.
    """
    from sottovoce.lab.evaluate import embed_files
    from sottovoce.runtime.engine import load

    model_path, files = (files[0], files[1:]) if files and _is_model(files[0]) else (None, files)
    paths = _recordings(files, list_file)
    model = load(model_path, engine=engine, check=check)
    kept, embeddings, errors = embed_files(
        model, paths, workers=workers, on_error=lambda one: click.echo(f"passed over: {one['error']}", err=True)
    )
    if not len(kept):
        raise BadInput(f"none of the {len(paths)} files could be embedded; the reasons are above")
    _save_arrays(Path(out), paths=kept, embeddings=embeddings)
    report = {"out": out, "model": model.id, "embeddings": len(kept), "dim": model.dim, "errors": errors}
    show(report, as_json, f"{out}: {len(kept)} embeddings of {model.dim}, {len(errors)} files passed over")
    if errors:
        click.get_current_context().exit(SOME_FAILED)


def _is_model(path: str) -> bool:
    """By its suffix, or by the first field that onnx writes (no sound file begins with this byte)."""
    if path.lower().endswith(".onnx"):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(1) == b"\x08"
    except OSError:
        return False


def _recordings(files: Sequence[str], list_file: str | None) -> list[str]:
    """The recordings asked for, folders opened, in order."""
    from sottovoce.lab.lists import AUDIO_SUFFIXES

    named = list(files)
    if list_file:
        try:
            named += [line.strip() for line in Path(list_file).read_text(encoding="utf-8").splitlines() if line.strip()]
        except FileNotFoundError:
            raise BadInput(f"--list {list_file}: no such file") from None
    paths: list[str] = []
    for name in named:
        inside = sorted(str(p) for p in Path(name).rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
        paths += inside if Path(name).is_dir() else [name]
    if not paths:
        raise BadInput("no recordings to embed: name files or folders, or --list FILE")
    return paths


def _save_arrays(out: Path, **arrays: Any) -> None:
    """Write an .npz under a temporary name, then rename."""
    import numpy as np

    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            np.savez(file, **arrays)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)


@command("verify")
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--model", type=click.Path(dir_okay=False), help="An .onnx.  [default: the shipped 4-bit model]")
@click.option("--threshold", type=float, help="Accept from this score on, instead of an operating point.")
@click.option("--point", default="balanced", show_default=True, help="Operating point stored in the model.")
@ENGINE
@CHECK
def verify_command(
    a: str,
    b: str,
    model: str | None,
    threshold: float | None,
    point: str,
    engine: str,
    check: bool,
    as_json: bool,
) -> None:
    """Do the recordings A and B hold the same speaker? Exit code 0: accept, 1: reject, 2: error.

    Not a protection against played-back or synthetic voices.
    """
    from sottovoce.runtime.engine import load
    from sottovoce.runtime.verify import verify

    loaded = load(model, engine=engine, check=check)
    result = verify(loaded, a, b, point=point, threshold=threshold).as_dict()
    show(result, as_json, _verdict(result))
    click.get_current_context().exit(0 if result["decision"] == "accept" else REJECTED)


def _verdict(result: dict[str, Any]) -> str:
    measured = f"point {result['point']!r}, measured on {result['measured_on']}"
    by = measured if result.get("measured_on") else "given by you"
    return "\n".join(
        [
            f"{result['decision']}  score {result['score']:.4f}, threshold {result['threshold']:.4f} ({by})",
            f"model {result['model']}; played-back and synthetic voices are not detected",
        ]
    )


@command("bench")
@MODEL
@click.option("--seconds", multiple=True, type=float, default=(3.0,), show_default=True, help="Length; repeatable.")
@THREADS
@click.option("--peers", is_flag=True, help="Also time int8 and float files of the same network (needs the extra lab).")
def bench_command(model: str | None, seconds: tuple[float, ...], threads: int, peers: bool, as_json: bool) -> None:
    """Time MODEL (.onnx; the shipped one if left out) on audio of --seconds, peers in the same run."""
    with lab_extra("timing peers"):
        from sottovoce.lab.bench import bench

        result = bench(model, seconds=seconds, threads=threads, peers=peers)
    show(result, as_json, _timings(result))


def _timings(result: dict[str, Any]) -> str:
    heads = ["what", "seconds", "median ms", "least ms", "cpu ms", "load ms", "bytes", "time ratio"]
    rows = [
        [
            row["name"],
            f"{row['seconds']:g}",
            *(f"{row[key]:.2f}" for key in ("median_ms", "min_ms", "cpu_ms", "load_ms")),
            f"{row['bytes']:,}",
            f"{row['ratio']:.2f}",
        ]
        for row in result["rows"]
    ]
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    return f"{table(heads, rows)}\n{threads} on {result['machine']['processor']}"


@command("demo")
@click.option("--out", type=click.Path(file_okay=False), default="demo/out", show_default=True)
@click.option("--checkpoint", type=click.Path(dir_okay=False), help="A float checkpoint.  [default: the repository's]")
@click.option("--corpus", type=click.Path(file_okay=False), help="A folder with trials.txt.  [default: demo/corpus]")
def demo_command(out: str, checkpoint: str | None, corpus: str | None, as_json: bool) -> None:
    """Compress a network to 8, 4 and 2 bits, measure each file, verify two pairs: a tour on synthetic voices."""
    with lab_extra("the demo"):
        from sottovoce.lab.demo import demo
    result = demo(out, checkpoint=checkpoint, corpus=corpus)
    show(result, as_json, _tour(result))


def _tour(result: dict[str, Any]) -> str:
    heads = ["weights", "bytes", "EER %", "95 %", "minDCF 0.01", "ms per 3 s", "times faster", "times smaller"]
    rows = [
        [
            row["weights"],
            f"{row['bytes']:,}",
            percent(row["eer"]),
            interval(row["eer_interval"]),
            f"{row['min_dcf']['0.01']:.3f}",
            f"{row['ms']:.1f}",
            f"{row['speed_ratio']:.2f}",
            f"{row['size_ratio']:.2f}",
        ]
        for row in result["rows"]
    ]
    about = (
        f"{result['trials']} trials between {result['speakers']} synthetic voices: a tour, not a measure of accuracy."
    )
    pairs = [f"{pair['pair']}: {pair['decision']} (score {pair['score']:.3f})" for pair in result["pairs"]]
    return "\n".join([table(heads, rows), about, "", f"sotto verify with {result['verified_with']}:", *pairs])
