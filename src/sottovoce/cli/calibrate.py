"""The command `calibrate`. It needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from sottovoce.cli.frame import MODEL, WORKERS, command
from sottovoce.cli.show import interval, percent, show, table


@command("calibrate")
@MODEL
@click.option("--data", type=click.Path(), help="Recordings: a folder for each speaker, or a manifest with speakers.")
@click.option("--trials", multiple=True, type=click.Path(dir_okay=False), help="Or trial lists; repeatable.")
@click.option("--audio", type=click.Path(file_okay=False), help="Folder the lists' paths start from.")
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="The .onnx to write; may be MODEL itself.")
@click.option(
    "--method",
    type=click.Choice(["spline", "shrunk", "affine", "isotonic"]),
    help="[default: spline; affine with --measures]",
)
@click.option("--measures", default="", help="Side information, as in log_net_speech,snr.")
@click.option("--prior", type=float, default=0.5, show_default=True, help="Weight of the targets in the fit.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of pairs, speakers left out and bootstrap.")
@WORKERS
def calibrate_command(
    model: str | None,
    data: str | None,
    trials: tuple[str, ...],
    audio: str | None,
    out: str,
    method: str | None,
    measures: str,
    prior: float,
    seed: int,
    workers: int,
    as_json: bool,
) -> None:
    """Refit what MODEL's scores mean on recordings of your own: llrs and operating points, stored in a copy.

    The weights stay as they are. MODEL: an .onnx; the shipped one if left out.
    """
    from sottovoce.lab.calibrate import calibrate

    names = [name.strip() for name in measures.split(",") if name.strip()]
    settings: dict[str, Any] = {"method": method, "measures": names, "prior": prior, "seed": seed, "workers": workers}
    result = calibrate(model, out, data=data, trials=trials, audio=audio, **settings)
    show(result, as_json, calibration_text(result))


def calibration_text(result: Mapping[str, Any]) -> str:
    """A calibration and its points for people; what was refused, with the reason."""
    found, points = result["calibration"], result["operating_points"]
    lines = [
        f"{result['model']}: calibrated on {found['measured_on']}, {found['targets']:,} targets, "
        f"{found['nontargets']:,} nontargets, {found['speakers']} speakers",
        *([_line("before", result["before"])] if result.get("before") else []),
        _line("fitted", found),
        *(_line("on speakers left out", one) for one in found["held_out"]),
        *(line for one in found["held_out"] for line in _few(one.get("support", {}))),
        *(["no figures on speakers left out: too few"] if not found["held_out"] else []),
        *(["the trials are separable: a ridge, not the trials, holds the slope"] if found["ridge"] else []),
    ]
    rows = [
        [
            name,
            f"{one['threshold']:.4f}",
            percent(one["false_accepts"]),
            interval(one.get("false_accepts_interval")),
            percent(one["misses"]),
            interval(one.get("misses_interval")),
        ]
        for name, one in points.items()
    ]
    heads = ["point", "threshold", "false accepts %", "95 %", "misses %", "95 %"]
    refused = [f"refused: {name}: {reason}" for name, reason in result["operating_points_refused"].items()]
    return "\n".join([*lines, *([table(heads, rows)] if rows else []), *refused])


def _few(supports: Mapping[str, Any]) -> list[str]:
    """A line for each prior whose actDCF says little, and why."""
    return [
        f"few errors at prior {prior}, its actDCF says little: {one['misses']:,} misses, "
        f"{percent(one['misses_of_one_speaker'], 0)} % of one speaker; {one['false_accepts']:,} false accepts, "
        f"{percent(one['false_accepts_of_one_pair'], 0)} % of one pair of speakers"
        for prior, one in supports.items()
        if one["few"]
    ]


def _line(name: str, found: Mapping[str, Any]) -> str:
    costs = ", ".join(
        f"at prior {prior} actDCF {cost:.3f} (minDCF {found['min_dcf'][prior]:.3f})"
        for prior, cost in found["act_dcf"].items()
    )
    return f"{name}: Cllr {found['cllr']:.3f} (minCllr {found['min_cllr']:.3f}), {costs}"
