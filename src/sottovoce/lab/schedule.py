"""What changes while a run goes on: its stages and their plans, learning rates, ramps. Functions of recipe and step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sottovoce.bits.formats import FORMATS
from sottovoce.bits.plan import Plan, Spec
from sottovoce.errors import BadRecipe
from sottovoce.lab.recipe import Optim, Quant

Specs = Mapping[str, Spec | None]


@dataclass(frozen=True)
class Stage:
    """Epochs `first` to `first + epochs - 1` of a run, trained with one plan; an empty plan is float training."""

    plan: str
    first: int
    epochs: int
    what: str = ""  # for people

    def __str__(self) -> str:
        text = self.plan if len(self.plan) <= 60 else f"{self.plan[:57]}..."
        last = self.first + self.epochs
        return f"epochs {self.first + 1} to {last}: {self.what or text or 'float'}"


def stages(asked: Quant, plan: Plan | None, shapes: Mapping[str, tuple[int, ...]], epochs: int) -> list[Stage]:
    """The stages of a run, in turn, with an equal share of the epochs each; the last one has the plan itself.

    `order` quantizes the layers of one width after the other (multi-stage fine-tuning of arXiv 2406.05359: our
    reading), those not reached yet staying in float. `through` trains with wider formats before the plan's own.
    plan: None for float training   shapes: layer name → weight shape. Raises BadRecipe, and BadPlan when the
    plan does not fit.
    """
    if plan is None:
        return [Stage("", 0, epochs)]
    specs = plan.resolve(shapes)
    if asked.through:
        steps = [(f"at least {width} bits", _widened(specs, width)) for width in asked.through]
    else:
        steps = _by_width(specs, asked.order)[:-1]
    plans = [(what, str(Plan(tuple(found.items())))) for what, found in steps]
    parts = [*plans, ("", str(plan))]
    if len(parts) > epochs:
        raise BadRecipe(f"[optim] epochs = {epochs} are fewer than the {len(parts)} stages; give each at least one")
    borders = [round(index * epochs / len(parts)) for index in range(len(parts) + 1)]
    return [
        Stage(text, start, stop - start, what)
        for (what, text), start, stop in zip(parts, borders, borders[1:], strict=False)
    ]


def _by_width(specs: Specs, order: str) -> list[tuple[str, Specs]]:
    """What each stage quantizes: all layers at once, or the widths one after the other."""
    bits = {name: FORMATS[spec.format].bits for name, spec in specs.items() if spec is not None}
    widths = sorted(set(bits.values()), reverse=order == "highest-first")
    if order == "together" or not widths:
        return [("", specs)]
    return [
        (
            f"layers of {', '.join(map(str, widths[: count + 1]))} bits",
            {name: spec if bits.get(name) in widths[: count + 1] else None for name, spec in specs.items()},
        )
        for count in range(len(widths))
    ]


def _widened(specs: Specs, width: int) -> Specs:
    """Every layer with the format of its family at `width` bits, where its own is narrower."""
    return {name: spec and _at_least(spec, width) for name, spec in specs.items()}


def _at_least(spec: Spec, width: int) -> Spec:
    own = FORMATS[spec.format]
    if own.bits >= width:
        return spec
    known = {entry.bits: name for name, entry in FORMATS.items() if entry.family == own.family}
    if width not in known:
        nearest = min(known, key=lambda bits: abs(bits - width))
        raise BadRecipe(f"[quant] through: {own.family} has no format of {width} bits; the nearest is {nearest}")
    return replace(spec, format=known[width])


def _cosine(optim: Optim, progress: float, epoch: int) -> float:
    return optim.final_rate + (optim.rate - optim.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def _steps(optim: Optim, progress: float, epoch: int) -> float:
    return optim.rate * optim.drop ** sum(epoch >= drop for drop in optim.drops)


def _exponential(optim: Optim, progress: float, epoch: int) -> float:
    return optim.rate * (optim.final_rate / optim.rate) ** progress


RATES: dict[str, Callable[[Optim, float, int], float]] = {
    "cosine": _cosine,
    "steps": _steps,
    "exponential": _exponential,
}


def rate(optim: Optim, step: int, total: int, epoch_steps: int) -> float:
    """Learning rate of a step, counted like `total` within one stage; `epoch_steps` make an epoch.

    Linear warm-up first. A cosine runs over the steps after it; `steps` multiplies by `drop` at each epoch of `drops`
    (arXiv 2210.17326); `exponential` falls from `rate` to `final_rate` over all steps, with the warm-up as a factor,
    as WeSpeaker does.
    """
    warm = max(1, round(optim.warm_up * total))
    shape = RATES[optim.schedule]
    if optim.schedule == "cosine":
        progress = (step - warm) / max(1, total - warm)
        return optim.rate * (step + 1) / warm if step < warm else shape(optim, progress, 0)
    return shape(optim, step / total, step // epoch_steps) * min(1.0, (step + 1) / warm)


def ramp(progress: float) -> float:
    """From 0 to 1 along half a cosine while `progress` goes from 0 to 1 (arXiv 2203.08711, dampening)."""
    return 0.5 * (1 - math.cos(math.pi * min(1.0, max(0.0, progress))))
