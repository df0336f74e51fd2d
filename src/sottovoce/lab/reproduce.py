"""A paper's table with our column beside it: sizes worked out on the spot, error rates from results that were measured.

Where a result is missing, the report says which corpus it needs, where that goes, and which commands make it.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from sottovoce import networks, quant
from sottovoce.bits.memory import MIB, memory_table
from sottovoce.errors import BadInput
from sottovoce.lab.groups import stages
from sottovoce.lab.papers import CORPORA, TABLES, TESTS, Row, Table

LISTS = {  # column → part of the name that a trial list has in results, in small letters
    "O": "voxceleb1-o cleaned",
    "E": "voxceleb1-e cleaned",
    "H": "voxceleb1-h cleaned",
    "CN-Celeb": "cn-celeb 1 evaluation",
    "CommonBench": "commonbench",
}
MEANS = {
    "in-domain EER": ("O", "E", "H"),
    "out-of-domain EER": ("CommonBench", "CN-Celeb"),
    "mean EER": ("O", "E", "H", "CommonBench", "CN-Celeb"),
}
SPEAKERS = 5994  # of VoxCeleb2 dev: rows of the classifier that D's memory counts

Ours = dict[str, float]  # by column


def reproduce(name: str, *, corpora: str | Path = "corpora", results: str | Path = "results") -> dict[str, Any]:
    """A table: name, title, source, labels, columns, rows [{labels, status, paper, ours}], missing, commands, note.

    corpora: the folder with all corpora.   results: the folder with measured results: of a row, DIR/NAME/KEY.*.json as
    `sotto evaluate --json` writes them. Raises BadInput for an unknown name, and for a result that cannot be read.
    """
    if name not in TABLES:
        near = difflib.get_close_matches(name, TABLES, 1, cutoff=0.3)
        raise BadInput(f"{name!r}: {f'did you mean {near[0]!r}?' if near else 'unknown'}; known: {', '.join(TABLES)}")
    table, root = TABLES[name], Path(corpora)
    ours = {row.key: OURS[name](row, Path(results) / name) for row in table.rows}
    measured = all(set(row.values) <= set(ours[row.key]) for row in table.rows)
    return {
        "name": name,
        "title": table.title,
        "source": table.source,
        "labels": list(table.labels),
        "columns": list(table.columns),
        "rows": [
            {
                "key": row.key,
                "labels": list(row.labels),
                "status": row.status,
                "paper": dict(row.values),
                "ours": ours[row.key],
            }
            for row in table.rows
        ],
        "missing": [] if measured else missing_corpora(table, root),
        "commands": [] if measured else commands(name, table, root, Path(results)),
        "note": table.note,
    }


def known_tables() -> list[dict[str, str]]:
    """Name, title and source of every table."""
    return [{"name": name, "title": table.title, "source": table.source} for name, table in TABLES.items()]


def missing_corpora(table: Table, root: Path) -> list[dict[str, str]]:
    """The corpora of a table that are not below `root`: name, what it is, the path at which it was looked for."""
    absent = [(name, CORPORA[name]) for name in table.corpora if not (root / CORPORA[name].place).exists()]
    return [{"corpus": name, "what": corpus.what, "place": str(root / corpus.place)} for name, corpus in absent]


def commands(name: str, table: Table, root: Path, results: Path) -> list[str]:
    """What fills our column, row by row; nothing for a table that no command fills."""
    if name.startswith("paper-a"):
        lists = "--trials LIST --audio FOLDER"
        return [f"sotto sweep CHECKPOINT --data TRAIN {lists} --out {results / 'paper_a.json'}"]
    if OURS[name] in (_nothing, _memory):
        return []
    paper = "-".join(name.split("-")[:2])
    tests = [test for test in TESTS if test in table.corpora]
    return [line for row in table.rows for line in _commands(row, paper, tests, root, results / name)]


def _commands(row: Row, paper: str, tests: list[str], root: Path, results: Path) -> list[str]:
    """Train, write the file, evaluate it on every test set."""
    run = f"runs/{row.key}"
    file = f"{run}/{row.key}.onnx"
    written = f"sotto compress {run}/model.safetensors --data {root}/voxceleb2 --out {file}"
    lines = [
        f"sotto train recipes/{paper}/{row.key}.toml --run {run} --data {root}",
        f"sotto export {run} --out {file}" if row.bits == 32 else written,
    ]
    for test in tests:
        lists = " ".join(f"--trials {root}/{path}" for path in TESTS[test].lists)
        out = results / f"{row.key}.{test}.json"
        lines.append(f"sotto evaluate {file} {lists} --audio {root}/{TESTS[test].audio} --json > {out}")
    return lines


def size_mb(network: nn.Module, bits: int) -> float:
    """10^6 bytes when every weight of a convolution or linear layer takes `bits` bits and all else is float32.

    All else: biases, batch norms and their running statistics (arXiv 2210.17326, table 1, as its sizes tell).
    """
    weights = sum(map(math.prod, quant.quantizable(network).values()))
    every = [*network.parameters(), *(buffer for buffer in network.buffers() if buffer.is_floating_point())]
    return (weights * bits + (sum(tensor.numel() for tensor in every) - weights) * 32) / 8e6


def memory_mib(network: nn.Module, bits: int, classifier: bool) -> Ours:
    """Indices, codebooks and total of arXiv 2606.08078 in MiB, its classifier in float counted or not."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    values = sum(t.numel() for m in norms for t in (*m.parameters(), *m.buffers()) if t.is_floating_point())
    biases = sum(p.numel() for p in network.parameters()) - sum(p.numel() for m in norms for p in m.parameters())
    shapes = quant.quantizable(network)
    biases -= sum(map(math.prod, shapes.values()))
    size = (SPEAKERS, int(network.dim))  # type: ignore[arg-type]
    (row,) = memory_table(shapes, [bits], norm_values=values, biases=biases, classifier=size)
    total = row.total if classifier else row.network
    return {"total MiB": total / MIB, "indices MiB": row.index / MIB, "codebooks MiB": row.codebook / MIB}


