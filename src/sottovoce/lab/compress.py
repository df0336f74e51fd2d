"""Checkpoint + plan → the file that ships. Post-training quantization is training with no steps: the same path."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sottovoce import export as writer
from sottovoce import quant
from sottovoce.audio.features import FrontEndConfig, preset
from sottovoce.audio.talker import talker
from sottovoce.audio.wav import read
from sottovoce.bits.formats import FORMATS, Coded
from sottovoce.bits.plan import Plan
from sottovoce.errors import BadAudio, BadInput, BadList
from sottovoce.export import metadata as metadata_of
from sottovoce.lab import checkpoint as checkpoints
from sottovoce.lab.evaluate import evaluate_many
from sottovoce.lab.lists import read_manifest
from sottovoce.networks.frontend import FrontEnd
from sottovoce.runtime.engine import Model
from sottovoce.runtime.engine import load as load_model

RATE = 16000
LONGEST_S = 6.0  # of a recording that ranges are observed on
BATCH = 16  # crops in a batch that batch norm is re-estimated on
CROP_S = 2.0

Wave = NDArray[np.float32]


def compress(
    checkpoint: str | Path,
    *,
    out: str | Path,
    bits: int | None = None,
    plan: str | None = None,
    data: str | Path | None = None,
    trials: Sequence[str | Path] = (),
    audio: str | Path | None = None,
    utterances: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Quantize a checkpoint and write one .onnx; returns a report.

    bits or plan (text): the formats; neither for a checkpoint that was trained with a plan.   data: folder or manifest
    of unlabelled recordings for activation ranges and, below 8 bits, batch-norm statistics; without it a synthetic
    signal is used and a warning given.   trials, audio: trial lists and their root; the mean of their EER thresholds is
    stored in the file as operating point `balanced`.   Raises BadPlan, BadCheckpoint, BadList before any work; the file
    appears only whole.
    """
    began = time.monotonic()
    _check_places(out, trials, audio)
    loaded = checkpoints.load(checkpoint)
    network, front_end = loaded.network, preset(loaded.about["front_end"])
    chosen = _plan(loaded, bits, plan)
    waves = _waves(data, utterances, seed, front_end.samples(int(network.min_frames)))  # type: ignore[arg-type]
    before = _embed_all(network, front_end, waves[:32])
    trained = bool(loaded.plan)
    if not trained:
        quant.positive_gains(network, torch.randn(2, front_end.mels, 64))
        quant.attach(network, chosen)
        if data is not None and len(waves) >= BATCH and any(c.bits < 8 for c in quant.coded(network).values()):
            reestimate_norms(network, front_end, waves, seed)
    coded = quant.coded(network)
    quant.detach(network)
    report = _write(network.eval(), front_end, coded, waves, loaded, Path(out), str(chosen), trials, audio, data)
    after = _embed_all(load_model(out), front_end, waves[:32])
    cosine = np.sum(before * after, axis=1)
    return {
        **report,
        "checkpoint": str(checkpoint),
        "plan": str(chosen),
        "trained_with_plan": trained,
        "observed_on": str(data) if data is not None else "synthetic signal",
        "recordings": len(waves),
        "cosine_to_checkpoint": {"mean": float(cosine.mean()), "least": float(cosine.min()), "recordings": len(cosine)},
        "seconds": round(time.monotonic() - began, 2),
    }


def export(
    checkpoint: str | Path, *, out: str | Path, float_weights: bool = False, features_in: bool = False
) -> dict[str, Any]:
    """Write a checkpoint as .onnx with no change of precision: a float network as float32 (the peer to compare with).

    float_weights is implied for float checkpoints; a quantized checkpoint without it goes through `compress`.
    features_in leaves the front end out (features [1, mels, frames] in). Raises BadCheckpoint, BadInput.
    """
    loaded = checkpoints.load(checkpoint)
    if loaded.plan and not float_weights:
        raise BadInput(f"{checkpoint}: has plan {loaded.plan!r}; use compress, or ask for float weights")
    front_end = preset(loaded.about["front_end"])
    if loaded.plan:
        quant.detach(loaded.network)
    quant.positive_gains(loaded.network, torch.randn(2, front_end.mels, 64))
    proto = writer.build(
        loaded.network.eval(),
        front_end,
        {},
        [],
        metadata=_metadata(loaded, "float"),
        activations="float",
        front_end_inside=not features_in,
    )
    writer.save(proto, out)
    return {"model": str(out), "bytes": Path(out).stat().st_size, "plan": "float", "features_in": features_in}


