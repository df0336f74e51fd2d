"""Network + recordings + budget → the plan of least damage; budgets in bytes of the file, bits a weight, or EER.

The network is a checkpoint or a published .onnx.
"""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sottovoce.bits.formats import FORMATS, WIDTHS
from sottovoce.bits.plan import Spec
from sottovoce.errors import BadInput, BadPlan
from sottovoce.lab.account import because_of_damage
from sottovoce.lab.compress import compress
from sottovoce.lab.damage import METHODS, Ground, measure_damage
from sottovoce.lab.desk import ROUNDS, Desk
from sottovoce.lab.evaluate import readable
from sottovoce.lab.limits import Budget, parse_size
from sottovoce.lab.run import write_text
from sottovoce.lab.subject import Subject, opened
from sottovoce.quant.allocate import SEARCHES


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
    front_end: str | None = None,
) -> dict[str, Any]:
    """Find the plan of least damage within a budget; returns a report with its text, sizes and a row for each layer.

    size, bits_per_weight, max_eer_loss: one of them.   data: unlabelled recordings that sensitivity is measured on.
    trials, audio: for budgets and damage by EER.   family: of the formats, as in `kmeans` or `kmeans/codebook`; 8 bits
    are uniform where a family of codebooks is asked.   out: where the plan is written.   cache: the table of damages,
    with which a later call goes on; by default beside `out`.   compression: settings of `compress` for the files that a
    budget by EER tries.   front_end: preset of a published .onnx, where its metadata do not say.
    Raises BadInput, BadPlan, BadList, BadModel before any long work; a budget that is too small names the least
    possible one.
    """
    budget = Budget.parse(size, bits_per_weight, max_eer_loss)
    ground = _ground(sensitivity, data, trials, audio, utterances, seed)
    _check(search, budget, ground, out)
    subject = opened(checkpoint, front_end)
    if subject.plan:
        raise BadInput(f"{checkpoint}: was trained with plan {subject.plan!r}; allocation starts from a float network")
    _check_gradients(subject, sensitivity)
    desk = Desk(subject, choices(family, widths))
    desk.check(budget)
    if cache is None and out is not None:
        cache = Path(out).with_name(Path(out).name + ".sensitivity.json")
    damage = measure_damage(subject, list(desk.specs.values()), ground, Path(cache) if cache is not None else None)
    desk.learn(damage.values, damage.rank)
    how = dict(compression or {}) | ({"front_end": front_end} if front_end else {})
    found, more = desk.fit(budget, search, ground, how)
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
    front_end: str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Allocate, then compress with that plan: the report of `compress`, with that of `allocate` under `allocation`.

    allocation: settings of `allocate` (sensitivity, search, widths, family; cache, where the table of damages is to
    outlive this call).   settings: more ones of `compress`.
    A file above a budget in bytes is made again with a smaller one until it fits; BadPlan when none does.
    """
    shared: dict[str, Any] = {"data": data, "trials": trials, "audio": audio, "seed": seed, "front_end": front_end}
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
                return _explained(report, plan)
            asked = (asked or 0) - (report["bytes"] - limit)
    Path(out).unlink(missing_ok=True)
    raise BadPlan(f"{out}: no file within {limit:,} bytes was found; the last had {report['bytes']:,}")


def _explained(report: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """The report of a compression with its allocation, and why layers stayed wide."""
    wide = because_of_damage(report["wide_layers"], plan["damage_by_layer"])
    damage = {**report["damage"], "predicted": plan["predicted_damage"]}
    return {**report, "wide_layers": wide, "damage": damage, "allocation": plan}


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


def _check_gradients(subject: Subject, sensitivity: str) -> None:
    if sensitivity in ("hessian", "training-loss") and not subject.differentiable:
        raise BadInput(
            f"{subject.path}: --sensitivity {sensitivity} needs gradients, which this graph does not give; use drift, "
            "weights or eer"
        )


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
