"""What refusing a hostile file takes: `sotto import` and `sotto compress` on every file of tests/hostile, in full.

    python benchmarks/hostile.py --out results/hostile.json

Each command runs in a process of its own, start of the interpreter included, --tries times. Seconds of wall time and of
processor time are the least of these (what else runs on the machine can only add), megabytes the largest resident
memory of all. Beside the files of tests/hostile: ResNet34s with a NaN, and with a tensor of another shape.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from sottovoce.lab.bench import machine, versions
from sottovoce.lab.run import write_text

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "lab"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "hostile"))
import foreign
import make
import onnx_files

LIMIT_S, LIMIT_MB = 2.0, 200.0
# a process of its own between: a child inherits the peak of the process that forks it
MEASURED = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"code": done.returncode, "error": done.stderr.strip().splitlines()[-1:], "wall_s":
    time.perf_counter() - began, "cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1024}))
"""


def broken_networks(folder: Path) -> list[Path]:
    """A known network with a NaN, and with a tensor of another shape, as torch.save writes them."""
    shapes = {name: tuple(shape) for name, shape in foreign.golden()["wespeaker resnet34"]["shapes"].items()}
    tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in foreign.weights(shapes).items()}
    nan = {**tensors, "conv1.weight": tensors["conv1.weight"] * float("nan")}
    other = {**tensors, "conv1.weight": torch.zeros(3, 1, 5, 5)}
    for name, content in (("nan_weights.pt", nan), ("wrong_shape.pt", other)):
        torch.save(content, folder / name)
    return [folder / "nan_weights.pt", folder / "wrong_shape.pt"]


def refused(path: Path, folder: Path, tries: int) -> dict[str, Any]:
    """One command on one file: what it said and what it took at least."""
    out = folder / "out"
    if path.suffix == ".onnx":
        arguments = ["compress", str(path), "--bits", "4", "--front-end", "wespeaker", "--out", f"{out}.onnx"]
    else:
        arguments = ["import", str(path), "--front-end", "wespeaker", "--out", f"{out}.safetensors"]
    command = [sys.executable, "-c", MEASURED, sys.executable, "-m", "sottovoce", *arguments]
    done = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(tries)]
    runs = [json.loads(told) for told in done]
    took = {key: least(run[key] for run in runs) for key, least in (("wall_s", min), ("cpu_s", min), ("peak_mb", max))}
    told = re.sub(re.escape(f"{folder}{os.sep}"), "", " ".join(runs[0]["error"]))
    code = max(run["code"] for run in runs)
    good = code == 2 and took["wall_s"] < LIMIT_S and took["peak_mb"] < LIMIT_MB
    return {"file": path.name, "bytes": path.stat().st_size, "code": code, **took, "within": good, "error": told[:300]}


@click.command()
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--tries", type=click.IntRange(1), default=3, show_default=True)
def main(out: Path, tries: int) -> None:
    """Measure and write OUT."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [*make.make(folder), *broken_networks(folder), *onnx_files.make(folder)]
        rows = [refused(path, folder, tries) for path in paths]
    for row in rows:
        print(f"{row['file']}: {row['wall_s']:.2f} s, {row['peak_mb']:.0f} MB, {row['error']}", file=sys.stderr)
    result = {
        "what": "hostile and broken files given to sotto import and sotto compress: least wall and processor time of "
        f"{tries} runs and largest memory of the whole command until it is refused; limits {LIMIT_S:g} s of wall time "
        f"and {LIMIT_MB:g} MB",
        "command": f"python benchmarks/hostile.py --out results/{out.name} --tries {tries}",
        "machine": machine(),
        "versions": versions(),
        "all_refused": all(row["code"] == 2 for row in rows),
        "beyond": [row["file"] for row in rows if not row["within"]],
        "rows": rows,
    }
    write_text(out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
