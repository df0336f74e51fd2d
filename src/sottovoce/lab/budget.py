"""Checkpoint + recordings + budget → the plan of least damage; budgets in bytes of the file, bits a weight, or EER."""

from __future__ import annotations

import difflib
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sottovoce import export as writer
from sottovoce import quant
from sottovoce.audio.features import preset
from sottovoce.audio.talker import talker
from sottovoce.bits.formats import FORMATS, WIDTHS, Coded
from sottovoce.bits.plan import Plan, Spec, stored_bytes
from sottovoce.errors import BadInput, BadPlan
from sottovoce.export.graph import Graph
from sottovoce.export.weights import quantized_weight
from sottovoce.lab import checkpoint as checkpoints
from sottovoce.lab.compress import compress, export
from sottovoce.lab.damage import METHODS, Ground, measure_damage
from sottovoce.lab.evaluate import evaluate_many, readable
from sottovoce.lab.run import write_text
from sottovoce.quant.allocate import SEARCHES, Allocation, Table
from sottovoce.quant.allocate import allocate as search_picks
from sottovoce.quant.sensitivity import quantized
from sottovoce.runtime.engine import load as load_model

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
SPARE = 1024  # bytes of the file that provenance and operating points may take
ROUNDS = 6  # corrections until a plan's file fits
RUNG = 0.25  # bits a weight between the budgets that an EER budget tries

Shapes = Mapping[str, tuple[int, ...]]
Sizes = NDArray[np.int64]


@dataclass(frozen=True)
class Loss:
    """How much the mean EER may rise: `amount` as a share of the float network's, or in fractions of one."""

    amount: float
    relative: bool

    def allows(self, eer: float, float_eer: float) -> bool:
        """Whether an EER stays within; both are fractions."""
        return eer <= float_eer + self.amount * (float_eer if self.relative else 1.0) + 1e-12


@dataclass(frozen=True)
class Budget:
    """One of three: bytes of the whole .onnx, average bits a weight (codes alone), or a loss of EER."""

    size_bytes: int | None = None
    bits_per_weight: float | None = None
    eer_loss: Loss | None = None

    @classmethod
    def parse(cls, size: str | None, bits_per_weight: float | None, max_eer_loss: str | None) -> Budget:
        """Read the texts of a command. Raises BadInput when they are not exactly one, or not readable."""
        if sum(value is not None for value in (size, bits_per_weight, max_eer_loss)) != 1:
            raise BadInput("give one budget: a size, bits per weight, or the largest loss of EER")
        return cls(
            parse_size(size) if size is not None else None,
            bits_per_weight,
            parse_loss(max_eer_loss) if max_eer_loss is not None else None,
        )


