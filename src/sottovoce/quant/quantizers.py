"""Learnable uniform levels and k-means codebooks: small functions, a table of families, and one parametrization.

All of them look at a weight as rows, (rows, columns), one row an output channel. A weight is `levels[code] · scale`:
levels are integers of the int8 grid, ascending; scale is (rows, 1), or (1, 1) when the whole layer shares it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sottovoce.bits.formats import FORMATS
from sottovoce.bits.plan import Spec

EDGE = 127  # outermost level of a learned codebook
TINY = 1e-10  # smallest unit of a row; times FLOOR it is still a normal float32
FLOOR = 0.01  # a gain may fall to this share of 1 and no further, so that every scale stays above 0
SAMPLE = 65536  # normalised weights that Lloyd's iterations look at
CELLS = 4 * EDGE + 2  # half-integer cells that cover -127.5 … 127.5
EMA = 0.1  # share of the new centroids in a refresh (arXiv 2606.08078)
EMA_SPARSE = 0.2  # the same when too few levels are in use
USED = 0.9  # share of levels in use below which EMA_SPARSE holds
RETENTION = 0.9  # share of weights inside the clamp of rule `mass`


class Project(torch.autograd.Function):
    """Nearest level times scale, with straight-through gradients.

    dL/dweight = dL/dseen everywhere (arXiv 2210.17326, equation 5, and arXiv 2606.08078).
    dL/dgain = Σ dL/dseen · unit · slope, where slope is the level, less the unrounded weight / scale where `clips`
    and the weight lies inside the outermost levels: for clips that is equation 4, for codebooks the plain product rule.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, gain: Tensor, unit: Tensor, centre: Tensor, levels: Tensor, clips: bool
    ) -> Tensor:
        scale = scale_of(gain, unit)
        at = (rows - centre) / scale
        seen = nearest_value(at, levels)
        if ctx.needs_input_grad[1]:
            inside = at.abs() <= levels[-1]
            ctx.save_for_backward(seen - at * inside if clips else seen, unit)
        return seen * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dgain = None
        if ctx.needs_input_grad[1]:
            slope, unit = ctx.saved_tensors
            dgain = ((grad * slope).sum(dim=1, keepdim=True) * unit).sum_to_size(unit.shape)
        return grad, dgain, None, None, None, None


def scale_of(gain: Tensor, unit: Tensor) -> Tensor:
    """The positive scale: unit · gain, the gain not below FLOOR."""
    return unit * gain.clamp(min=FLOOR)


def snap(codebook: Tensor) -> Tensor:
    """A float codebook, ascending → its levels: integers in -127..127, as float32, ascending and distinct (K ≤ 255)."""
    order = torch.arange(len(codebook), device=codebook.device, dtype=codebook.dtype)
    apart = torch.cummax(codebook.round() - order, dim=0).values
    highest = max(EDGE - (len(codebook) - 1), -EDGE)
    return (apart.clamp(-EDGE, highest) + order).clamp(max=EDGE)


def cell(at: Tensor) -> Tensor:
    """Index of the half-integer cell of each weight / scale; all in one cell have the same nearest level."""
    return at.mul(2).add_(2 * EDGE + 1).clamp_(0, CELLS - 1).to(torch.int32)


def cell_codes(levels: Tensor) -> Tensor:
    """Nearest level of every cell: (levels,) → codes (CELLS,). A tie goes to the upper level."""
    middles = (torch.arange(CELLS, device=levels.device) - 2 * EDGE - 0.5) / 2
    return torch.bucketize(middles, (levels[1:] + levels[:-1]) / 2)


def nearest_value(at: Tensor, levels: Tensor) -> Tensor:
    """The nearest level of each weight / scale; same shape as `at`."""
    return levels[cell_codes(levels)].index_select(0, cell(at).reshape(-1)).reshape(at.shape)


def nearest_code(at: Tensor, levels: Tensor) -> Tensor:
    """The index of that level: uint8, same shape as `at`."""
    return cell_codes(levels).to(torch.uint8).index_select(0, cell(at).reshape(-1)).reshape(at.shape)


def least_squares(rows: Tensor, seen: Tensor, shared: bool, otherwise: Tensor) -> Tensor:
    """The scale that minimises |rows - seen · scale|²: <w, q> / <q, q> per row or, if `shared`, per layer.

    rows, seen: (rows, columns)   returns: (rows, 1) or (1, 1); `otherwise` where it would not be positive.
    """
    dims = (0, 1) if shared else (1,)
    top = (rows * seen).sum(dim=dims, keepdim=True)
    bottom = (seen * seen).sum(dim=dims, keepdim=True)
    return torch.where((top > 0) & (bottom > 0), top / bottom, otherwise).clamp(min=TINY)


