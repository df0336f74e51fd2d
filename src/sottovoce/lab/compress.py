"""Checkpoint + plan → the file that ships. Post-training quantization is training with no steps: the same path."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import soxr
from numpy.typing import NDArray

from sottovoce import export as writer
from sottovoce import quant
from sottovoce.audio.talker import talker
from sottovoce.audio.wav import read
from sottovoce.bits.formats import Coded
from sottovoce.bits.plan import Plan, plan_bytes
from sottovoce.errors import BadAudio, BadInput, BadList
from sottovoce.export import metadata as metadata_of
from sottovoce.export.forms import Form, check_form, shaped
from sottovoce.lab import account, posttraining, pseudo
from sottovoce.lab.calibrate import fitted, pooled, scored_lists
from sottovoce.lab.lists import read_manifest
from sottovoce.lab.subject import Subject, Trained, opened
from sottovoce.quant.attach import stored
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
    front_end: str | None = None,
    bare: bool = False,
) -> dict[str, Any]:
    """Quantize a checkpoint, or a published .onnx that takes features, and write one .onnx; returns a report.

    bits or plan (text): the formats; neither for a checkpoint that was trained with a plan.   data: folder or manifest
    of unlabelled recordings for activation ranges and for `method`, a name of posttraining.METHODS: what brings a float
    network's quantized weights nearer to it; without data a synthetic signal is used, weights are rounded to the
    nearest level, and a warning given.   trials, audio: trial lists and their root; the file's scores on them give its
    calibration and its operating points, which are stored in it. Without them pseudo-trials of `data` do, and the file
    says so.   front_end: preset to put in front of a published .onnx, where its metadata do not say.   bare: no
    calibration and no account of damage and speed, for a file that is only tried.   Raises BadPlan, BadCheckpoint,
    BadModel, BadList, BadInput before any work; the file appears only whole.
    """
    began = time.monotonic()
    posttraining.check_method(method)
    check_places(out, trials, audio)
    subject = opened(checkpoint, front_end)
    shapes = quant.quantizable(subject.network)
    chosen = _plan(subject, bits, plan, shapes)
    waves = read_waves(data, utterances, seed, subject.front_end.samples(subject.min_frames))
    apart = posttraining.held_out(waves)[:JUDGED]
    before, weights = subject.embeddings(apart), _weights(subject)
    float_proto = subject.file({}, [], {}, "float")
    stages = [] if subject.plan else subject.improve(chosen, waves, method if data is not None else None, seed)
    coded = subject.coded()
    proto = subject.file(coded, observable(waves), _metadata(subject, chosen, waves, data), "uint8")
    if bare:
        writer.save(proto, out)
        report: dict[str, Any] = {"damage": {}}
    else:
        report = _delivered(proto, float_proto, Path(out), trials, audio, waves if data is not None else [], seed)
    model = load_model(out)
    cosine = np.sum(before * np.stack([model.embed(wave) for wave in apart]), axis=1)
    damage = {"drift": float(1 - cosine.mean()), "weights": account.weight_error(coded, weights), **report["damage"]}
    return {
        **_sizes(Path(out), coded),
        **report,
        **_layers(subject, chosen, shapes, coded, "plan" if bits is None else "bits"),
        "checkpoint": str(checkpoint),
        "trained_with_plan": bool(subject.plan),
        "method": stages[-1].name if stages else None,
        "stages": [asdict(stage) for stage in stages],
        "observed_on": str(data) if data is not None else "synthetic signal",
        "recordings": len(waves),
        "cosine_to_checkpoint": {"mean": float(cosine.mean()), "least": float(cosine.min()), "recordings": len(cosine)},
        "damage": damage,
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
    subject = Trained(checkpoint)
    if subject.plan and not float_weights:
        raise BadInput(f"{checkpoint}: has plan {subject.plan!r}; use compress, or ask for float weights")
    inside = not (form.features_in or form.engine)
    proto = subject.file({}, [], {"plan": "float", **subject.metadata()}, "float", inside)
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


def _plan(subject: Subject, bits: int | None, plan: str | None, shapes: Mapping[str, tuple[int, ...]]) -> Plan:
    if subject.plan:
        if plan is not None and str(Plan.parse(plan)) != subject.plan:
            raise BadInput(f"{subject.path}: was trained with plan {subject.plan!r}; leave --plan out")
        chosen = Plan.parse(subject.plan)
        if bits is not None and bits not in {spec.bits for spec in chosen.resolve(shapes).values() if spec is not None}:
            raise BadInput(f"{subject.path}: was trained with plan {subject.plan!r}, which is not {bits} bits")
        return chosen
    if (bits is None) == (plan is None):
        raise BadInput("give the number of bits or a plan, one of the two")
    chosen = Plan.parse(plan) if plan is not None else Plan.of_bits(int(bits or 0), shapes)
    chosen.resolve(shapes)
    return chosen


def _weights(subject: Subject) -> dict[str, NDArray[np.float32]]:
    """The weights before anything is done to them, by layer."""
    network = subject.network
    return {name: stored(network.get_submodule(name)).detach().numpy().copy() for name in quant.quantizable(network)}


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


def _metadata(subject: Subject, plan: Plan, waves: Sequence[Wave], data: str | Path | None) -> dict[str, Any]:
    found = subject.metadata()
    told = f"{len(waves)} recordings, one in {STRESSED} under stress too" if data is not None else "synthetic signal"
    return {"plan": str(plan), **found, "provenance": {**found["provenance"], "ranges_observed_on": told}}


def _layers(
    subject: Subject, plan: Plan, shapes: Mapping[str, tuple[int, ...]], coded: Mapping[str, Coded], chosen_by: str
) -> dict[str, Any]:
    """Of the report: the plan, and the layers that stayed wide or in float."""
    told = subject.told()
    unreached = told.pop("unreached", [])
    return {
        "plan": str(plan),
        "plan_bytes": plan_bytes(plan, shapes),
        "wide_layers": account.kept_wide(plan, shapes, chosen_by),
        "float_layers": [name for name in shapes if name not in coded] + unreached,
        **told,
    }


def _sizes(out: Path, coded: Mapping[str, Coded]) -> dict[str, Any]:
    weights = sum(int(np.prod(c.shape)) for c in coded.values())
    packed = sum(c.packed_bytes for c in coded.values())
    return {
        "model": str(out),
        "bytes": out.stat().st_size,
        "weights": weights,
        "packed_bytes": packed,
        "bits_per_weight": 8 * packed / weights,
    }


def _delivered(
    proto: onnx.ModelProto,
    float_proto: onnx.ModelProto,
    out: Path,
    trials: Sequence[str | Path],
    audio: str | Path | None,
    waves: Sequence[Wave],
    seed: int,
) -> dict[str, Any]:
    """Write a built model with the calibration and the points that trials or pseudo-trials give, where they do.

    float_proto: the same network in float, for what is told beside it.   waves: unlabelled recordings, maybe none.
    returns: of the report `evaluation`, `calibration` and its points, `damage`, `speed`.
    """
    parts = [out.with_name(f".{out.name}.{os.getpid()}.{name}.onnx") for name in ("measured", "float")]
    try:
        for one, part in zip((proto, float_proto), parts, strict=True):
            writer.save(one, part)
        model, reference = map(load_model, parts)
        entries, damage = _from_pseudo_trials(model, reference, waves, seed)
        told: dict[str, Any] = {}
        if trials:
            assert audio is not None
            entries, told = _from_trials(model, trials, audio, parts[0])
        if entries:
            metadata_of.write(proto, entries)
        speed = account.speed(model, reference)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    writer.save(proto, out)
    return {**told, **entries, "damage": damage, "speed": speed}


def _from_trials(
    model: Model, trials: Sequence[str | Path], audio: str | Path, part: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Entries of the metadata, none where nothing can be fitted, and the evaluation."""
    scored, evaluation = scored_lists(model, list(trials), audio, part)
    try:
        entries, _ = fitted(pooled(scored))
    except BadInput as error:  # of a ruined network: the file is worth having, to see what ruined it
        print(f"warning: no calibration and no operating points are stored: {error}", file=sys.stderr)
        entries = {}
    return entries, {"evaluation": _without_model(evaluation)}


def _from_pseudo_trials(
    model: Model, reference: Model, waves: Sequence[Wave], seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Entries of the metadata, and what the pseudo-trials say of damage; none of both where they are too few."""
    if not waves:
        return {}, {}
    try:
        crops = pseudo.cut(waves, model.rate, model.min_samples)
        trials = pseudo.scored(model, crops)
        damage = account.score_damage(trials, pseudo.scored(reference, crops))
    except BadInput as error:
        print(f"warning: no pseudo-calibration: {error}", file=sys.stderr)
        return {}, {}
    try:
        return pseudo.calibrated(trials, crops, model.rate, seed), {"pseudo_trials": damage}
    except BadInput as error:
        print(f"warning: no calibration and no operating points are stored: {error}", file=sys.stderr)
        return {}, {"pseudo_trials": damage}


def _without_model(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Drop name and hash of the file that was measured: it is not yet the one that is written."""
    names = ("model", "model_id", "model_sha256")
    kept = {key: value for key, value in evaluation.items() if key not in names}
    return {**kept, "lists": [{k: v for k, v in one.items() if k not in names} for one in evaluation["lists"]]}
