"""Where in a network a plan does its damage: weights, activations, one layer at a time, one stage kept in float.

Selective retention is that of arXiv 2606.08078: the whole network quantized, one stage kept in float; what it wins back
says how much of the damage sits there. The kept stage is simply not quantized (our reading). One layer at a time is
the analysis of arXiv 2407.08991. What is measured is kept in a file, so that a stopped call goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from sottovoce import quant
from sottovoce.audio.features import preset
from sottovoce.bits.plan import Plan, Spec, mean_bits
from sottovoce.errors import BadInput, BadPlan
from sottovoce.lab import checkpoint as checkpoints
from sottovoce.lab.bench import machine, versions
from sottovoce.lab.compress import RATE, recordings
from sottovoce.lab.damage import CROP_S, Damage, Ground, read_crops, trial_eer
from sottovoce.lab.drift import check_out
from sottovoce.lab.evaluate import readable
from sottovoce.lab.groups import Group, stages
from sottovoce.lab.layers import activation_drift, weight_figures
from sottovoce.lab.run import write_text
from sottovoce.networks.cost import macs
from sottovoce.quant import sensitivity
from sottovoce.scores.ranks import rank_correlation

WHAT = (
    "where a plan does its damage; weights at their nearest levels, activations in float; drift = mean of 1 - cosine "
    "to the float network's embeddings on recordings of --data; EER = mean over the lists, a fraction"
)
FLOAT = Plan((("*", None),))
EER_OF = ("stages", "layers")
BATCH = 8  # crops that go through the network together

Row = dict[str, Any]


def analyze(
    checkpoint: str | Path,
    *,
    bits: int | None = None,
    plan: str | None = None,
    data: str | Path,
    trials: Sequence[str | Path] = (),
    audio: str | Path | None = None,
    utterances: int = 32,
    seed: int = 0,
    eer_of: str = "stages",
    out: str | Path | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Analyse a float checkpoint under a plan; returns the report, which `out` (JSON) also holds.

    bits or plan (text): one of them.   data: folder or manifest of unlabelled recordings; `utterances` of them, 3 s of
    each, drawn by seed, measure drift and activations.   trials, audio: lists and their root, for EER beside drift.
    eer_of: of EER_OF, what EER is measured of: stages kept in float, or every layer too, which takes long.
    What is measured is kept in `out`.measured.json; the same call goes on from there. Raises BadInput, BadPlan,
    BadList, BadCheckpoint before any long work.
    """
    check_out(out)
    loaded = checkpoints.load(checkpoint)
    chosen, specs = _plan(loaded, bits, plan)
    if bool(trials) != (audio is not None):
        raise BadInput("trial lists and the root folder of their audio go together: give both or neither")
    lists = [readable(Path(path)) for path in trials]
    root = Path(audio) if audio is not None else None
    ground = Ground("drift", Path(data), tuple(map(Path, trials)), root, utterances, seed)
    network, front_end = loaded.network, preset(loaded.about["front_end"])
    quant.positive_gains(network, torch.randn(2, front_end.rows, 64))
    features, used = read_crops(ground, recordings(data), front_end)
    weights = weight_figures(network, chosen)
    with click.progressbar(length=len(features), label="activations", file=sys.stderr) as bar:
        moved = activation_drift(network, chosen, list(features.split(1)), lambda: bar.update(1))
    measures = {"drift": sensitivity.drift_from(network, features.split(BATCH))}
    if lists:
        measures["eer"] = trial_eer(loaded, ground)
    groups = stages(network)
    kept_in = Path(out).with_name(f"{Path(out).name}.measured.json") if out is not None else None
    settings = {**ground.settings(loaded.path), "plan": str(chosen), "groups": [group.name for group in groups]}
    wanted = _tables(network, chosen, specs, groups, measures, eer_of == "layers")
    found = _measure(wanted, Damage.kept(kept_in, settings), kept_in)
    cost = macs(network, front_end.rows, front_end.frames(int(CROP_S * RATE)))
    rows = _layers(network, specs, groups, weights, moved, cost, found)
    report = {
        "what": WHAT,
        "command": command,
        "machine": machine(),
        "versions": versions(),
        "checkpoint": {"name": Path(checkpoint).name, "sha256": settings["sha256"][str(loaded.path)]},
        "plan": str(chosen),
        "bits_per_weight": mean_bits(specs, quant.quantizable(network)),
        "data": {"name": Path(data).name, "recordings": len(used), "seconds_of_each": CROP_S, "seed": seed},
        "lists": [{"list": one.name, "list_sha256": one.sha256, "trials": len(one)} for one in lists],
        "seconds_of_macs": CROP_S,
        "whole": _totals(found),
        "stages": [_stage(group, rows, found) for group in groups],
        "layers": rows,
        "correlations": _correlations(rows),
    }
    if out is not None:
        write_text(Path(out), json.dumps(report, indent=1) + "\n")
    return report