def _build(preset: str) -> nn.Module:
    """A network without memory for its weights: only its shapes are needed."""
    with torch.device("meta"):
        return networks.build(preset)


def _sized(row: Row, results: Path) -> Ours:
    return {"MB": size_mb(_build(row.network), row.bits), **_measured(row, results)}


def _memory(row: Row, results: Path) -> Ours:
    found = memory_mib(_build(row.network), row.bits, classifier="as printed" in row.labels)
    return {column: found[column] for column in row.values}


def _measured(row: Row, results: Path) -> Ours:
    """EER in per cent by column."""
    return {column: 100 * one["eer"] for column, one in _by_column(row, results).items()}


def _by_column(row: Row, results: Path) -> dict[str, Mapping[str, Any]]:
    """What `sotto evaluate --json` wrote for this row, by the column its trial list belongs to."""
    found = [_json(path) for path in sorted(results.glob(f"{row.key}.*json"))]
    lists = [one for result in found for one in result.get("lists", [result])]
    try:
        return {column: one for column, known in LISTS.items() for one in lists if known in one["list"].lower()}
    except (KeyError, TypeError):
        raise BadInput(f"{results / row.key}.*.json: not results of `sotto evaluate --json`; measure again") from None


def _system(row: Row, results: Path) -> Ours:
    """Means over the test sets, where all of a mean are there."""
    found = _by_column(row, results)
    eer = {
        name: 100 * mean(found[part]["eer"] for part in parts)
        for name, parts in MEANS.items()
        if set(parts) <= set(found)
    }
    if "in-domain EER" not in eer:
        return eer
    return {**eer, "in-domain minDCF": mean(found[part]["min_dcf"]["0.01"] for part in MEANS["in-domain EER"])}


def _headline(row: Row, results: Path) -> Ours:
    best = _json(results.parent / "paper_a.json").get("chosen")
    return {"fewer bytes %": 100 * best["share_saved"], "EER change": 100 * best["eer_change"]} if best else {}


def _group(row: Row, results: Path) -> Ours:
    """Share of all parameters in the paper's network; what 8 bits did in that group of the network that was swept."""
    network = _build(row.network)
    group = next(group for group in stages(network) if group.name == row.key)
    shapes = quant.quantizable(network)
    count = sum(math.prod(shapes[layer]) for layer in group.layers)
    ours = {"share %": 100 * count / sum(parameter.numel() for parameter in network.parameters())}
    found = {one["group"]: one for one in _json(results.parent / "paper_a.json").get("table", [])}
    if row.key not in found:
        return ours
    one = found[row.key]
    return {**ours, "bytes saved %": 100 * one["share_saved"], "EER change": 100 * one["eer_change"]}


def _nothing(row: Row, results: Path) -> Ours:
    return {}


def _json(path: Path) -> Mapping[str, Any]:
    """A result, empty where it was not measured. Raises BadInput."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({error}); measure it again") from None
    if not isinstance(found, dict):
        raise BadInput(f"{path}: not a result of `sotto evaluate --json` or `sotto sweep`")
    return found


OURS: dict[str, Callable[[Row, Path], Ours]] = {
    "paper-a-headline": _headline,
    "paper-a-groups": _group,
    "paper-b": _nothing,
    "paper-c-table1": _sized,
    "paper-c-table2": _measured,
    "paper-d-system": _system,
    "paper-d-drift": _nothing,
    "paper-d-memory": _memory,
}
