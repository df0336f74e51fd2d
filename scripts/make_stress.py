"""Trial lists and the same lists under stress, in one folder that the benchmarks can measure on.

    python scripts/make_stress.py --speech FOLDER --out FOLDER

The first FOLDER holds trials/*.txt, the recordings they name below dev/, and noise.tsv. OUT gets trials/ with every
list twice (NAME.txt and NAME-stress.txt), enrol/ and test/ with the degraded recordings, and a link to the clean ones.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from sottovoce.lab.stress import make_stressed


@click.command()
@click.option("--speech", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--recordings", default="dev", show_default=True, help="Folder of --speech that the lists name.")
@click.option("--seed", default=0, show_default=True)
def main(speech: Path, out: Path, recordings: str, seed: int) -> None:
    """Make OUT; what is there is kept."""
    lists = sorted((speech / "trials").glob("*.txt"))
    make_stressed(lists, speech, speech / "noise.tsv", out, seed=seed)
    for path in lists:
        shutil.copy(path, out / "trials" / path.name)
    if not (out / recordings).exists():
        (out / recordings).symlink_to((speech / recordings).resolve(), target_is_directory=True)


if __name__ == "__main__":
    main()