def moments(rows: Tensor, shared: bool, centred: bool) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per row or layer; not `centred`: zero and root mean square.

    Sums are made in float64, so that the order of the elements does not show. returns: (rows, 1) or (1, 1) each.
    """
    size = rows.numel() if shared else rows.shape[1]
    norm = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()
    total = rows.sum(dim=1, dtype=torch.float64) if centred else torch.zeros_like(norm)
    if shared:
        norm, total = norm.sum(dim=0, keepdim=True), total.sum(dim=0, keepdim=True)
    mean = total / size
    std = (norm / size - mean.square()).clamp(min=0).sqrt().clamp(min=TINY)
    return mean.float()[:, None], std.float()[:, None]


@dataclass(frozen=True)
class Start:
    """Where a quantizer begins: gain and unit (rows, 1) or (1, 1), codebook (levels,) in units of the int8 grid."""

    gain: Tensor
    unit: Tensor
    codebook: Tensor


def start_uniform(rows: Tensor, spec: Spec) -> Start:
    """Clip of the normalised weight by rule: `mse` least squared error, `clip3` 3.0 (as APoT's code), `absmax` largest.

    The gain is the clip alpha of arXiv 2210.17326. With one bit every rule starts from mean |weight|, our reading.
    """
    shared = spec.granularity == "layer"
    centre, unit = uniform_unit(rows, spec)
    normal = (rows - centre) / unit
    codebook = torch.tensor(FORMATS[spec.format].levels, dtype=torch.float32, device=rows.device)
    if FORMATS[spec.format].bits == 1:
        gain = normal.abs().mean(dim=(0, 1) if shared else 1, keepdim=True)
    elif spec.rule == "clip3":
        gain = torch.full_like(unit, 3.0)
    else:
        largest = normal.abs().amax(dim=(0, 1) if shared else 1, keepdim=True)
        gain = search_clip(normal, codebook, shared, largest) if spec.rule == "mse" else largest / _edge(spec)
    return Start(gain.clamp(min=FLOOR), unit, codebook)


def uniform_unit(rows: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
    """Centre and unit (one level at clip 1) of a weight, both constants for the gradient.

    The paper normalises by mean and standard deviation; the stored weight is multiplied back by the standard
    deviation alone (our reading), as symmetric integer levels cannot hold a mean. That costs accuracy where rows have
    a mean, so only rule `clip3`, the paper's, removes it; the others normalise by the root mean square.
    """
    centre, spread = moments(rows, spec.granularity == "layer", centred=spec.rule == "clip3")
    return centre, spread / _edge(spec)


def search_clip(normal: Tensor, levels: Tensor, shared: bool, largest: Tensor) -> Tensor:
    """The clip of least squared error: a coarse grid up to the largest value, then a fine one around its best.

    normal: (rows, columns), weights in units of one level at clip 1   largest, returns: (rows, 1) or (1, 1).
    """
    coarse = largest.clamp(min=FLOOR) / levels[-1]
    around = best_scale(normal, levels, shared, [coarse * share for share in torch.logspace(-1, 0, 16).tolist()])
    return best_scale(normal, levels, shared, [around * share for share in torch.linspace(0.92, 1.08, 9).tolist()])


def best_scale(rows: Tensor, levels: Tensor, shared: bool, candidates: list[Tensor]) -> Tensor:
    """The scale of least squared error among the least-squares scales that the candidates lead to, per row or layer."""
    best, most = candidates[0], torch.zeros_like(candidates[0])
    for candidate in candidates:
        seen = nearest_value(rows / candidate, levels)
        scale = least_squares(rows, seen, shared, candidate)
        # |rows|² less this is the squared error
        explained = (seen * rows).sum(dim=(0, 1) if shared else 1, keepdim=True) * scale
        best = torch.where(explained > most, scale, best)
        most = torch.maximum(explained, most)
    return best


def start_kmeans(rows: Tensor, spec: Spec) -> Start:
    """One codebook a layer on the weights in units of their scale; by rule `mse` or `mass`. The gain starts at 1."""
    size = FORMATS[spec.format].size
    scale, codebook = (start_lloyd if spec.rule == "mse" else start_mass)(rows, size, spec.granularity == "layer")
    return Start(torch.ones_like(scale), scale, codebook)


def start_lloyd(rows: Tensor, size: int, shared: bool) -> tuple[Tensor, Tensor]:
    """Rule `mse`: Lloyd's k-means of the pooled normalised weights, in turn with least-squares scales.

    Rows count alike whatever their magnitude, since a batch norm often follows.
    returns: scale (rows, 1) or (1, 1), codebook (size,) with outermost magnitude 127.
    """
    scale = moments(rows, shared, centred=False)[1]
    codebook = spread_centroids(_sample(rows / scale), size)
    for _ in range(4):
        codebook, stretch = stretched(lloyd(_sample(rows / scale), codebook))
        scale = (scale * stretch).clamp(min=TINY)
        scale = least_squares(rows, nearest_value(rows / scale, snap(codebook)), shared, scale)
    return scale, codebook


def stretched(codebook: Tensor) -> tuple[Tensor, Tensor]:
    """A codebook with its outermost magnitude at 127, and the factor for the scale that keeps the weights."""
    largest = codebook.abs().max()
    factor = torch.where(largest > 0, largest / EDGE, 1.0)
    return codebook / factor, factor


def lloyd(ordered: Tensor, centroids: Tensor, rounds: int = 60) -> Tensor:
    """Lloyd's k-means in one dimension, weights (n,) and centroids (K,) ascending. An empty cell keeps its centroid."""
    ordered, centroids = ordered.double(), centroids.double()
    sums = nn.functional.pad(ordered.cumsum(0), (1, 0))
    for _ in range(rounds):
        inner = torch.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        edges = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), len(ordered))])
        count = edges.diff()
        centroids = torch.where(count > 0, sums[edges].diff() / count.clamp(min=1), centroids)
    return centroids.float()


