"""Checkpoint + plan → the file that ships. Post-training quantization is training with no steps: the same path."""

from __future__ import annotations

import copy
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import soxr
import torch
from numpy.typing import NDArray
from torch import nn

from sottovoce import export as writer
from sottovoce import quant
from sottovoce.audio.features import FrontEndConfig, preset
from sottovoce.audio.talker import talker
from sottovoce.audio.wav import read
from sottovoce.bits.formats import FORMATS, Coded
from sottovoce.bits.plan import Plan, plan_bytes
from sottovoce.errors import BadAudio, BadInput, BadList
from sottovoce.export import metadata as metadata_of
from sottovoce.export.forms import Form, check_form, shaped
from sottovoce.lab import checkpoint as checkpoints
from sottovoce.lab import posttraining
from sottovoce.lab.calibrate import fitted, pooled, scored_lists
from sottovoce.lab.lists import read_manifest
from sottovoce.networks.frontend import FrontEnd
from sottovoce.runtime.engine import Model
from sottovoce.runtime.engine import load as load_model

RATE = 16000
LONGEST_S = 6.0  # of a recording
OBSERVED_S = 3.0  # of a recording, for activation ranges
STRESSED = 5  # of so many recordings one is observed a second time under stress
JUDGED = 32  # held-out recordings that the file is compared with its checkpoint on

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
    method: str = posttraining.DEFAULT,
) -> dict[str, Any]:
    """Quantize a checkpoint and write one .onnx; returns a report.

    bits or plan (text): the formats; neither for a checkpoint that was trained with a plan.   data: folder or manifest
    of unlabelled recordings for activation ranges and for `method`, a name of posttraining.METHODS: what brings a float
    checkpoint's quantized weights nearer to it; without data a synthetic signal is used, weights are rounded to the
    nearest level, and a warning given.   trials, audio: trial lists and their root; the file's scores on them give its
    calibration and its operating points, which are stored in it.   Raises BadPlan, BadCheckpoint, BadList, BadInput
    before any work; the file appears only whole.
    """
    began = time.monotonic()
    posttraining.check_method(method)
    check_places(out, trials, audio)
    loaded = checkpoints.load(checkpoint)
    network, front_end = loaded.network, preset(loaded.about["front_end"])
    chosen = _plan(loaded, bits, plan)
    waves = read_waves(data, utterances, seed, front_end.samples(int(network.min_frames)))  # type: ignore[arg-type]
    apart = posttraining.held_out(waves)[:JUDGED]
    before = _embed_all(network, front_end, apart)
    trained = bool(loaded.plan)
    stages: list[posttraining.Stage] = []
    if not trained:
        quant.positive_gains(network, torch.randn(2, front_end.rows, 64))
        teacher = copy.deepcopy(network)
        quant.attach(network, chosen)
        if data is not None:
            stages = posttraining.improve(network, teacher, front_end, waves, method=method, seed=seed)
    coded, shapes = quant.coded(network), quant.quantizable(network)
    quant.detach(network)
    report = _write(network.eval(), front_end, coded, waves, loaded, Path(out), str(chosen), trials, audio, data)
    after = _embed_all(load_model(out), front_end, apart)
    cosine = np.sum(before * after, axis=1)
    return {
        **report,
        "checkpoint": str(checkpoint),
        "plan": str(chosen),
        "plan_bytes": plan_bytes(chosen, shapes),
        "trained_with_plan": trained,
        "method": method if stages else None,
        "stages": [asdict(stage) for stage in stages],
        "observed_on": str(data) if data is not None else "synthetic signal",
        "recordings": len(waves),
        "cosine_to_checkpoint": {"mean": float(cosine.mean()), "least": float(cosine.min()), "recordings": len(cosine)},
        "seconds": round(time.monotonic() - began, 2),
    }


