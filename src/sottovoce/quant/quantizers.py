"""The families of formats as quantizers: a table of functions, and the one parametrization that uses them.

All of them look at a weight as rows, (rows, columns), one row an output channel. A weight is `levels[code] · scale`:
levels are integers of the int8 grid, ascending; scale is (rows, 1), or (1, 1) when the whole layer shares it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sottovoce.bits.formats import FORMATS
from sottovoce.bits.plan import Spec
from sottovoce.errors import BadInput
from sottovoce.quant.levels import (
    EDGE,
    cluster_sums,
    look_up,
    mean_magnitude,
    nearest_code,
    nearest_value,
    refreshed,
    snap,
    stretched,
    value_table,
)
from sottovoce.quant.starts import (
    CENTRED,
    FLOOR,
    Start,
    clip_unit,
    edge,
    shares_scale,
    start_binary,
    start_clip,
    start_kmeans,
    start_lsq,
    start_ternary,
    ternary_cut,
)

FREE_RULES = {("kmeans", "learned"), ("binary", "adaptive")}  # whose codebook, where it is free, is a parameter


@dataclass
class Look:
    """What one pass sees in a weight, and what its gradients need; None where nothing is learned."""

    seen: Tensor  # level of each weight, (rows, columns)
    scale: Tensor  # (rows, 1) or (1, 1)
    unit: Tensor  # the same shape: scale at gain 1
    levels: Tensor
    share: float = 1.0  # factor of the gain's gradient
    slope: Tensor | None = None  # d(weight / scale) / d(scale) of each weight
    gate: Tensor | None = None  # d seen / d weight of each weight; None: 1
    codes: Tensor | None = None  # of each weight
    turn: Tensor | None = None  # d seen / d threshold of each weight


class Project(torch.autograd.Function):
    """Level times scale, with straight-through gradients.

    dL/dweight = dL/dseen, times the gate of the rule if it has one; dL/dgain = share · Σ dL/dseen · unit · slope;
    dL/dshift = Σ over the weights of a level of dL/dseen · scale · 127 (Deep Compression, arXiv 1510.00149);
    dL/dthreshold = Σ dL/dseen · turn.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, gain: Tensor, shift: Tensor | None, threshold: Tensor | None, look: Look
    ) -> Tensor:
        ctx.look = look
        return look.seen * look.scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        look: Look = ctx.look
        drows = dgain = dshift = dthreshold = None
        if ctx.needs_input_grad[0]:
            drows = grad if look.gate is None else grad * look.gate
        if ctx.needs_input_grad[1]:
            assert look.slope is not None
            dgain = ((grad * look.slope).sum(dim=1, keepdim=True) * look.unit).sum_to_size(look.unit.shape)
            dgain = dgain * look.share
        if ctx.needs_input_grad[2]:
            assert look.codes is not None
            dshift = cluster_sums(grad * (look.scale * EDGE), look.codes, look.levels)
        if ctx.needs_input_grad[3]:
            dthreshold = (grad * look.turn).sum(dim=1, keepdim=True).sum_to_size(look.unit.shape)
        return drows, dgain, dshift, dthreshold, None


def scale_of(gain: Tensor, unit: Tensor) -> Tensor:
    """The positive scale: unit · gain, the gain not below FLOOR (where paper D's code has a softplus)."""
    return unit * gain.clamp(min=FLOOR)


def pass_inside(rows: Tensor, at: Tensor, unit: Tensor, spec: Spec) -> Tensor:
    """Gradient only to weights between the outermost levels (LSQ; the ImageNet version of APoT's code)."""
    return _inside(at, spec).to(rows.dtype)


def pass_magnitude(rows: Tensor, at: Tensor, unit: Tensor, spec: Spec) -> Tensor:
    """1 / n + mean |w| where |w| < 1, for n weights that share a scale (XNOR-Net, arXiv 1603.05279, section 3.1).

    unit: mean |w|. The authors' code further multiplies by n for plain gradient descent; that is left to the rate.
    """
    return 1 / _count(rows, spec) + unit * (rows.abs() < 1)


def lsq_share(rows: Tensor, spec: Spec) -> float:
    """1 / √(N Q_P), N weights a scale (arXiv 1902.08153, section 2.2; it has one scale a layer)."""
    return float((_count(rows, spec) * edge(spec)) ** -0.5)


def magnitude_unit(rows: Tensor, spec: Spec) -> tuple[None, Tensor]:
    """Mean |w| of the present weight, not centred: then signs times it are the nearest binary weights there are."""
    return None, mean_magnitude(rows, shares_scale(spec))


