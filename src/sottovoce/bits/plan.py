"""Which layer gets which number format: Spec, Plan, their text forms, and the bytes they take."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sottovoce.bits.formats import FORMATS, WIDTHS, packed_size
from sottovoce.errors import BadPlan

GRANULARITIES = ("channel", "layer", "codebook")  # a scale a channel, a scale a layer, scale and levels a channel
RULES: dict[str, tuple[str, ...]] = {  # per family: how scale and levels start and learn; the first is the default
    "uniform": ("mse", "clip3", "absmax"),
    "pot": ("mse", "clip3", "absmax"),
    "apot": ("mse", "clip3", "clipped", "absmax"),
    "lsq": ("lsq", "mse"),
    "kmeans": ("mse", "mass", "learned"),
    "binary": ("adaptive", "static", "threshold"),
    "ternary": ("twn",),
}
CODEBOOKS: dict[str, tuple[str, ...]] = {  # per family: the rules that can have levels for each channel
    "kmeans": ("mse", "mass", "learned"),
    "binary": ("adaptive",),
}
FLOAT = "float"  # in a plan: this layer keeps its float weights
FIRST_LAYER_SHARE = 0.005  # a first layer with a smaller share of the weights costs nothing at 8 bits
AUTO, SAME = "auto", "same"  # policies for the first and the last layer, beside a spec and FLOAT


@dataclass(frozen=True)
class Spec:
    """How a layer's weight is stored; text form `kmeans4/channel/mse`.

    granularity: one scale and one set of levels a `layer`; a scale a `channel`; or a scale and a `codebook` a channel.
    Raises BadPlan naming the nearest valid part.
    """

    format: str
    granularity: str = "channel"
    rule: str = ""  # empty: the first of the family

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise BadPlan(f"format {self.format!r} is unknown; did you mean {_nearest_format(self.format)!r}?")
        if self.granularity not in GRANULARITIES:
            raise BadPlan(f"granularity {self.granularity!r} is unknown; {_hint(self.granularity, GRANULARITIES)}")
        family = FORMATS[self.format].family
        if not self.rule:
            object.__setattr__(self, "rule", RULES[family][0])
        if self.rule not in RULES[family]:
            raise BadPlan(f"rule {self.rule!r} is unknown for {self.format}; {_hint(self.rule, RULES[family])}")
        if self.granularity == "codebook" and self.rule not in CODEBOOKS.get(family, ()):
            known = ", ".join(f"{name} ({', '.join(rules)})" for name, rules in CODEBOOKS.items())
            raise BadPlan(
                f"{self.format} with rule {self.rule} has no codebook a channel; families that have one: {known}; "
                "write 'channel' for a scale a channel"
            )

    @property
    def bits(self) -> int:
        """Bits a code takes."""
        return FORMATS[self.format].bits

    def __str__(self) -> str:
        return f"{self.format}/{self.granularity}/{self.rule}"

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read `format[/granularity[/rule]]`; left out: `channel`, the family's first rule. Raises BadPlan."""
        parts = [part.strip() for part in text.split("/")]
        if len(parts) > 3 or not all(parts[1:]):
            raise BadPlan(
                f"spec {text!r} has {len(parts)} parts; write format/granularity/rule, as in kmeans4/channel/mse"
            )
        return cls(*parts)


@dataclass(frozen=True)
class Plan:
    """Layer-name patterns (`*`, `?`, `[...]`) and their specs, first match wins; a spec None keeps a layer in float.

    Text form: `conv1=uniform8; layer?.*=kmeans2/channel/mse; *=float`.
    """

    entries: tuple[tuple[str, Spec | None], ...]

    def __post_init__(self) -> None:
        if not self.entries:
            raise BadPlan("a plan needs at least one entry, as in '*=kmeans4'")
        for pattern, _ in self.entries:
            if pattern.split() != [pattern] or any(sign in pattern for sign in "=;#"):
                raise BadPlan(f"pattern {pattern!r} of the plan is empty or holds a space, '=', ';' or '#'")

    def __str__(self) -> str:
        return "; ".join(f"{pattern}={spec or FLOAT}" for pattern, spec in self.entries)

    @classmethod
    def parse(cls, text: str) -> Plan:
        """Read entries `pattern=spec`, separated by `;` or line ends; `#` starts a comment. Raises BadPlan."""
        lines = [line.split("#", 1)[0] for line in text.splitlines()]
        return cls(tuple(_entry(part) for line in lines for part in line.split(";") if part.strip()))

    @classmethod
    def of_bits(
        cls,
        bits: int,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        spec: str = "",
        first: str = AUTO,
        last: str = SAME,
    ) -> Plan:
        """The standard plan for a width: k-means levels (8 bits: uniform), one scale a channel; or `spec` everywhere.

        first, last: the first and the last layer's policy: a spec, `float`, `same`, or, for the first, `auto`: 8 bits
        when it holds under 0.5 % of the weights. A policy other than `same` becomes an entry of the plan. What follows
        the embedding in training, the classifier, is no layer of the network: no plan has it. Raises BadPlan.
        """
        if bits not in WIDTHS:
            nearest = min(WIDTHS, key=lambda width: abs(width - bits))
            raise BadPlan(f"{bits} bits are not possible; the nearest width is {nearest}")
        body = Spec.parse(spec or ("uniform8" if bits == 8 else f"kmeans{bits}"))
        if body.bits != bits:
            raise BadPlan(f"spec {body} has {body.bits} bits, {bits} were asked for; leave one of the two out")
        names = list(shapes)
        policies = dict(zip([*names[:1], *names[1:][-1:]], [_first(first, bits, shapes), last], strict=False))
        ends = [(name, _policy(policy)) for name, policy in policies.items() if policy != SAME]
        return cls((*ends, ("*", body)))

    def resolve(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Spec | None]:
        """The spec of every layer, in the order of `shapes` (layer name → weight shape).

        Raises BadPlan for a pattern that fits no layer, naming the nearest layer, and for a layer that no pattern fits.
        """
        for pattern, _ in self.entries:
            if not any(fnmatchcase(name, pattern) for name in shapes):
                raise BadPlan(f"pattern {pattern!r} of the plan fits no layer; {_hint(pattern, shapes)}")
        return {name: self._spec(name) for name in shapes}

    def _spec(self, name: str) -> Spec | None:
        for pattern, spec in self.entries:
            if fnmatchcase(name, pattern):
                return spec
        raise BadPlan(f"layer {name!r} fits no pattern of the plan; end the plan with '*=float' or another spec")


