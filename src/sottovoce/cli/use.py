"""Commands that use a model: `verify`, `embed`. They need no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sottovoce.cli.frame import CHECK, ENGINE, REJECTED, SOME_FAILED, UNDECIDED, WORKERS, command, opened
from sottovoce.cli.show import show
from sottovoce.errors import BadInput


@command("verify")
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option(
    "--model",
    type=click.Path(dir_okay=False),
    help="An .onnx, or the .json of a cascade.  [default: the shipped 4-bit model]",
)
@click.option("--threshold", type=float, help="Accept from this score on, instead of an operating point.")
@click.option("--point", default="balanced", show_default=True, help="Operating point stored in the model, or bayes.")
@click.option("--prior", type=float, default=0.5, show_default=True, help="Of one speaker, for the probability.")
@ENGINE
@CHECK
def verify_command(
    a: str,
    b: str,
    model: str | None,
    threshold: float | None,
    point: str,
    prior: float,
    engine: str,
    check: bool,
    as_json: bool,
) -> None:
    """Do the recordings A and B hold the same speaker? Exit code 0: accept, 1: reject, 2: error, 4: inconclusive.

    Not a protection against played-back or synthetic voices.
    """
    from sottovoce.runtime.verify import verify

    loaded = opened(model, engine=engine, check=check)
    result = verify(loaded, a, b, point=point, threshold=threshold, prior=prior).as_dict()
    show(result, as_json, _verdict(result))
    click.get_current_context().exit(_CODES[result["decision"]])


_CODES = {"accept": 0, "reject": REJECTED, "inconclusive": UNDECIDED}


def _verdict(result: dict[str, Any]) -> str:
    """The answer for people: decision, what it stands on, how likely, what is to be said of the recordings."""
    measured = f"point {result['point']!r}, measured on {result['measured_on']}"
    by = measured if result.get("measured_on") else "given by you"
    return "\n".join(
        [
            f"{result['decision']}  score {result['score']:.4f}, threshold {result['threshold']:.4f} ({by})",
            *([f"why: {result['reason']}"] if result["reason"] else []),
            *_likelihood(result),
            *(f"warning: {warning}" for warning in result["warnings"]),
            f"model {result['model']}; played-back and synthetic voices are not detected",
        ]
    )


def _likelihood(result: dict[str, Any]) -> list[str]:
    if result["llr"] is None:
        return []
    return [
        f"llr {result['llr']:+.2f} (natural logarithm), probability of one speaker {result['probability']:.4f} "
        f"at prior {result['prior']:g}"
    ]


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

    model_path, files = (files[0], files[1:]) if files and is_model(files[0]) else (None, files)
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


def is_model(path: str) -> bool:
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
