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
from typing import Any, Literal, get_args, get_origin, get_type_hints

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
    keep_epochs: int = 0  # features of so many epochs are stored; epoch e trains on those of e modulo this. 0: none


@dataclass(frozen=True)
class Augment:
    """What is done to a crop in training; levels in dB. One kind is drawn for each crop that is augmented."""

    probability: float = 0.6
    noise_snr: tuple[float, float] = (0.0, 15.0)
    babble_snr: tuple[float, float] = (10.0, 20.0)
    babble_talkers: tuple[int, int] = (3, 7)
    simulated_rooms: int = 200
    speeds: tuple[float, ...] = ()  # each makes new speakers of all speakers
    mask_probability: float = 0.0  # of one mask in time and one in frequency (SpecAugment, arXiv 1904.08779)
    mask_frames: int = 10  # most frames that are hidden
    mask_channels: int = 8  # most channels of the front end that are hidden


MASKS = ("mask_probability", "mask_frames", "mask_channels")  # what Augment does to features, not to waves


@dataclass(frozen=True)
class Loss:
    """A margin softmax whose margin grows between two fractions of the training, and what is added to it.

    kind: aam = cos(θ + margin), radians (ArcFace); am = cos θ − margin.
    """

    kind: Literal["aam", "am"] = "aam"
    weight: float = 1.0  # of the margin softmax; 0: no labels and no classifier, a teacher alone is followed
    scale: float = 32.0
    margin: float = 0.2
    margin_from: float = 0.15
    margin_to: float = 0.5
    teacher: str = ""  # checkpoint of a network with the same front end, whose embeddings are followed
    teacher_kind: Literal["cosine", "l2"] = "cosine"
    teacher_weight: float = 0.0
    teacher_hears: Literal["augmented", "clean"] = "augmented"  # clean: the crop without noise, babble, room
    teacher_turned: int = 0  # batches on which the teacher's embeddings are turned onto the network's own first
    damping: float = 0.0  # of oscillation of quantized weights; reached along half a cosine in each stage