def export(
    checkpoint: str | Path,
    *,
    out: str | Path,
    float_weights: bool = False,
    features_in: bool = False,
    form: Form | None = None,
) -> dict[str, Any]:
    """Write a checkpoint as .onnx with no change of precision: a float network as float32 (the peer to compare with).

    float_weights is implied for float checkpoints; a quantized checkpoint without it goes through `compress`.
    features_in leaves the front end out (features [1, mels, frames] in); `form` says that and more. Raises
    BadCheckpoint, BadInput.
    """
    form = form or Form(features_in=features_in)
    check_form(form)
    loaded = checkpoints.load(checkpoint)
    if loaded.plan and not float_weights:
        raise BadInput(f"{checkpoint}: has plan {loaded.plan!r}; use compress, or ask for float weights")
    front_end = preset(loaded.about["front_end"])
    if loaded.plan:
        quant.detach(loaded.network)
    quant.positive_gains(loaded.network, torch.randn(2, front_end.rows, 64))
    proto = writer.build(
        loaded.network.eval(),
        front_end,
        {},
        [],
        metadata=_metadata(loaded, "float"),
        activations="float",
        front_end_inside=not (form.features_in or form.engine),
    )
    writer.save(shaped(proto, form), out)
    return {"model": str(out), "bytes": Path(out).stat().st_size, "plan": "float", **asdict(form)}


def check_places(out: str | Path, trials: Sequence[str | Path], audio: str | Path | None) -> None:
    """Refuse places that a compression could not read from or write to. Raises BadInput, BadList."""
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


def read_waves(data: str | Path | None, utterances: int, seed: int, min_samples: int) -> list[Wave]:
    """Recordings that ranges are observed on, drawn by seed; unusable ones are reported and passed over."""
    if data is None:
        print(
            "warning: no --data: activation ranges come from a synthetic signal, "
            "and weights are rounded to the nearest level; give recordings",
            file=sys.stderr,
        )
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


def observable(waves: Sequence[Wave]) -> list[Wave]:
    """The starts of recordings, and of one in five a second version that is harder on ranges.

    Extremes are rare in any 200 recordings and ruin those that have them. So ranges also see, in turn: digital silence
    in the middle, a telephone's band, and clipping at a fifth of the peak.
    """
    short = [wave[: int(OBSERVED_S * RATE)] for wave in waves]
    return short + [_STRESS[i % len(_STRESS)](wave) for i, wave in enumerate(short[::STRESSED])]


def _silenced(wave: Wave) -> Wave:
    third = len(wave) // 3
    return np.concatenate([wave[:third], np.zeros(third, np.float32), wave[2 * third :]])


def _telephone(wave: Wave) -> Wave:
    there = soxr.resample(wave, RATE, RATE // 2)
    return np.asarray(soxr.resample(there, RATE // 2, RATE), dtype=np.float32)


def _clipped(wave: Wave) -> Wave:
    edge = np.float32(0.2) * np.abs(wave).max()
    return np.clip(wave, -edge, edge)


_STRESS = (_silenced, _telephone, _clipped)


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
    observed = observable(waves)
    told = f"{len(waves)} recordings, one in {STRESSED} under stress too" if data is not None else "synthetic signal"
    metadata["provenance"]["ranges_observed_on"] = told
    proto = writer.build(network, front_end, coded, observed, metadata=metadata)
    return deliver(proto, coded, out, trials, audio)


def deliver(
    proto: onnx.ModelProto,
    coded: dict[str, Coded],
    out: Path,
    trials: Sequence[str | Path],
    audio: str | Path | None,
) -> dict[str, Any]:
    """Write a built model, with the threshold that the trials give where there are any; returns the report's sizes."""
    report: dict[str, Any] = {}
    if trials:
        assert audio is not None
        part = out.with_name(f".{out.name}.{os.getpid()}.measured.onnx")
        try:
            writer.save(proto, part)
            scored, evaluation = scored_lists(load_model(part), list(trials), audio, part)
        finally:
            part.unlink(missing_ok=True)
        report["evaluation"] = _without_model(evaluation)
        try:
            entries, told = fitted(pooled(scored))
        except BadInput as error:  # of a ruined network: the file is worth having, to see what ruined it
            print(f"warning: no calibration and no operating points are stored: {error}", file=sys.stderr)
        else:
            metadata_of.write(proto, entries)
            report |= told
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