def spread_centroids(ordered: Tensor, size: int, bins: int = 512) -> Tensor:
    """First centroids with a density of the weights' to the power 1/3, the best for many levels (Panter and Dite 1951).

    ordered: (n,) ascending   returns: (size,) ascending, all different when the weights are not all equal.
    """
    low, high = float(ordered[0]), float(ordered[-1])
    mass = torch.histc(ordered.cpu(), bins, low, high).pow(1 / 3).cumsum(0).to(ordered.device)
    wanted = (torch.arange(size, device=ordered.device) + 0.5) / size * mass[-1]
    return low + (torch.searchsorted(mass, wanted) + 0.5) / bins * (high - low)


def start_mass(rows: Tensor, size: int, shared: bool) -> tuple[Tensor, Tensor]:
    """Rule `mass`: the equal-mass partition of arXiv 2606.08078 (after 2406.05359); our reading, one codebook a layer.

    Weights are clamped to their 5 % and 95 % quantiles and divided by the largest magnitude left; a centroid is the
    mean of its quantile interval; centroids are stretched so that the outermost magnitude is 1 (here 127); the scale
    is least squares for weights assigned in units of that largest magnitude.
    returns: scale (rows, 1) or (1, 1), codebook (size,).
    """
    tail = (1 - RETENTION) / 2
    low, high = _quantiles(rows.reshape(1, -1) if shared else rows, (tail, 1 - tail))
    kept = rows.clamp(low, high)
    largest = torch.maximum(low.abs(), high.abs()).clamp(min=TINY)
    ordered = (kept / largest).reshape(-1).sort().values
    edges = torch.linspace(0, len(ordered), size + 1).round().long().to(rows.device)
    count = edges.diff()
    sums = nn.functional.pad(ordered.double().cumsum(0), (1, 0))
    middle = ordered[((edges[1:] + edges[:-1]) // 2).clamp(max=len(ordered) - 1)]
    codebook = torch.where(count > 0, sums[edges].diff() / count.clamp(min=1), middle.double()).float()
    codebook, _ = stretched(codebook)
    unit = largest / EDGE
    return least_squares(rows, nearest_value(rows / unit, snap(codebook)), shared, unit), codebook


def _quantiles(rows: Tensor, shares: tuple[float, float]) -> list[Tensor]:
    """Nearest-rank quantiles of each row: (rows, n) → one (rows, 1) for each share."""
    ordered = rows.sort(dim=1).values
    return [ordered[:, [round(share * (rows.shape[1] - 1))]] for share in shares]


def _sample(at: Tensor) -> Tensor:
    """At most SAMPLE of the values, ascending; steps of the golden ratio, so that no kernel position is preferred."""
    flat = at.reshape(-1)
    if len(flat) > SAMPLE:
        golden = torch.arange(SAMPLE, device=flat.device, dtype=torch.float64) * ((5**0.5 - 1) / 2)
        flat = flat[((golden - golden.floor()) * len(flat)).long()]
    return flat.sort().values


def _edge(spec: Spec) -> int:
    """The outermost level of a fixed format."""
    levels = FORMATS[spec.format].levels
    assert levels is not None
    return levels[-1]


def refreshed(at: Tensor, codebook: Tensor, clips: bool) -> Tensor:
    """One step of a codebook towards the means of the weights assigned to each level (an exponential moving average).

    at: weight / scale   codebook: (levels,), float   returns: (levels,), ascending. With `clips` weights beyond the
    outermost level count as if on it (arXiv 2606.08078). A level without weights keeps its place.
    """
    codes = nearest_code(at, snap(codebook)).reshape(-1).int()
    count = torch.bincount(codes, minlength=len(codebook))
    seen = (at.clamp(-EDGE, EDGE) if clips else at).reshape(-1).double()
    means = torch.bincount(codes, weights=seen, minlength=len(codebook)) / count.clamp(min=1)
    share = EMA if bool((count > 0).double().mean() >= USED) else EMA_SPARSE
    moved = codebook + share * (means.float() - codebook)
    return torch.where(count > 0, moved, codebook).cummax(dim=0).values


@dataclass(frozen=True)
class Quantizer:
    """A family of formats: how it starts, the gradient of its scale (see Project), and its centre and unit.

    With `unit` these follow the present weight; without, the unit is that of the start and the centre is zero.
    """

    start: Callable[[Tensor, Spec], Start]
    clips: bool
    unit: Callable[[Tensor, Spec], tuple[Tensor, Tensor]] | None = None


QUANTIZERS: dict[str, Quantizer] = {
    "uniform": Quantizer(start_uniform, clips=True, unit=uniform_unit),
    "kmeans": Quantizer(start_kmeans, clips=False),
}


class Quantized(nn.Module):
    """The parametrization of a weight: float weight (rows, ...) → decoded weight of the same shape, float32.

    Codes are assigned anew in every pass; `gain` is learned, the codebook moves in `refresh`.
    """

    gain: Tensor
    unit: Tensor
    codebook: Tensor

    def __init__(self, weight: Tensor, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.learned = FORMATS[spec.format].levels is None
        with torch.no_grad():
            start = QUANTIZERS[self._family].start(_rows(weight.detach()), spec)
        self.gain = nn.Parameter(start.gain)
        self.register_buffer("unit", start.unit, persistent=self.learned)
        self.register_buffer("codebook", start.codebook, persistent=self.learned)

    @property
    def _family(self) -> str:
        return FORMATS[self.spec.format].family

    def forward(self, weight: Tensor) -> Tensor:
        rows = _rows(weight)
        centre, unit = self._units(rows)
        clips = QUANTIZERS[self._family].clips
        return Project.apply(rows, self.gain, unit, centre, self.levels(), clips).reshape(weight.shape)

    def levels(self) -> Tensor:
        """The levels of the int8 grid: (levels,), float32, ascending."""
        return snap(self.codebook)

    @torch.no_grad()
    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the forward pass sees, in parts: codes uint8 (shape of weight), levels int8, scale (rows,) or (1,)."""
        rows = _rows(weight)
        centre, unit = self._units(rows)
        scale = scale_of(self.gain, unit)
        codes = nearest_code((rows - centre) / scale, self.levels())
        return codes.reshape(weight.shape), self.levels().to(torch.int8), scale.reshape(-1)

    @torch.no_grad()
    def refresh(self, weight: Tensor) -> None:
        """Move a learned codebook towards its weights; fixed levels stay."""
        if not self.learned:
            return
        rows = _rows(weight)
        at = rows / scale_of(self.gain, self.unit)
        codebook, factor = stretched(refreshed(at, self.codebook, clips=self.spec.rule == "mass"))
        self.codebook.copy_(codebook)
        self.gain.mul_(factor)

    @torch.no_grad()
    def _units(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        unit = QUANTIZERS[self._family].unit
        return (torch.zeros_like(self.unit), self.unit) if unit is None else unit(rows, self.spec)


def _rows(weight: Tensor) -> Tensor:
    """(out, ...) → (out, rest), in C order whatever the memory format."""
    return weight.reshape(weight.shape[0], -1)
