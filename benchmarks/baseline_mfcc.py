"""How far do plain cepstra get on these trial lists? Measured by the code that measures models.

    python benchmarks/baseline_mfcc.py --root FOLDER --out results/baseline_mfcc.json

FOLDER holds trials/*.txt and the recordings that they name.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

import click
import numpy as np

from sottovoce.lab.mfcc import baseline
from sottovoce.lab.run import write_text


@click.command()
@click.option("--root", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--draws", default=1000, show_default=True, help="Bootstrap draws.")
def main(root: Path, out: Path, draws: int) -> None:
    """Measure the baseline on every list under ROOT/trials and write OUT."""
    lists = [baseline(path, root, draws=draws) for path in sorted((root / "trials").glob("*.txt"))]
    result = {
        "what": "19 MFCCs, mean and deviation over time, standardised over each list's recordings, cosine",
        "command": "python benchmarks/baseline_mfcc.py --root FOLDER --out results/baseline_mfcc.json",
        "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "lists": lists,
        "mean_eer": float(np.mean([one["eer"] for one in lists])),
    }
    write_text(out, json.dumps(result, indent=1) + "\n")
    for one in lists:
        low, high = one["eer_interval"]
        print(f"{one['list']:20s} EER {100 * one['eer']:6.2f} %  [{100 * low:.2f}, {100 * high:.2f}]", file=sys.stderr)
    print(f"mean EER {100 * result['mean_eer']:.2f} %", file=sys.stderr)


if __name__ == "__main__":
    main()