def tent(at: Tensor) -> Tensor:
    """Derivative of ReActNet's soft sign (arXiv 2003.03488): 2 + 2x on [-1, 0), 2 - 2x on [0, 1), else 0."""
    return (2 - 2 * at.abs()).clamp(min=0)


def _count(rows: Tensor, spec: Spec) -> int:
    """Weights that share a scale."""
    return rows.numel() if shares_scale(spec) else rows.shape[1]


def _inside(at: Tensor, spec: Spec) -> Tensor:
    levels = FORMATS[spec.format].levels
    assert levels is not None
    return at.clamp(levels[0], levels[-1]) == at


@dataclass(frozen=True)
class Quantizer:
    """A family of formats: how it starts, what a weight is measured with, and its gradients.

    With `unit` centre and unit follow the present weight; without, the unit is that of the start and the centre zero.
    """

    start: Callable[[Tensor, Spec], Start]
    clips: bool = False  # slope of the scale: level less weight / scale inside the outermost levels, else the level
    unit: Mapping[str, Callable[[Tensor, Spec], tuple[Tensor | None, Tensor]]] = field(default_factory=dict)  # by rule
    cut: Callable[[Tensor, Spec], Tensor] | None = None  # half-way to the next level, where that is not the middle
    gates: Mapping[str, Callable[[Tensor, Tensor, Tensor, Spec], Tensor]] = field(default_factory=dict)  # by rule
    share: Callable[[Tensor, Spec], float] | None = None


_CLIP = dict.fromkeys(("mse", "absmax", *CENTRED), clip_unit)
QUANTIZERS: dict[str, Quantizer] = {
    "uniform": Quantizer(start_clip, clips=True, unit=_CLIP),
    "pot": Quantizer(start_clip, clips=True, unit=_CLIP),
    "apot": Quantizer(start_clip, clips=True, unit=_CLIP, gates={"clipped": pass_inside}),
    "lsq": Quantizer(start_lsq, clips=True, gates={"lsq": pass_inside, "mse": pass_inside}, share=lsq_share),
    "kmeans": Quantizer(start_kmeans),
    "binary": Quantizer(start_binary, unit={"static": magnitude_unit}, gates={"static": pass_magnitude}),
    "ternary": Quantizer(start_ternary, cut=ternary_cut),
}


