"""What does a quantized training step cost beside a float one? The two take turns; a line a kind of weight.

    python benchmarks/training_cost.py --out results/training_cost.json

Batches are random features. A ratio is the median over the rounds of quantized over float, one right after the other:
processor time, on a CUDA device wall time. Least times stand beside it.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from sottovoce import networks, quant
from sottovoce.bits.plan import Plan
from sottovoce.lab.bench import machine, versions
from sottovoce.lab.run import write_text


@dataclass(frozen=True)
class Subject:
    """A network and the batches it is trained on: (batch, 80, frames)."""

    kind: str
    batch: int
    frames: int = 100
    settings: dict[str, Any] = field(default_factory=dict)


SUBJECTS = {
    "ecapa96": Subject("ecapa", 32, settings={"width": 96, "aggregate": 256}),
    "resnet18-8": Subject("resnet", 16, settings={"blocks": (2, 2, 2, 2), "width": 8}),
    "ecapa256": Subject("ecapa256", 32),
    "resnet18-32": Subject("resnet", 32, settings={"blocks": (2, 2, 2, 2), "width": 32}),
}
SMALL = ("ecapa96", "resnet18-8")  # the least work a weight: the overhead of a quantizer shows most
SPECS = (
    "uniform4/layer",
    "pot4",
    "lsq4",
    "kmeans4/layer/mass",
    "kmeans4/channel",
    "kmeans2/channel/learned",
    "kmeans2/codebook/mse",
    "kmeans2/codebook/learned",
    "binary/channel/static",
    "ternary",
)


def stepper(network: nn.Module, features: torch.Tensor) -> Callable[[], None]:
    """One step of plain gradient descent with momentum on a network."""
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        network(features).square().mean().backward()
        optimiser.step()
        if features.is_cuda:
            torch.cuda.synchronize()

    return step


def timed(step: Callable[[], None], clock: Callable[[], float]) -> float:
    """Seconds of one step."""
    began = clock()
    step()
    return clock() - began


def measured(name: str, specs: tuple[str, ...], rounds: int, device: str) -> Iterator[dict[str, Any]]:
    """A row for each spec, as it is measured: least times of both steps, median ratio of neighbours."""
    subject = SUBJECTS[name]
    torch.manual_seed(0)
    plain = networks.build(subject.kind, **subject.settings).to(device).train()
    features = torch.randn(subject.batch, 80, subject.frames, device=device)
    clock = time.perf_counter if device == "cuda" else time.process_time
    float_step = stepper(plain, features)
    for spec in specs:
        network = copy.deepcopy(plain)
        quant.attach(network, Plan.parse(f"*={spec}"))
        step = stepper(network, features)
        pairs = [(timed(float_step, clock), timed(step, clock)) for _ in range(rounds + 1)][1:]  # the first warms up
        fast, slow = (min(found) for found in zip(*pairs, strict=True))
        yield {
            "network": name,
            "batch": subject.batch,
            "frames": subject.frames,
            "spec": spec,
            "float_ms": 1000 * fast,
            "step_ms": 1000 * slow,
            "ratio": statistics.median(quantized / base for base, quantized in pairs),
        }


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the result here as JSON.")
@click.option("--network", "names", multiple=True, default=SMALL, show_default=True, type=click.Choice(list(SUBJECTS)))
@click.option("--spec", "specs", multiple=True, help="Default: one of every kind.")
@click.option("--rounds", default=9, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(out: Path | None, names: tuple[str, ...], specs: tuple[str, ...], rounds: int, threads: int) -> None:
    """Time float and quantized training steps in turn."""
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for name in names:
        for row in measured(name, specs or SPECS, rounds, device):
            print(f"{name:12s} {row['spec']:26s} {row['step_ms']:8.1f} ms  {row['ratio']:.3f}", flush=True)
            rows.append(row)
    result = {
        "what": "least time of one training step, float and quantized in turn in one process, and the median ratio; "
        + ("wall time" if device == "cuda" else "processor time of all threads"),
        "command": "python benchmarks/training_cost.py --out results/training_cost.json",
        "rounds": rounds,
        "threads": threads,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
    }
    if out is not None:
        write_text(out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
