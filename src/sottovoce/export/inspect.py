"""What is in a file: weights back from the graph, and a description for people and programs."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from sottovoce.audio.features import FrontEndConfig
from sottovoce.bits.formats import Coded
from sottovoce.errors import BadModel, SottoError
from sottovoce.export import metadata as about
from sottovoce.export.assemble import save
from sottovoce.export.cost import Cost, costs
from sottovoce.export.forms import Form, check_form, shaped
from sottovoce.export.graph import Graph
from sottovoce.export.weights import read

SECONDS = 3.0  # of audio, for MACs and bit-operations
KEPT = (
    "plan",
    "provenance",
    "licence",
    "calibration",
    "operating_points",
    "operating_points_refused",
    "weights_sha256",
    "min_samples",
    "dim",
    "rate",
    "activations",
)


def read_weights(path: str | Path) -> dict[str, Coded]:
    """The coded weights of a file by layer, in the order of the network.

    Codes, levels and scales come from the graph itself; of the metadata only the name of each layer's spec is used.
    Raises BadModel.
    """
    return _weights(_open(path), path)


def describe(path: str | Path) -> dict[str, Any]:
    """What a file holds, as JSON-able values.

    {layers [{name, shape, format, bits, bytes, levels, macs, activation_bits, bit_operations}], float_layers, bytes,
    packed_bytes, weights, macs, bit_operations, seconds, front_end, plan, ...}; levels are left out at 8 bits, and MACs
    and bit-operations are those for `seconds` of audio. `weights_match`: whether the decoded weights have the hash in
    the metadata. Raises BadModel.
    """
    model = _open(path)
    known, coded = about.read(model), _weights(model, path)
    spent = _costs(model, coded, path)
    content = Path(path).read_bytes()
    packed = sum(entry.packed_bytes for entry in coded.values())
    return {
        "model": str(path),
        "sha256": hashlib.sha256(content).hexdigest(),
        "format_version": known["format_version"],
        "bytes": len(content),
        "packed_bytes": packed,
        "other_bytes": len(content) - packed,
        "weights": sum(entry.codes.size for entry in coded.values()),
        "seconds": SECONDS,
        "macs": sum(cost.macs for cost in spent.values()),
        "bit_operations": sum(cost.bit_operations for cost in spent.values()),
        "layers": [{**_layer(name, entry), **_spent(spent[name])} for name, entry in coded.items()],
        "float_layers": [
            {"name": name, "shape": list(cost.shape), **_spent(cost)}
            for name, cost in spent.items()
            if name not in coded
        ],
        "front_end": known.get("front_end"),
        **{name: known.get(name) for name in KEPT},
        "weights_match": about.weights_sha256(coded) == known.get("weights_sha256"),
    }


def turn(path: str | Path, form: Form, out: str | Path) -> dict[str, Any]:
    """Write a file of ours in another form; returns {model, bytes, plan, and the form}. Raises BadModel, BadInput."""
    check_form(form)
    model = _open(path)
    save(shaped(model, form), out)
    return {"model": str(out), "bytes": Path(out).stat().st_size, "plan": about.read(model).get("plan"), **asdict(form)}


def _layer(name: str, coded: Coded) -> dict[str, Any]:
    return {
        "name": name,
        "shape": list(coded.shape),
        "format": str(coded.spec),
        "bits": coded.bits,
        "bytes": coded.packed_bytes,
        "levels": coded.levels.tolist() if coded.bits < 8 else None,
    }


def _spent(cost: Cost) -> dict[str, int]:
    return {"macs": cost.macs, "activation_bits": cost.activation_bits, "bit_operations": cost.bit_operations}


def _costs(model: onnx.ModelProto, coded: dict[str, Coded], path: str | Path) -> dict[str, Cost]:
    try:
        return costs(Graph.of(model), coded, FrontEndConfig(**about.read(model)["front_end"]), SECONDS)
    except Exception as error:  # onnxruntime has no public base class for its errors
        raise BadModel(f"{path}: cannot be run ({' '.join(str(error).split())[:200]}); get the file again") from None


def _open(path: str | Path) -> onnx.ModelProto:
    try:
        model = onnx.load_model_from_string(Path(path).read_bytes())
        known = about.read(model)
    except (OSError, DecodeError, ValueError) as error:
        raise BadModel(f"{path}: cannot be read as an .onnx of ours ({error}); check the path") from None
    if known.get("format_version") != about.FORMAT_VERSION:
        raise BadModel(f"{path}: not written by this version of sottovoce; make it with `sotto compress`")
    return model


def _weights(model: onnx.ModelProto, path: str | Path) -> dict[str, Coded]:
    try:
        return read(Graph.of(model), about.read(model)["layers"])
    except (KeyError, ValueError, SottoError) as error:
        raise BadModel(f"{path}: its weights cannot be read back ({error}); get the file again") from None