def _plan(loaded: checkpoints.Checkpoint, bits: int | None, plan: str | None) -> tuple[Plan, dict[str, Spec | None]]:
    if loaded.plan:
        raise BadInput(f"{loaded.path}: was trained with plan {loaded.plan!r}; analysis starts from a float checkpoint")
    if (bits is None) == (plan is None):
        raise BadInput("give the number of bits or a plan, one of the two")
    shapes = quant.quantizable(loaded.network)
    chosen = Plan.parse(plan) if plan is not None else Plan.of_bits(int(bits or 0), shapes)
    specs = chosen.resolve(shapes)
    if not any(specs.values()):
        raise BadPlan(f"plan {chosen} keeps every layer in float; there is no damage to look for")
    return chosen, specs


# ---- what is measured

Measured = Callable[[Sequence[str]], Iterable[tuple[str, float]]]  # names → (name, value), one after the other


def _measure(tables: Mapping[str, tuple[list[str], Measured]], found: Damage, kept_in: Path | None) -> Damage:
    """Fill tables, name by name, with what they do not hold yet; everything known is kept after each."""
    left = {
        place: [name for name in names if name not in found.values.get(place, {})]
        for place, (names, _) in tables.items()
    }
    with click.progressbar(length=sum(map(len, left.values())), label="layers and stages", file=sys.stderr) as bar:
        for place, (_, measured) in tables.items():
            for name, value in measured(left[place]):
                found.values.setdefault(place, {})[name] = value
                found.keep(kept_in)
                bar.update(1)
    return found


def _tables(
    network: nn.Module,
    plan: Plan,
    specs: Mapping[str, Spec | None],
    groups: Sequence[Group],
    measures: Mapping[str, sensitivity.Measure],
    eer_of_layers: bool,
) -> dict[str, tuple[list[str], Measured]]:
    """What is asked: the float and the quantized network, one stage or layer kept in float, one layer quantized.

    returns: table, as in "drift alone" → the names in it, and how they are measured. What is quick stands first.
    """
    layers = [name for name, spec in specs.items() if spec is not None]
    kept = {group.name: group.layers for group in groups if set(group.layers) & set(layers)}
    single = {name: (name,) for name in layers}
    plans = {"float": FLOAT, "quantized": plan}
    stage_tables, layer_tables = {}, {}
    for name, measure in measures.items():
        stage_tables[f"{name} whole"] = ([*plans], partial(_whole, network, plans, measure))
        stage_tables[f"{name} without stage"] = ([*kept], partial(_without, network, plan, kept, measure))
        if name == "drift" or eer_of_layers:
            layer_tables[f"{name} alone"] = (layers, partial(_alone, network, specs, measure))
            layer_tables[f"{name} without layer"] = (layers, partial(_without, network, plan, single, measure))
    return {**stage_tables, **layer_tables}


def _whole(
    network: nn.Module, plans: Mapping[str, Plan], measure: sensitivity.Measure, names: Sequence[str]
) -> Iterable[tuple[str, float]]:
    return ((name, sensitivity.measured(network, plans[name], measure)) for name in names)


def _without(
    network: nn.Module,
    plan: Plan,
    groups: Mapping[str, Sequence[str]],
    measure: sensitivity.Measure,
    names: Sequence[str],
) -> Iterable[tuple[str, float]]:
    return sensitivity.selective_retention(network, plan, {name: groups[name] for name in names}, measure)


def _alone(
    network: nn.Module, specs: Mapping[str, Spec | None], measure: sensitivity.Measure, names: Sequence[str]
) -> Iterable[tuple[str, float]]:
    """Each layer with its own spec, all other pairs of layer and spec passed over."""
    every = list(dict.fromkeys(spec for spec in specs.values() if spec is not None))
    over = {(layer, spec) for layer in specs for spec in every if layer not in names or spec != specs[layer]}
    for name, _, value in sensitivity.one_at_a_time(network, every, measure, over):
        yield name, value


# ---- what is told