def parse_size(text: str) -> int:
    """Bytes of `500kB`, `3MB`, `1.5 MiB`, `2000`; upper or lower case. Raises BadInput."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not found:
        raise BadInput(f"size {text!r} cannot be read; write a number and a unit, as in 500kB, 3MB or 1.5MiB")
    number, unit = found.groups()
    known = {name.lower(): factor for name, factor in UNITS.items()}
    if (unit or "b").lower() not in known:
        near = difflib.get_close_matches(unit.lower(), known, 1, cutoff=0.0)[0]
        name = next(name for name in UNITS if name.lower() == near)
        raise BadInput(f"size {text!r}: unit {unit!r} is unknown; did you mean {name!r}? known: {', '.join(UNITS)}")
    return math.floor(float(number) * known[(unit or "b").lower()])


def parse_loss(text: str) -> Loss:
    """`2%`: relative to the float network's EER; `0.1`: absolute, in per cent as EERs are written. Raises BadInput."""
    found = re.fullmatch(r"\s*\+?(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    if not found:
        raise BadInput(f"loss of EER {text!r} cannot be read; write 2% (relative) or 0.1 (absolute, in per cent)")
    return Loss(float(found[1]) / 100, bool(found[2]))


# ---- commands


def allocate(
    checkpoint: str | Path,
    *,
    size: str | None = None,
    bits_per_weight: float | None = None,
    max_eer_loss: str | None = None,
    data: str | Path | None = None,
    trials: Sequence[str | Path] = (),
    audio: str | Path | None = None,
    sensitivity: str = "drift",
    search: str = "dp",
    widths: Sequence[int] = WIDTHS,
    family: str = "kmeans",
    utterances: int = 32,
    seed: int = 0,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    compression: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Find the plan of least damage within a budget; returns a report with its text, sizes and a row for each layer.

    size, bits_per_weight, max_eer_loss: one of them.   data: unlabelled recordings that sensitivity is measured on.
    trials, audio: for budgets and damage by EER.   family: of the formats, as in `kmeans` or `kmeans/codebook`; 8 bits
    are uniform where a family of codebooks is asked.   out: where the plan is written.   cache: the table of damages,
    with which a later call goes on; by default beside `out`.   compression: settings of `compress` for the files that a
    budget by EER tries.
    Raises BadInput, BadPlan, BadList before any long work; a budget that is too small names the least possible one.
    """
    budget = Budget.parse(size, bits_per_weight, max_eer_loss)
    ground = _ground(sensitivity, data, trials, audio, utterances, seed)
    _check(search, budget, ground, out)
    loaded = checkpoints.load(checkpoint)
    if loaded.plan:
        raise BadInput(f"{checkpoint}: was trained with plan {loaded.plan!r}; allocation starts from a float network")
    desk = Desk(loaded, choices(family, widths))
    desk.check(budget)
    if cache is None and out is not None:
        cache = Path(out).with_name(Path(out).name + ".sensitivity.json")
    damage = measure_damage(loaded, list(desk.specs.values()), ground, Path(cache) if cache is not None else None)
    desk.learn(damage.values, damage.rank)
    found, more = desk.fit(budget, search, ground, compression or {})
    report = {**desk.report(found), "sensitivity": sensitivity, "search": search, **more}
    if out is not None:
        heading = f"# {report['bits_per_weight']:.3f} bits a weight, {report['file_bytes']:,} bytes; {sensitivity}"
        lines = report["plan"].split("; ")
        write_text(Path(out), "\n".join([f"{heading}, {search}", *lines, ""]))
    return {"checkpoint": str(checkpoint), "out": None if out is None else str(out), **report}


def compress_within(
    checkpoint: str | Path,
    *,
    out: str | Path,
    size: str | None = None,
    bits_per_weight: float | None = None,
    max_eer_loss: str | None = None,
    allocation: Mapping[str, Any],
    data: str | Path | None = None,
    trials: Sequence[str | Path] = (),
    audio: str | Path | None = None,
    seed: int = 0,
    **settings: Any,
) -> dict[str, Any]:
    """Allocate, then compress with that plan: the report of `compress`, with that of `allocate` under `allocation`.

    allocation: settings of `allocate` (sensitivity, search, widths, family; cache, where the table of damages is to
    outlive this call).   settings: more ones of `compress`.
    A file above a budget in bytes is made again with a smaller one until it fits; BadPlan when none does.
    """
    shared: dict[str, Any] = {"data": data, "trials": trials, "audio": audio, "seed": seed}
    limit, asked = (parse_size(size), parse_size(size)) if size is not None else (None, None)
    with tempfile.TemporaryDirectory() as folder:
        how = {"cache": Path(folder) / "sensitivity.json", **allocation}
        for _ in range(ROUNDS):
            plan = allocate(
                checkpoint,
                size=None if asked is None else str(asked),
                bits_per_weight=bits_per_weight,
                max_eer_loss=max_eer_loss,
                compression=settings,
                **shared,
                **how,
            )
            report = compress(checkpoint, out=out, plan=plan["plan"], **shared, **settings)
            if limit is None or report["bytes"] <= limit:
                return {**report, "allocation": plan}
            asked = (asked or 0) - (report["bytes"] - limit)
    Path(out).unlink(missing_ok=True)
    raise BadPlan(f"{out}: no file within {limit:,} bytes was found; the last had {report['bytes']:,}")


def choices(family: str, widths: Sequence[int]) -> dict[int, Spec]:
    """Width → spec of a family with its optional granularity and rule, by rising width.

    8 bits are `uniform8` for k-means, as in the standard plans. Raises BadPlan for widths that a family has not.
    """
    name, _, rest = family.partition("/")
    families = list(dict.fromkeys(entry.family for entry in FORMATS.values()))
    if name not in families:
        near = difflib.get_close_matches(name, families, 1, cutoff=0.0)[0]
        raise BadPlan(f"family {name!r} is unknown; did you mean {near!r}? known: {', '.join(families)}")
    possible = {entry.bits for entry in FORMATS.values() if entry.family == name} | {8}
    for width in widths:
        if width not in possible:
            nearest = min(possible, key=lambda known: abs(known - width))
            raise BadPlan(f"{name} has no format of {width} bits; the nearest width is {nearest}")
    if not widths:
        raise BadPlan(f"no widths to choose from; {name} has {', '.join(map(str, sorted(possible)))}")
    return {width: _spec(name, width, rest) for width in sorted(set(widths))}


def _spec(name: str, width: int, rest: str) -> Spec:
    own = [entry.name for entry in FORMATS.values() if entry.family == name and entry.bits == width]
    if not own or (name == "kmeans" and width == 8):
        return Spec("uniform8")
    return Spec.parse(f"{own[0]}/{rest}" if rest else own[0])


def _ground(
    sensitivity: str,
    data: str | Path | None,
    trials: Sequence[str | Path],
    audio: str | Path | None,
    utterances: int,
    seed: int,
) -> Ground:
    if sensitivity not in METHODS:
        near = difflib.get_close_matches(sensitivity, METHODS, 1, cutoff=0.0)[0]
        known = ", ".join(METHODS)
        raise BadInput(f"sensitivity {sensitivity!r} is unknown; did you mean {near!r}? known: {known}")
    where = Path(data) if data is not None else None
    if sensitivity in ("drift", "hessian", "training-loss") and (where is None or not where.exists()):
        raise BadInput(f"sensitivity {sensitivity!r} looks at recordings: give --data a folder or manifest that exists")
    root = Path(audio) if audio is not None else None
    return Ground(sensitivity, where, tuple(Path(path) for path in trials), root, utterances, seed)


def _check(search: str, budget: Budget, ground: Ground, out: str | Path | None) -> None:
    if search not in SEARCHES:
        near = difflib.get_close_matches(search, SEARCHES, 1, cutoff=0.0)[0]
        raise BadInput(f"search {search!r} is unknown; did you mean {near!r}? known: {', '.join(SEARCHES)}")
    if (budget.eer_loss or ground.method == "eer") and not (ground.trials and ground.audio):
        raise BadInput("a budget or damage in EER needs --trials and --audio")
    for path in ground.trials:
        readable(path)
    if out is not None and not Path(out).resolve().parent.is_dir():
        raise BadInput(f"{out}: the folder {Path(out).resolve().parent} does not exist; make it first")


# ---- the desk where choices are weighed


class Desk:
    """A float network, the formats its layers can have, and what they take; damages once they are known."""

    def __init__(self, loaded: checkpoints.Checkpoint, specs: Mapping[int, Spec]) -> None:
        self.loaded, self.specs = loaded, dict(specs)
        self.front_end = preset(loaded.about["front_end"])
        quant.positive_gains(loaded.network, torch.randn(2, self.front_end.rows, 64))
        self.shapes: Shapes = quant.quantizable(loaded.network)
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
        network = self.loaded.network
        with quantized(network, plan):
            coded = quant.coded(network)
        known = {"plan": str(plan), "provenance": self.loaded.about, "licence": self.loaded.about.get("licence", "")}
        proto = writer.build(network.eval(), self.front_end, coded, [talker(2.0, seed=0)], metadata=known)
        return int(proto.ByteSize()) + SPARE

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
            export(self.loaded.path, out=path, float_weights=True)
            base = _mean_eer(path, ground)

            def passes(rung: float) -> bool:
                plan = self.plan(self.at_bits(rung, search).picks)
                compress(self.loaded.path, out=path, plan=str(plan), data=ground.data, seed=ground.seed, **compression)
                eer = _mean_eer(path, ground)
                tried.append({"bits_per_weight": rung, "bytes": path.stat().st_size, "eer": eer})
                return loss.allows(eer, base)

            best = narrowest(rungs, passes)
        more = {"float_eer": base, "evaluations": len(tried) + 1, "tried": tried}
        if best is None:
            least = tried[0]["eer"] - base
            raise BadPlan(
                f"even {widths[-1]} bits a weight raise the EER by {100 * least:.3f} per cent absolute,"
                f" {100 * least / max(base, 1e-12):.2f} % relative; allow at least that"
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
