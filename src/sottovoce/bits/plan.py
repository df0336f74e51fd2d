"""Which layer gets which number format: Spec, Plan, their text forms, and the bytes they take."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sottovoce.bits.formats import FORMATS, WIDTHS, packed_size
from sottovoce.errors import BadPlan

GRANULARITIES = ("layer", "channel")  # what shares one scale
RULES: dict[str, tuple[str, ...]] = {  # per family: how scale and levels start; the first is the default
    "uniform": ("mse", "clip3", "absmax"),
    "kmeans": ("mse", "mass"),
}
FLOAT = "float"  # in a plan: this layer keeps its float weights
FIRST_LAYER_SHARE = 0.005  # a first layer with a smaller share of the weights costs nothing at 8 bits


@dataclass(frozen=True)
class Spec:
    """How a layer's weight is stored; text form `kmeans4/channel/mse`. Raises BadPlan naming the nearest valid part."""

    format: str
    granularity: str = "channel"
    rule: str = "mse"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise BadPlan(f"format {self.format!r} is unknown; did you mean {_nearest_format(self.format)!r}?")
        if self.granularity not in GRANULARITIES:
            raise BadPlan(f"granularity {self.granularity!r} is unknown; {_hint(self.granularity, GRANULARITIES)}")
        rules = RULES[FORMATS[self.format].family]
        if self.rule not in rules:
            raise BadPlan(f"rule {self.rule!r} is unknown for {self.format}; {_hint(self.rule, rules)}")

    def __str__(self) -> str:
        return f"{self.format}/{self.granularity}/{self.rule}"

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read `format[/granularity[/rule]]`; parts left out are `channel` and `mse`. Raises BadPlan."""
        parts = [part.strip() for part in text.split("/")]
        if len(parts) > 3:
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
    def of_bits(cls, bits: int, shapes: Mapping[str, tuple[int, ...]]) -> Plan:
        """The standard plan for a width: k-means levels (8 bits: uniform), one scale a channel.

        The first layer is kept at 8 bits when it holds under 0.5 % of the weights. Raises BadPlan for unknown widths.
        """
        if bits not in WIDTHS:
            nearest = min(WIDTHS, key=lambda width: abs(width - bits))
            raise BadPlan(f"{bits} bits are not possible; the nearest width is {nearest}")
        rest: tuple[str, Spec | None] = ("*", Spec("uniform8" if bits == 8 else f"kmeans{bits}"))
        first = next(iter(shapes), None)
        share = math.prod(shapes[first]) / sum(map(math.prod, shapes.values())) if first is not None else 1.0
        if first is None or bits == 8 or share >= FIRST_LAYER_SHARE:
            return cls((rest,))
        return cls(((first, Spec("uniform8")), rest))

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


def size_bytes(plan: Plan | Mapping[str, Spec | None], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Exact bytes of all weights in `shapes` as stored: packed codes, four bytes for each float weight.

    Levels and scales are not in it. Raises BadPlan when the plan does not fit the shapes.
    """
    specs = plan.resolve(shapes) if isinstance(plan, Plan) else plan
    return sum(_layer_bytes(specs[name], math.prod(shape)) for name, shape in shapes.items())


def _layer_bytes(spec: Spec | None, count: int) -> int:
    return 4 * count if spec is None else packed_size(count, FORMATS[spec.format].bits)


def _entry(text: str) -> tuple[str, Spec | None]:
    pattern, sign, spec = (part.strip() for part in text.partition("="))
    if not sign or not spec:
        raise BadPlan(f"plan entry {text.strip()!r} is not of the form pattern=spec, as in '*=kmeans4'")
    try:
        return pattern, None if spec == FLOAT else Spec.parse(spec)
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