def _layers(
    network: nn.Module,
    specs: Mapping[str, Spec | None],
    groups: Sequence[Group],
    weights: Mapping[str, Row],
    moved: Mapping[str, Row],
    cost: Mapping[str, int],
    found: Damage,
) -> list[Row]:
    """A row for each layer of the network; one that the plan keeps in float has no figures of its weights."""
    shapes = quant.quantizable(network)
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    stage_of = {layer: group.name for group in groups for layer in group.layers}
    rows = []
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        row = {"layer": name, "stage": stage_of.get(name), "shape": list(shape), "parameters": count}
        row |= {"share": count / total, "macs": cost.get(name, 0), "weights": weights.get(name)}
        row |= {"activations": moved[name], "alone": None, "kept_in_float": None}
        if specs[name] is not None:
            row["alone"] = _alone_figures(name, found)
            row["kept_in_float"] = _retention(name, "without layer", found)
        rows.append(row)
    return rows


def _alone_figures(layer: str, found: Damage) -> Row:
    row: Row = {"drift": found.values["drift alone"][layer]}
    if layer in found.values.get("eer alone", {}):
        row["eer_loss"] = found.values["eer alone"][layer] - found.values["eer whole"]["float"]
    return row


def _retention(name: str, place: str, found: Damage) -> Row:
    """Drift and EER with this stage or layer kept in float, and the share of the damage that it wins back."""
    row: Row = {}
    for measure in ("drift", "eer"):
        if name in found.values.get(f"{measure} {place}", {}):
            value = found.values[f"{measure} {place}"][name]
            whole = found.values[f"{measure} whole"]
            lost = whole["quantized"] - whole["float"]
            row[measure] = value
            row[f"{measure}_recovery"] = (whole["quantized"] - value) / lost if lost > 0 else None
    return row


def _stage(group: Group, rows: Sequence[Row], found: Damage) -> Row:
    inside = [row for row in rows if row["layer"] in group.layers]
    return {
        "stage": group.name,
        "layers": list(group.layers),
        **{name: sum(row[name] for row in inside) for name in ("parameters", "share", "macs")},
        "kept_in_float": _retention(group.name, "without stage", found)
        if group.name in found.values["drift without stage"]
        else None,
    }


def _totals(found: Damage) -> Row:
    """The whole network: drift under the plan; EER in float, under the plan, and the loss."""
    row: Row = {"drift": found.values["drift whole"]["quantized"]}
    if "eer whole" in found.values:
        eer = found.values["eer whole"]
        row |= {"float_eer": eer["float"], "eer": eer["quantized"], "eer_loss": eer["quantized"] - eer["float"]}
    return row


CAUSES: dict[str, Callable[[Row], float]] = {  # what might explain damage
    "relative error of the weights": lambda row: row["weights"]["relative_error"],
    "squared error of the weights": lambda row: row["weights"]["squared_error"],
    "mean error of the weights": lambda row: row["weights"]["mean_error"],
    "kurtosis of the weights": lambda row: row["weights"]["kurtosis"],
    "parameters": lambda row: row["parameters"],
    "MACs": lambda row: row["macs"],
    "local activation error": lambda row: row["activations"]["local"]["relative_error"],
    "propagated activation error": lambda row: row["activations"]["propagated"]["relative_error"],
}
DAMAGES: dict[str, Callable[[Row], float | None]] = {
    "drift, layer alone": lambda row: row["alone"]["drift"],
    "drift won back, layer in float": lambda row: row["kept_in_float"]["drift_recovery"],
    "EER loss, layer alone": lambda row: row["alone"].get("eer_loss"),
    "EER won back, layer in float": lambda row: row["kept_in_float"].get("eer_recovery"),
}
SIZES = ("parameters", "MACs")  # against which arXiv 2210.17326 draws the mean error of the weights


def _correlations(rows: Sequence[Row]) -> list[Row]:
    """Rank correlations over layers, of causes with damages and of the mean error of the weights with size."""
    kept = [row for row in rows if row["weights"] is not None]
    told = [
        _correlation(cause, CAUSES[cause], name, damage, kept)
        for name, damage in DAMAGES.items()
        if any(damage(row) is not None for row in kept)
        for cause in CAUSES
    ]
    mean = "mean error of the weights"
    return told + [_correlation(size, CAUSES[size], mean, CAUSES[mean], kept) for size in SIZES]


def _correlation(
    cause: str,
    x: Callable[[Row], float],
    damage: str,
    y: Callable[[Row], float | None],
    rows: Sequence[Row],
) -> Row:
    pairs = [(x(row), value) for row in rows if (value := y(row)) is not None]
    found, p = rank_correlation(*zip(*pairs, strict=True)) if pairs else (None, None)
    return {"of": cause, "with": damage, "layers": len(pairs), "spearman": found, "p": p}
