"""How long does label-free compression take? `sotto compress --bits 4 --data` with its defaults, on random weights.

    python benchmarks/compress_time.py --data train.tsv --out results/compress_time.json

Time depends on shapes, not on what the weights are. Bytes of weights in the file stand beside those that its plan says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from file_contract import network

from sottovoce.export.inspect import describe
from sottovoce.lab import checkpoint
from sottovoce.lab.bench import machine, versions
from sottovoce.lab.run import write_text


def random_checkpoint(name: str, path: Path) -> None:
    """A preset's network with random weights, as a checkpoint."""
    about = {"network": {"kind": name}, "front_end": "wespeaker", "plan": "", "note": "random weights"}
    checkpoint.save(path, network(name), about)


def measure(name: str, data: Path, bits: int, threads: int) -> dict[str, Any]:
    """Wall and processor seconds of one compression in a process of its own, and what it made."""
    with TemporaryDirectory() as folder:
        source, out = Path(folder, "net.safetensors"), Path(folder, "net.onnx")
        random_checkpoint(name, source)
        command = [sys.executable, "-m", "sottovoce", "compress", source, "--bits", bits, "--data", data, "--out", out]
        began, before = time.monotonic(), os.times()
        done = subprocess.run(
            [*map(str, command), "--json"],
            check=True,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        seconds, after = time.monotonic() - began, os.times()
        report = json.loads(done.stdout)
        stored = sum(layer["bytes"] for layer in describe(out)["layers"])
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    kept = ("bytes", "weights", "plan_bytes", "packed_bytes", "stages", "cosine_to_checkpoint", "recordings")
    return {
        "network": name,
        "bits": bits,
        "seconds": round(seconds, 1),
        "processor_seconds": round(spent, 1),
        "stored_bytes": stored,
        **{key: report[key] for key in kept},
    }


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--networks", default="resnet34,ecapa512", show_default=True)
@click.option("--bits", default=4, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(data: Path, out: Path, networks: str, bits: int, threads: int) -> None:
    """Measure every network of --networks and write OUT."""
    rows = []
    for name in networks.split(","):
        rows.append(measure(name, data, bits, threads))
        print(f"{name}: {rows[-1]['seconds']} s", file=sys.stderr)
    result = {
        "what": "seconds of label-free compression with the defaults of `sotto compress`, random weights",
        "command": f"python benchmarks/compress_time.py --data {data.name} --out results/{out.name} --networks "
        f"{networks} --bits {bits} --threads {threads}",
        "threads": threads,
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
    }
    write_text(out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