def reestimate_norms(
    network: nn.Module, front_end: FrontEndConfig, waves: Sequence[Wave], seed: int = 0, batches: int = 40
) -> None:
    """Replace batch-norm statistics by averages over unlabelled crops, seen through the quantized weights.

    Practice known as batch-norm re-estimation (Nagel 2022, arXiv 2203.11086, section 4.1); weights do not change.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [m.momentum for m in norms]
    features, rng = FrontEnd(front_end), np.random.default_rng([seed, 3])
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    with torch.no_grad(), click.progressbar(range(batches), label="batch norm", file=sys.stderr) as bar:
        for _ in bar:
            network(features(torch.from_numpy(np.stack([_crop(waves, rng) for _ in range(BATCH)]))))
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
        norm.eval()


def _crop(waves: Sequence[Wave], rng: np.random.Generator) -> Wave:
    wave, length = waves[int(rng.integers(len(waves)))], int(CROP_S * RATE)
    start = int(rng.integers(max(1, len(wave) - length + 1)))
    return np.resize(wave[start : start + length], length)


def _check_places(out: str | Path, trials: Sequence[str | Path], audio: str | Path | None) -> None:
    folder = Path(out).resolve().parent
    if not folder.is_dir():
        raise BadInput(f"{out}: the folder {folder} does not exist; make it first")
    if bool(trials) != (audio is not None):
        raise BadInput("trial lists and the root folder of their audio go together; give both or neither")
    for path in trials:
        if not Path(path).is_file():
            raise BadList(f"{path}: no such trial list")


def _plan(loaded: checkpoints.Checkpoint, bits: int | None, plan: str | None) -> Plan:
    if loaded.plan:
        if plan is not None and str(Plan.parse(plan)) != loaded.plan:
            raise BadInput(f"{loaded.path}: was trained with plan {loaded.plan!r}; leave --plan out")
        chosen = Plan.parse(loaded.plan)
        if bits is not None and bits not in _widths(chosen, loaded):
            raise BadInput(f"{loaded.path}: was trained with plan {loaded.plan!r}, which is not {bits} bits")
        return chosen
    shapes = quant.quantizable(loaded.network)
    if (bits is None) == (plan is None):
        raise BadInput("give the number of bits or a plan, one of the two")
    chosen = Plan.parse(plan) if plan is not None else Plan.of_bits(int(bits or 0), shapes)
    chosen.resolve(shapes)
    return chosen


def _widths(plan: Plan, loaded: checkpoints.Checkpoint) -> set[int]:
    specs = plan.resolve(quant.quantizable(loaded.network)).values()
    return {FORMATS[spec.format].bits for spec in specs if spec is not None}


def _waves(data: str | Path | None, utterances: int, seed: int, min_samples: int) -> list[Wave]:
    """Recordings that ranges are observed on, drawn by seed; unusable ones are reported and passed over."""
    if data is None:
        print("warning: no --data: activation ranges come from a synthetic signal; give recordings", file=sys.stderr)
        return [talker(3.0, seed=index) for index in range(16)]
    paths = recordings(data)
    order = np.random.default_rng([seed, 2]).permutation(len(paths))
    waves: list[Wave] = []
    with click.progressbar(order, label="reading recordings", file=sys.stderr) as bar:
        for index in bar:
            if len(waves) == utterances:
                continue
            try:
                waves.append(read(paths[index], RATE, min_samples)[: int(LONGEST_S * RATE)])
            except BadAudio as error:
                print(f"passed over: {error}", file=sys.stderr)
    if not waves:
        raise BadList(f"{data}: none of its {len(paths)} recordings can be used")
    return waves


def recordings(data: str | Path) -> list[Path]:
    """Paths of the recordings of a manifest, or of all audio files below a folder, sorted. Raises BadList."""
    root = Path(data)
    if root.is_dir():
        found = sorted(p for p in root.rglob("*") if p.suffix.lower() in {".wav", ".flac", ".ogg", ".opus", ".mp3"})
    elif root.is_file():
        found = [root.parent / row.path for row in read_manifest(root)]
    else:
        raise BadList(f"{data}: no such folder or manifest")
    if not found:
        raise BadList(f"{data}: holds no recordings (.wav, .flac, .ogg, .opus, .mp3)")
    return found


def _embed_all(model: nn.Module | Model, front_end: FrontEndConfig, waves: Sequence[Wave]) -> NDArray[np.float32]:
    """Unit embeddings (waves, dim) of a network in torch or of a file."""
    if isinstance(model, Model):
        return np.stack([model.embed(wave) for wave in waves])
    features = FrontEnd(front_end)
    with torch.no_grad():
        out = torch.cat([model(features(torch.from_numpy(wave)[None])) for wave in waves])
    return nn.functional.normalize(out).numpy()


def _metadata(loaded: checkpoints.Checkpoint, plan: str) -> dict[str, Any]:
    known = ("trained_on", "licence", "note", "recipe_sha256", "name")
    provenance = {key: loaded.about[key] for key in known if loaded.about.get(key)}
    provenance["checkpoint_sha256"] = hashlib.sha256(loaded.path.read_bytes()).hexdigest()
    provenance["network"] = loaded.about["network"]
    licence = loaded.about.get("licence", "unknown: ask whoever trained the checkpoint")
    return {"plan": plan, "provenance": provenance, "licence": licence}


def _write(
    network: nn.Module,
    front_end: FrontEndConfig,
    coded: dict[str, Coded],
    waves: Sequence[Wave],
    loaded: checkpoints.Checkpoint,
    out: Path,
    plan: str,
    trials: Sequence[str | Path],
    audio: str | Path | None,
    data: str | Path | None,
) -> dict[str, Any]:
    metadata = _metadata(loaded, plan)
    observed = f"{len(waves)} recordings" if data is not None else "synthetic signal"
    metadata["provenance"]["ranges_observed_on"] = observed
    proto = writer.build(network, front_end, coded, waves, metadata=metadata)
    report: dict[str, Any] = {}
    if trials:
        assert audio is not None
        part = out.with_name(f".{out.name}.{os.getpid()}.measured.onnx")
        try:
            writer.save(proto, part)
            report["evaluation"] = _without_model(evaluate_many(load_model(part), list(trials), audio))
        finally:
            part.unlink(missing_ok=True)
        points = {"balanced": balanced_point(report["evaluation"], trials)}
        metadata_of.write(proto, {"operating_points": points})
    writer.save(proto, out)
    weights = sum(int(np.prod(c.shape)) for c in coded.values())
    packed = sum(c.packed_bytes for c in coded.values())
    return {
        **report,
        "model": str(out),
        "bytes": out.stat().st_size,
        "weights": weights,
        "packed_bytes": packed,
        "bits_per_weight": 8 * packed / weights,
    }


def _without_model(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Drop name and hash of the file that was measured: it is not yet the one that is written."""
    names = ("model", "model_id", "model_sha256")
    kept = {key: value for key, value in evaluation.items() if key not in names}
    return {**kept, "lists": [{k: v for k, v in one.items() if k not in names} for one in evaluation["lists"]]}


def balanced_point(evaluation: dict[str, Any], trials: Sequence[str | Path]) -> dict[str, Any]:
    """Operating point where misses and false accepts are equally frequent: the mean of the lists' EER thresholds."""
    lists = evaluation["lists"]
    return {
        "threshold": float(np.mean([one["eer_threshold"] for one in lists])),
        "eer": float(np.mean([one["eer"] for one in lists])),
        "trials": int(sum(one["trials"] for one in lists)),
        "measured_on": ", ".join(f"{Path(p).name}" for p in trials),
        "rule": "mean of the lists' EER thresholds",
    }