def every_spec() -> list[Spec]:
    """All specs that exist: each format with each granularity and rule of its family."""
    return [
        Spec(entry.name, granularity, rule)
        for entry in FORMATS.values()
        for granularity in GRANULARITIES
        for rule in RULES[entry.family]
        if granularity != "codebook" or rule in CODEBOOKS.get(entry.family, ())
    ]


def size_bytes(plan: Plan | Mapping[str, Spec | None], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Exact bytes of all weights in `shapes` as stored: packed codes, four bytes for each float weight.

    Levels and scales are not in it. Raises BadPlan when the plan does not fit the shapes.
    """
    specs = _specs(plan, shapes)
    return sum(_layer_bytes(specs[name], math.prod(shape)) for name, shape in shapes.items())


def stored_bytes(spec: Spec | None, shape: tuple[int, ...]) -> int:
    """Exact bytes of one layer's weight in the file: packed codes, int8 levels, float32 scales; None: float32.

    Formats of 8 bits whose levels are consecutive integers are stored as plain int8, without levels.
    """
    codes, rows = _layer_bytes(spec, math.prod(shape)), int(shape[0])
    if spec is None:
        return codes
    books = 0 if is_plain(spec) else rows if spec.granularity == "codebook" else 1
    levels: int = books * 2**spec.bits
    return codes + levels + 4 * (1 if spec.granularity == "layer" else rows)


def plan_bytes(plan: Plan | Mapping[str, Spec | None], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Exact bytes of all weights in the file, levels and scales included. Raises BadPlan when they do not fit."""
    specs = _specs(plan, shapes)
    return sum(stored_bytes(specs[name], shape) for name, shape in shapes.items())


def mean_bits(plan: Plan | Mapping[str, Spec | None], shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Bits a code takes, averaged over all weights; a float weight takes 32. Raises BadPlan as `plan_bytes` does."""
    specs = _specs(plan, shapes)
    counts = {name: math.prod(shape) for name, shape in shapes.items()}
    total = sum(count * (32 if (spec := specs[name]) is None else spec.bits) for name, count in counts.items())
    return total / sum(counts.values())


def is_plain(spec: Spec) -> bool:
    """Whether the codes are stored as the int8 levels themselves: 8 bits, consecutive levels."""
    levels = FORMATS[spec.format].levels
    return spec.bits == 8 and levels is not None and levels == tuple(range(levels[0], levels[-1] + 1))


def _specs(plan: Plan | Mapping[str, Spec | None], shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Spec | None]:
    return plan.resolve(shapes) if isinstance(plan, Plan) else plan


def _layer_bytes(spec: Spec | None, count: int) -> int:
    return 4 * count if spec is None else packed_size(count, spec.bits)


def _first(policy: str, bits: int, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """`auto` made definite: `uniform8` for a first layer that is not worth fewer bits, else `same`."""
    if policy != AUTO or bits == 8 or not shapes:
        return SAME if policy == AUTO else policy
    share = math.prod(next(iter(shapes.values()))) / sum(map(math.prod, shapes.values()))
    return "uniform8" if share < FIRST_LAYER_SHARE else SAME


def _policy(text: str) -> Spec | None:
    return None if text == FLOAT else Spec.parse(text)


def _entry(text: str) -> tuple[str, Spec | None]:
    pattern, sign, spec = (part.strip() for part in text.partition("="))
    if not sign or not spec:
        raise BadPlan(f"plan entry {text.strip()!r} is not of the form pattern=spec, as in '*=kmeans4'")
    try:
        return pattern, _policy(spec)
    except BadPlan as error:
        raise BadPlan(f"plan entry {text.strip()!r}: {error}") from None


def _hint(wrong: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(wrong, names, 1, cutoff=0.3)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names[:8])}"


def _nearest_format(wrong: str) -> str:
    """The format of the nearest family with the nearest width."""
    stem = wrong.rstrip("0123456789")
    width = int(wrong[len(stem) :] or 4)
    family = difflib.get_close_matches(stem, RULES, 1, cutoff=0.0)[0]
    return min(
        (name for name, entry in FORMATS.items() if entry.family == family),
        key=lambda name: abs(FORMATS[name].bits - width),
    )