@dataclass(frozen=True)
class Optim:
    """Optimiser and schedule; each stage of a quantized training begins both anew."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    rate: float = 1.5e-3
    schedule: Literal["cosine", "steps", "exponential"] = "cosine"
    final_rate: float = 1e-6  # of cosine and exponential
    drops: tuple[int, ...] = ()  # epochs of `steps`, counted from 0 in each stage, where the rate is times `drop`
    drop: float = 0.1
    scale_rate: float = 1.0  # learning rate of quantizer scales, as a multiple of `rate`
    scale_momentum: bool = True  # whether quantizer scales have momentum like everything else
    weight_decay: float = 0.05  # adam: as an L2 penalty
    momentum: float = 0.9  # of sgd
    warm_up: float = 0.05  # fraction of all steps
    epochs: int = 30
    batch: int = 64  # over all processes
    clip: float = 5.0
    amp: Literal["none", "bf16"] = "none"
    average: float = 0.0  # decay of a moving average of the weights, which becomes the model; 0: the last weights
    freeze_norms: float = 1.0  # fraction of a stage from which on batch norm keeps its statistics


@dataclass(frozen=True)
class Quant:
    """A plan attached before training starts; empty = float training."""

    start: str = ""  # checkpoint to start from
    plan: str = ""
    bits: int = 0  # the standard plan of this width
    order: Literal["together", "lowest-first", "highest-first"] = "together"  # one stage for each width of the plan
    through: tuple[int, ...] = ()  # widths trained on the way to the plan's own, as in [4, 3]; a stage each
    gains_from: int = 0  # epochs of a stage in which quantizer scales rest and weights alone are trained
    gain_clip: float = 0.0  # greatest L2 norm of the gradient of all quantizer scales; 0: any
    refresh: Literal["epoch", "never"] = "epoch"  # when learned codebooks move towards their weights
    assign: Literal["step", "epoch"] = "step"  # when weights get their codes
    round_batches: int = 0  # batches on which weights are rounded, as `compress` does, before a stage trains them
    norm_batches: int = 0  # batches on which batch norm is estimated anew at the start of a stage and at the end


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

    def same(self, text: str) -> bool:
        """Whether `text` describes this recipe too; entries that it lacks are those an older version did not know."""
        try:
            return make_recipe(json.loads(text)) == make_recipe(json.loads(self.text()))
        except (BadRecipe, ValueError):
            return False

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
    for wrong, told in _contradictions(recipe):
        if wrong:
            raise BadRecipe(f"{where}: {told}")
    return recipe


def _contradictions(recipe: Recipe) -> list[tuple[bool, str]]:
    """What types cannot say: (whether it is wrong, what to do about it)."""
    data, augment, loss, optim, asked = recipe.data, recipe.augment, recipe.loss, recipe.optim, recipe.quant
    planned = bool(asked.bits or asked.plan)
    return [
        (bool(asked.bits and asked.plan), "[quant] has both bits and plan; keep one"),
        (planned and not asked.start, "[quant] needs start = a float checkpoint"),
        (bool(asked.through) and asked.order != "together", "[quant] has both order and through; keep one"),
        (bool(asked.through) and not planned, "[quant] through leads to a plan; give bits or plan"),
        (
            list(asked.through) != sorted(set(asked.through), reverse=True),
            "[quant] through goes from wide to narrow, as in [4, 3]",
        ),
        (
            not data.crop_s or min(data.crop_s) <= 0,
            "[data] crop_s is a list of lengths above 0 s, as in [2.0]",
        ),
        (data.keep_epochs < 0, "[data] keep_epochs is a number of epochs; 0 keeps none"),
        (not 0 <= augment.mask_probability <= 1, "[augment] mask_probability lies between 0 and 1"),
        (min(augment.mask_frames, augment.mask_channels) < 0, "[augment] masks hide 0 or more frames and channels"),
        (optim.batch < 2 or optim.epochs < 1, "[optim] batch must be at least 2 and epochs at least 1"),
        (optim.schedule == "steps" and not optim.drops, "[optim] schedule steps needs drops, as in [20, 32]"),
        (bool(optim.drops) and optim.schedule != "steps", '[optim] drops go with schedule = "steps"'),
        (
            any(not 0 < drop < optim.epochs for drop in optim.drops),
            f"[optim] drops are epochs between 1 and {optim.epochs - 1}",
        ),
        (
            optim.schedule == "exponential" and not 0 < optim.final_rate <= optim.rate,
            "[optim] schedule exponential needs a final_rate above 0 and not above rate",
        ),
        (not 0 <= optim.average < 1, "[optim] average is a decay from 0 (none) to below 1, as in 0.999"),
        (loss.weight < 0 or loss.damping < 0, "[loss] weight and damping are 0 or more"),
        (
            loss.teacher_turned < 0 or bool(loss.teacher_turned and not loss.teacher),
            "[loss] teacher_turned is 0 or more batches, and needs a teacher",
        ),
        (
            loss.weight == 0 and not (loss.teacher and loss.teacher_weight > 0),
            "[loss] weight 0 leaves nothing to learn from; name a teacher and a teacher_weight",
        ),
    ]


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
    if get_origin(kind) is Literal:
        return _choice(get_args(kind), value, where)
    if get_origin(kind) is tuple:
        return _items(get_args(kind), value, where)
    if isinstance(value, Mapping):
        return dict(value)
    if kind is float and type(value) is int:
        return float(value)
    if kind in (int, float, str, bool) and type(value) is not kind:
        raise BadRecipe(f"{where}: expected {kind.__name__}, found {value!r}")
    return value


def _choice(known: tuple[str, ...], value: Any, where: str) -> str:
    if value in known:
        return str(value)
    near = difflib.get_close_matches(str(value), known, 1, cutoff=0.3) or known
    raise BadRecipe(f"{where}: {value!r} is unknown; did you mean {near[0]!r}? Known: {', '.join(known)}")


def _items(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise BadRecipe(f"{where}: expected a list, found {value!r}")
    if kinds[-1] is not ... and len(value) != len(kinds):
        raise BadRecipe(f"{where}: expected {len(kinds)} numbers, found {len(value)}")
    return tuple(_value(kinds[0], item, where) for item in value)
