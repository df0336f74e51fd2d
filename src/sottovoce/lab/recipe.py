"""A recipe: everything that decides a training run, as frozen dataclasses read from TOML.

Unknown keys are refused with the nearest known one. Manifests are relative to the data root given on the command line,
checkpoints to the working directory.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from sottovoce.errors import BadRecipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Data:
    """Where recordings come from and how they are cut; lengths in seconds."""

    manifest: str
    noise: str = ""
    noise_use: str = "train"  # keep the rows whose column `use` says so; "" keeps all
    rooms: str = ""
    rooms_use: str = ""
    crop_s: tuple[float, ...] = (2.0,)  # one length is drawn for each batch
    longest_repeat_s: float = 4.0  # a recording is drawn once per epoch for each such stretch begun


@dataclass(frozen=True)
class Augment:
    """What is done to a crop in training; levels in dB. One kind is drawn for each crop that is augmented."""

    probability: float = 0.6
    noise_snr: tuple[float, float] = (0.0, 15.0)
    babble_snr: tuple[float, float] = (10.0, 20.0)
    babble_talkers: tuple[int, int] = (3, 7)
    simulated_rooms: int = 200
    speeds: tuple[float, ...] = ()  # each makes new speakers of all speakers


@dataclass(frozen=True)
class Loss:
    """AAM-softmax (ArcFace) with a margin that grows between two fractions of the training; radians."""

    scale: float = 32.0
    margin: float = 0.2
    margin_from: float = 0.15
    margin_to: float = 0.5
    teacher: str = ""  # checkpoint of a float network whose embeddings are followed
    teacher_weight: float = 0.0


@dataclass(frozen=True)
class Optim:
    """Optimiser and schedule: linear warm-up, then half a cosine to `final_rate`."""

    name: str = "adamw"
    rate: float = 1.5e-3
    final_rate: float = 1e-6
    scale_rate: float = 1.0  # learning rate of quantizer scales, as a multiple of `rate`
    weight_decay: float = 0.05
    momentum: float = 0.9  # of sgd
    warm_up: float = 0.05  # fraction of all steps
    epochs: int = 30
    batch: int = 64  # over all processes
    clip: float = 5.0
    amp: str = "none"  # none, bf16


@dataclass(frozen=True)
class Quant:
    """A plan attached before training starts; empty = float training."""

    start: str = ""  # checkpoint to start from
    plan: str = ""
    bits: int = 0  # the standard plan of this width


@dataclass(frozen=True)
class Recipe:
    """One training run."""

    network: Mapping[str, Any]
    data: Data
    augment: Augment = field(default_factory=Augment)
    loss: Loss = field(default_factory=Loss)
    optim: Optim = field(default_factory=Optim)
    quant: Quant = field(default_factory=Quant)
    front_end: str = "wespeaker"
    seed: int = 0
    note: str = ""

    def text(self) -> str:
        """The recipe as canonical JSON; two runs are the same when these are."""
        return json.dumps(asdict(self), sort_keys=True)

    def sha256(self) -> str:
        """Hash of `text`, hexadecimal."""
        return hashlib.sha256(self.text().encode()).hexdigest()


def read_recipe(path: str | Path) -> Recipe:
    """Read a TOML recipe. Raises BadRecipe naming the file, the key and the nearest known key."""
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadRecipe(f"recipe {path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRecipe(f"recipe {path}: not TOML: {error}") from None
    return make_recipe(content, str(path))


def make_recipe(content: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Dictionaries → Recipe. Raises BadRecipe."""
    recipe: Recipe = _make(Recipe, content, where)
    if recipe.quant.bits and recipe.quant.plan:
        raise BadRecipe(f"{where}: [quant] has both bits and plan; keep one")
    if (recipe.quant.bits or recipe.quant.plan) and not recipe.quant.start:
        raise BadRecipe(f"{where}: [quant] needs start = a float checkpoint")
    if recipe.optim.name not in ("adamw", "sgd") or recipe.optim.amp not in ("none", "bf16"):
        raise BadRecipe(f"{where}: [optim] name is adamw or sgd, amp is none or bf16")
    if not recipe.data.crop_s or min(recipe.data.crop_s) <= 0:
        raise BadRecipe(f"{where}: [data] crop_s is a list of lengths above 0 s, as in [2.0]")
    if recipe.optim.batch < 2 or recipe.optim.epochs < 1:
        raise BadRecipe(f"{where}: [optim] batch must be at least 2 and epochs at least 1")
    return recipe


def _make(kind: type, content: Mapping[str, Any], where: str) -> Any:
    if not isinstance(content, Mapping):
        raise BadRecipe(f"{where}: expected a table, found {content!r}")
    types = get_type_hints(kind)
    for key in content:
        if key not in types:
            near = difflib.get_close_matches(key, types, 1) or sorted(types)
            raise BadRecipe(f"{where}: unknown key {key!r}; did you mean {near[0]!r}?")
    for entry in fields(kind):
        if entry.default is MISSING and entry.default_factory is MISSING and entry.name not in content:
            raise BadRecipe(f"{where}: {entry.name!r} is missing")
    return kind(**{key: _value(types[key], value, f"{where}: {key}") for key, value in content.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        return _make(kind, value, where)  # type: ignore[arg-type]
    if isinstance(value, list):
        return tuple(value)
    if get_origin(kind) is tuple:
        raise BadRecipe(f"{where}: expected a list, found {value!r}")
    if isinstance(value, Mapping):
        return dict(value)
    if kind is float and type(value) is int:
        return float(value)
    if kind in (int, float, str) and type(value) is not kind:
        raise BadRecipe(f"{where}: expected {kind.__name__}, found {value!r}")
    return value
