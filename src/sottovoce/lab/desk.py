"""The desk where formats are weighed: what each takes of a layer in the file, what harm it does, the best choice."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sottovoce import export as writer
from sottovoce import quant
from sottovoce.audio.talker import talker
from sottovoce.bits.formats import FORMATS, Coded
from sottovoce.bits.plan import Plan, Spec, stored_bytes
from sottovoce.errors import BadPlan
from sottovoce.export.graph import Graph
from sottovoce.export.weights import quantized_weight
from sottovoce.lab.compress import compress
from sottovoce.lab.damage import Ground
from sottovoce.lab.evaluate import evaluate_many
from sottovoce.lab.limits import Budget, Loss
from sottovoce.lab.subject import Subject
from sottovoce.quant.allocate import Allocation, Table
from sottovoce.quant.allocate import allocate as search_picks
from sottovoce.quant.sensitivity import quantized
from sottovoce.runtime.engine import load as load_model

SPARE = 3072  # bytes of the file that provenance, calibration and operating points may take
ROUNDS = 6  # corrections until a plan's file fits
RUNG = 0.25  # bits a weight between the budgets that an EER budget tries

Shapes = Mapping[str, tuple[int, ...]]
Sizes = NDArray[np.int64]


class Desk:
    """A float network, the formats its layers can have, and what they take; damages once they are known."""

    def __init__(self, subject: Subject, specs: Mapping[int, Spec]) -> None:
        self.subject, self.specs = subject, dict(specs)
        self.shapes: Shapes = quant.quantizable(subject.network)
        self.weights = [math.prod(shape) for shape in self.shapes.values()]
        self.code_bits = np.array([[n * width for width in self.specs] for n in self.weights], dtype=np.int64)
        self.bytes = np.array(
            [[stored_bytes(spec, shape) for spec in self.specs.values()] for shape in self.shapes.values()],
            dtype=np.int64,
        )
        self.damage = np.zeros(self.bytes.shape)
        self.rank = np.zeros(len(self.weights))

    def learn(self, values: Mapping[str, Mapping[str, float]], rank: Mapping[str, float]) -> None:
        """Take over measured damages; layers without a rank are ranked by the damage of their narrowest format."""
        self.damage = np.array([[values[layer][str(spec)] for spec in self.specs.values()] for layer in self.shapes])
        self.rank = np.array([rank[layer] for layer in self.shapes]) if rank else self.damage[:, 0]

    def check(self, budget: Budget) -> None:
        """Refuse an impossible budget before anything is measured. Raises BadPlan naming the nearest possible one."""
        if budget.bits_per_weight is not None:
            widths = list(self.specs)
            if not widths[0] <= budget.bits_per_weight <= widths[-1]:
                nearest = min((widths[0], widths[-1]), key=lambda width: abs(width - budget.bits_per_weight))
                raise BadPlan(
                    f"{budget.bits_per_weight:g} bits per weight are not possible with widths"
                    f" {', '.join(map(str, widths))}; the nearest possible average is {nearest}"
                )
        if budget.size_bytes is not None:
            least, most = (self.file_bytes(self.plan(picks)) for picks in self._ends())
            if budget.size_bytes < least:
                raise BadPlan(f"a file of {budget.size_bytes:,} bytes is not possible: the least possible is {least:,}")
            if budget.size_bytes > most:
                raise BadPlan(
                    f"a file of {budget.size_bytes:,} bytes is more than the widest formats take;"
                    f" the most that can be used is {most:,}"
                )

    def _ends(self) -> tuple[Sequence[int], Sequence[int]]:
        """The smallest and the largest choice of every layer."""
        return self.bytes.argmin(axis=1).tolist(), self.bytes.argmax(axis=1).tolist()

    def table(self, unit: str = "bytes") -> Table:
        """What the searches look at; unit: bytes as stored (codes, levels, scales), or bits of the codes."""
        sizes = self.bytes if unit == "bytes" else self.code_bits
        return Table(tuple(self.shapes), tuple(map(str, self.specs.values())), self.damage, sizes, self.rank, unit)

    def plan(self, picks: Sequence[int]) -> Plan:
        """A plan with an entry for each layer that has not the most frequent spec."""
        specs = list(self.specs.values())
        chosen = [specs[pick] for pick in picks]
        usual = Counter(chosen).most_common(1)[0][0]
        named = tuple((layer, spec) for layer, spec in zip(self.shapes, chosen, strict=True) if spec != usual)
        return Plan((*named, ("*", usual)))

    def file_bytes(self, plan: Plan) -> int:
        """Bytes of the .onnx that this plan leads to, at most: built for its size, with spare room for its metadata."""
        network = self.subject.network
        with quantized(network, plan):
            coded = quant.coded(network)
        known = {"plan": str(plan), **self.subject.metadata()}
        return int(self.subject.file(coded, [talker(2.0, seed=0)], known, "uint8").ByteSize()) + SPARE

    def fit(
        self, budget: Budget, search: str, ground: Ground, compression: Mapping[str, Any]
    ) -> tuple[Allocation, dict[str, Any]]:
        """The picks for a budget, and what else is to be reported."""
        if budget.size_bytes is not None:
            return self._fit_file(budget.size_bytes, search), {"budget_bytes": budget.size_bytes}
        if budget.bits_per_weight is not None:
            found = self.at_bits(budget.bits_per_weight, search)
            return found, {"budget_bits_per_weight": budget.bits_per_weight}
        assert budget.eer_loss is not None
        return self._fit_eer(budget.eer_loss, search, ground, compression)

    def at_bits(self, bits_per_weight: float, search: str) -> Allocation:
        """The picks whose codes take at most so many bits a weight on average."""
        table = self.table("bits")
        return search_picks(table, math.floor(bits_per_weight * sum(self.weights) + 1e-6), search)

    def _fit_file(self, size_bytes: int, search: str) -> Allocation:
        """The picks of least damage whose file fits.

        What stands beside the look-ups is measured on a file, and again where the file found differs.
        A width that a plan uses brings tables of its own, so every set of widths is searched by itself.
        """
        single, tables = look_up_bytes(self.shapes, list(self.specs.values()))
        least = self._ends()[0]
        taken = int(sum(single[row, pick] for row, pick in enumerate(least))) + int(tables[list(set(least))].sum())
        beside, over = self.file_bytes(self.plan(least)) - taken, 0
        for _ in range(ROUNDS):
            found = self._fit_room(size_bytes - beside, single, tables, search)
            if found is None:
                break
            over = self.file_bytes(self.plan(found.picks)) - size_bytes
            if over <= 0:
                return found
            beside += over
        raise BadPlan(f"no plan for a file of {size_bytes:,} bytes was found; give {max(over, SPARE):,} bytes more")

    def _fit_room(self, room: int, single: Sizes, tables: Sizes, search: str) -> Allocation | None:
        """The best picks over all sets of widths whose look-ups and tables take at most `room` bytes, if any do."""
        best: Allocation | None = None
        names, specs = tuple(self.shapes), list(map(str, self.specs.values()))
        for number in range(1, 2 ** len(specs)):
            columns = [column for column in range(len(specs)) if number >> column & 1]
            table = Table(
                names, tuple(specs[c] for c in columns), self.damage[:, columns], single[:, columns], self.rank
            )
            left = min(room - int(tables[columns].sum()), table.most)
            with suppress(BadPlan):
                found = search_picks(table, left, search)
                if best is None or found.damage < best.damage:
                    best = replace(found, picks=tuple(columns[pick] for pick in found.picks))
        return best

    def _fit_eer(
        self, loss: Loss, search: str, ground: Ground, compression: Mapping[str, Any]
    ) -> tuple[Allocation, dict[str, Any]]:
        """The narrowest rung whose file, compressed and evaluated, stays within the loss; rungs are bisected."""
        widths = list(self.specs)
        rungs = np.arange(widths[0], widths[-1] + RUNG / 2, RUNG).tolist()
        tried: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tried.onnx"
            writer.save(self.subject.file({}, [], {}, "float"), path)
            base = _mean_eer(path, ground)

            def passes(rung: float) -> bool:
                plan = self.plan(self.at_bits(rung, search).picks)
                how = {"plan": str(plan), "data": ground.data, "seed": ground.seed, **compression}
                compress(self.subject.path, out=path, bare=True, **how)
                eer = _mean_eer(path, ground)
                tried.append({"bits_per_weight": rung, "bytes": path.stat().st_size, "eer": eer})
                return loss.allows(eer, base)

            best = narrowest(rungs, passes)
        more = {"float_eer": base, "evaluations": len(tried) + 1, "tried": tried}
        if best is None:
            least = tried[0]["eer"] - base
            share = f", {100 * least / base:.2f} % relative" if base else ""
            raise BadPlan(
                f"even {widths[-1]} bits a weight raise the EER by {100 * least:.3f} per cent absolute{share};"
                " allow at least that"
            )
        return self.at_bits(best, search), more

    def report(self, found: Allocation) -> dict[str, Any]:
        """Plan, sizes, damage, and a row for each layer."""
        specs, plan = list(self.specs.values()), self.plan(found.picks)
        layers = [
            {
                "name": layer,
                "shape": list(shape),
                "spec": str(specs[pick]),
                "bits": list(self.specs)[pick],
                "bytes": int(self.bytes[row, pick]),
                "damage": float(self.damage[row, pick]),
            }
            for row, ((layer, shape), pick) in enumerate(zip(self.shapes.items(), found.picks, strict=True))
        ]
        rows = np.arange(len(layers))
        return {
            "plan": str(plan),
            "bits_per_weight": int(self.code_bits[rows, found.picks].sum()) / sum(self.weights),
            "stored_bytes": sum(layer["bytes"] for layer in layers),
            "file_bytes": self.file_bytes(plan),
            "predicted_damage": found.damage,
            "damage_by_layer": {
                layer: dict(zip(map(str, specs), row.tolist(), strict=True))
                for layer, row in zip(self.shapes, self.damage, strict=True)
            },
            "layers": layers,
        }


def look_up_bytes(shapes: Shapes, specs: Sequence[Spec]) -> tuple[Sizes, Sizes]:
    """Bytes of every layer's codes, levels, scales and look-up (layers, specs), and of each spec's tables (specs,).

    Tables are written once for all layers of a width, so they are what a second layer does without.
    """
    empty = _look_ups([])
    alone = np.array([[_look_ups([(spec, shape)]) - empty for spec in specs] for shape in shapes.values()])
    shape = next(iter(shapes.values()))
    twice = np.array([_look_ups([(spec, shape)] * 2) - empty for spec in specs])
    tables = 2 * alone[0] - twice
    return (alone - tables).astype(np.int64), tables.astype(np.int64)


def _look_ups(layers: Sequence[tuple[Spec, tuple[int, ...]]]) -> int:
    """Bytes of a graph that holds nothing but the look-ups of these layers."""
    graph = Graph()
    for index, (spec, shape) in enumerate(layers):
        quantized_weight(graph, f"layer{index}", _blank(spec, shape), None)
    return int(graph.model().ByteSize())


def _blank(spec: Spec, shape: tuple[int, ...]) -> Coded:
    """A weight of zeros: what it takes in a file does not depend on its values."""
    levels = np.arange(FORMATS[spec.format].size).astype(np.uint8).view(np.int8)
    levels = np.sort(np.tile(levels, (shape[0], 1)) if spec.granularity == "codebook" else levels, axis=-1)
    scale = np.ones(1 if spec.granularity == "layer" else shape[0], np.float32)
    return Coded(spec, shape, np.zeros(shape, np.uint8), levels, scale)


def narrowest(rungs: Sequence[float], passes: Callable[[float], bool]) -> float | None:
    """The lowest of rising rungs that passes, by bisection from the top down; None when the highest does not.

    About log2 of their number is tried. Where passing is not monotonic, it is a rung that passed, with one below it
    that did not.
    """
    if not passes(rungs[-1]):
        return None
    fails, good = -1, len(rungs) - 1
    while good - fails > 1:
        middle = (fails + good) // 2
        fails, good = (fails, middle) if passes(rungs[middle]) else (middle, good)
    return rungs[good]


def _mean_eer(path: Path, ground: Ground) -> float:
    assert ground.audio is not None
    return float(evaluate_many(load_model(path), list(ground.trials), ground.audio, draws=0, quiet=True)["mean_eer"])