class Quantized(nn.Module):
    """The parametrization of a weight: float weight (rows, ...) → decoded weight of the same shape, float32.

    `gain` is learned (but for binary weights by rule `static`); a codebook moves in `refresh`, and by `shift`, in units
    of 127 levels, where it is learned; `threshold`, in units, is that of binary weights by rule `threshold`. Codes are
    assigned anew in every pass, unless `hold` keeps them.
    """

    gain: Tensor
    unit: Tensor
    codebook: Tensor
    table: Tensor | None  # nearest level of every cell, where the levels are fixed
    codes: Tensor | None  # uint8, shape of the weight, while they are held

    def __init__(self, weight: Tensor, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.family = FORMATS[spec.format].family
        self.free = FORMATS[spec.format].levels is None or spec.granularity == "codebook"
        self.quantizer = QUANTIZERS[self.family]
        self.follow = self.quantizer.unit.get(spec.rule)
        with torch.no_grad():
            start = self.quantizer.start(_rows(weight.detach()), spec)
        self.gain = nn.Parameter(start.gain, requires_grad=(self.family, spec.rule) != ("binary", "static"))
        learned = self.free and (self.family, spec.rule) in FREE_RULES
        self.shift = nn.Parameter(torch.zeros_like(start.codebook)) if learned else None
        turned = (self.family, spec.rule) == ("binary", "threshold")
        self.threshold = nn.Parameter(torch.zeros_like(start.unit)) if turned else None
        self.register_buffer("unit", start.unit, persistent=self.follow is None)
        self.register_buffer("codebook", start.codebook, persistent=self.free)
        self.register_buffer("table", None if self.free else value_table(start.codebook), persistent=False)
        self.register_buffer("codes", None)

    def forward(self, weight: Tensor) -> Tensor:
        rows = _rows(weight)
        look = self._look(rows, torch.is_grad_enabled())
        return Project.apply(rows, self.gain, self.shift, self.threshold, look).reshape(weight.shape)

    def levels(self) -> Tensor:
        """The levels of the int8 grid: (levels,) or (rows, levels), float32, ascending."""
        with torch.no_grad():
            return snap(self._codebook()) if self.free else self.codebook

    @torch.no_grad()
    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the forward pass sees, in parts: codes uint8 (shape of weight), levels int8, scale (rows,) or (1,).

        levels: (levels,), or (rows, levels) with a codebook for each channel.
        """
        rows, levels, codes = _rows(weight), self.levels(), self.codes
        centre, unit = self._units(rows)
        scale = scale_of(self.gain, unit)
        if codes is None:
            codes = nearest_code(self._at(rows, centre, scale), levels)
        return codes.reshape(weight.shape), levels.to(torch.int8), scale.reshape(-1)

    @torch.no_grad()
    def refresh(self, weight: Tensor) -> None:
        """Move a codebook towards its weights, or take over what it has learned; fixed levels stay."""
        if not self.free:
            return
        codebook = self._codebook()
        if self.shift is None:
            at = _rows(weight) / scale_of(self.gain, self.unit)
            codebook = refreshed(at, codebook, self.spec.rule == "mass", self.codes)
        else:
            codebook = codebook.cummax(dim=-1).values
            self.shift.zero_()
        codebook, factor = stretched(codebook)
        self.codebook.copy_(codebook)
        self.gain.mul_(factor)

    @torch.no_grad()
    def hold(self, weight: Tensor, held: bool = True) -> None:
        """Keep the codes of the present weight, or assign them in every pass again; held codes are in the state."""
        self.codes = None
        if held:
            self.codes = self.encode(weight)[0]

    @torch.no_grad()
    def place(self, weight: Tensor, scale: Tensor, levels: Tensor) -> None:
        """Set scale and levels so that a weight made of them is encoded to its own codes and decoded to itself.

        weight: level · scale of every element   scale: (rows, 1) or (1, 1), as many as the spec has   levels: integers,
        (levels,) or (rows, levels), as `levels()` gives them. The scale is kept exactly where it is that of the start
        (kmeans, lsq, binary, ternary), else to the last digit of a float32. Raises BadInput when they do not fit.
        """
        if scale.numel() != self.unit.numel() or not bool((scale > 0).all()):
            raise BadInput(f"{self.spec}: {scale.numel()} scales for {self.unit.numel()}; every one must be above 0")
        levels, known = levels.to(self.codebook), self.codebook if not self.free else snap(levels.to(self.codebook))
        if levels.shape != self.codebook.shape or not torch.equal(levels, known):
            raise BadInput(f"{self.spec}: levels {tuple(levels.shape)} are not those of the format; see `levels()`")
        if self.follow is not None and self.spec.rule in CENTRED:
            raise BadInput(f"{self.spec}: the rule takes the mean off, which codes do not keep; choose rule mse")
        scale = scale.to(self.unit).reshape(self.unit.shape)
        if self.follow is None:
            self.unit.copy_(scale)
            self.gain.fill_(1)
        else:
            self.gain.copy_(scale / self.follow(_rows(weight), self.spec)[1])
        self.codebook.copy_(levels)
        for learned in (self.shift, self.threshold):
            if learned is not None:
                learned.zero_()
        if self.codes is not None:
            self.hold(weight)

    def _codebook(self) -> Tensor:
        return self.codebook if self.shift is None else self.codebook + EDGE * self.shift

    def _units(self, rows: Tensor) -> tuple[Tensor | None, Tensor]:
        """Centre (None: zero) and unit."""
        centre, unit = (None, self.unit) if self.follow is None else self.follow(rows, self.spec)
        return (centre if self.threshold is None else self.threshold * unit), unit

    def _at(self, rows: Tensor, centre: Tensor | None, scale: Tensor) -> Tensor:
        """The weight in units of its levels."""
        cut = self.quantizer.cut
        return (rows if centre is None else rows - centre) / (scale if cut is None else 2 * cut(rows, self.spec))

    @torch.no_grad()
    def _look(self, rows: Tensor, learning: bool) -> Look:
        """Levels and, when `learning`, slopes of a weight."""
        (centre, unit), levels = self._units(rows), self.levels()
        scale = scale_of(self.gain, unit)
        at = self._at(rows, centre, scale)
        codes = self.codes if self.shift is None or self.codes is not None else nearest_code(at, levels)
        if codes is None:
            seen = nearest_value(at, levels, self.table)
        else:
            codes = codes.reshape(rows.shape).to(torch.int32)
            seen = look_up(levels, codes)
        look = Look(seen, scale, unit, levels, codes=codes)
        if not learning:
            return look
        look.slope = look.seen - at * _inside(at, self.spec) if self.quantizer.clips else look.seen
        if self.spec.rule in self.quantizer.gates:
            look.gate = self.quantizer.gates[self.spec.rule](rows, at, unit, self.spec)
        if self.quantizer.share is not None:
            look.share = self.quantizer.share(rows, self.spec)
        if self.threshold is not None and centre is not None:
            look.turn = -scale * tent((rows - centre) / unit)
        return look


def _rows(weight: Tensor) -> Tensor:
    """(out, ...) → (out, rest), in C order whatever the memory format."""
    return weight.reshape(weight.shape[0], -1)
