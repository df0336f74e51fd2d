"""The command that takes other toolkits' networks in: `import`."""

from __future__ import annotations

from typing import Any

import click

from sottovoce.cli.frame import command, lab_extra
from sottovoce.cli.show import show


@command("import")
@click.argument("checkpoint", type=click.Path())
@click.option("--out", type=click.Path(dir_okay=False), required=True, help="The .safetensors to write.")
@click.option("--front-end", help="The front end it was trained with, where several toolkits share the architecture.")
@click.option("--check", type=click.Path(dir_okay=False), help="An embedding (.npy) that the original gave.")
@click.option("--check-audio", type=click.Path(dir_okay=False), help="The recording that --check is of.")
@click.option(
    "--tolerance", type=float, default=1e-3, show_default=True, help="Largest difference of unit embeddings to --check."
)
@click.option("--name", help="What to call the model.")
@click.option("--licence", help="Under which its weights may be used.")
@click.option("--trained-on", help="The recordings it was trained on.")
def import_command(checkpoint: str, as_json: bool, **settings: Any) -> None:
    """Take in CHECKPOINT of another toolkit, a file or the folder it was published as.

    WeSpeaker's, SpeechBrain's, 3D-Speaker's, pyannote's, TaoRuijie's and voxceleb_trainer's are recognised by the names
    and shapes of their tensors. Nothing in the file is run. `sotto compress` then quantizes what --out names.
    """
    from sottovoce.lab.recognise import examine

    examine(checkpoint, settings["front_end"])  # refuses before torch is loaded
    with lab_extra("import"):
        from sottovoce.lab.imports import import_checkpoint
    report = import_checkpoint(checkpoint, **settings)
    show(report, as_json, _imported(report))


def _imported(report: dict[str, Any]) -> str:
    lines = [
        f"{report['model']}: {report['toolkit']}, {report['parameters']:,} parameters, {report['dim']} numbers an "
        f"embedding, front end {report['front_end']}, licence {report['licence']}"
    ]
    if report["dropped"]:
        lines.append(f"left out: {', '.join(report['dropped'])}")
    if "check" in report:
        measured = report["check"]
        lines.append(
            f"largest difference to the original's embedding {measured['largest_difference']:.2e}, "
            f"1 - cosine {measured['cosine_distance']:.2e}"
        )
    return "\n".join(lines)
