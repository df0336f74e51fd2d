"""What all commands share: the group, its errors and exit codes, common options."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from sottovoce.errors import MissingExtra, SottoError

REJECTED, FAILED, SOME_FAILED, UNDECIDED, INTERRUPTED = 1, 2, 3, 4, 130
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


def command(name: str) -> Callable[[F], click.Command]:
    """A command of `sotto`, with the options that all of them have."""

    def add(function: F) -> click.Command:
        as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, nothing else.")
        return click.command(name)(as_json(TRACEBACK(function)))

    return add


def options(listed: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    """Several options as one decorator, in the order in which they are listed."""

    def add(function: F) -> F:
        for option in reversed(listed):
            function = option(function)
        return function

    return add


def as_typed() -> str:
    """This call, for reports that say how they were made."""
    return shlex.join(["sotto", *sys.argv[1:]])


@contextmanager
def lab_extra(doing: str) -> Iterator[None]:
    """Turns a missing torch, onnx or safetensors into an error that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in {"torch", "onnx", "safetensors", "matplotlib", "tomli"}:
            raise
        raise MissingExtra(f"{doing} needs {error.name}: pip install 'sottovoce[lab]'") from None


def opened(path: str | None, **settings: Any) -> Any:
    """A model, or a cascade where the file's name ends in .json; `settings` are those of `engine.load`."""
    if path is not None and path.lower().endswith(".json"):
        from sottovoce.runtime.cascade import load_cascade

        return load_cascade(path, **settings)
    from sottovoce.runtime.engine import load

    return load(path, **settings)


MODEL = click.argument("model", required=False, type=click.Path(dir_okay=False))
ENGINE = click.option(
    "--engine", type=click.Choice(["onnxruntime", "openvino"]), default="onnxruntime", show_default=True
)
WORKERS = click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Files at the same time; same result."
)
THREADS = click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
CHECK = click.option("--check", is_flag=True, help="Run the model's own self-test after loading.")
