"""Where each family of formats begins: scale and levels from the float weights, by rule.

Weights are rows, (rows, columns); `shared` means one scale for the layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sottovoce.bits.formats import FORMATS
from sottovoce.bits.plan import Spec
from sottovoce.quant.levels import (
    EDGE,
    TINY,
    least_squares,
    lloyd,
    mean_magnitude,
    moments,
    nearest_value,
    sample,
    snap,
    spread_centroids,
    stretched,
)

FLOOR = 0.01  # a gain may fall to this share of 1 and no further, so that every scale stays above 0
RETENTION = 0.9  # share of weights inside the clamp of rule `mass`
TERNARY_CUT = 0.7  # of the mean magnitude: smaller weights become 0 (ternary weight networks, arXiv 1605.04711)
CENTRED = ("clip3", "clipped")  # rules that take the mean off before they look for the nearest level


@dataclass(frozen=True)
class Start:
    """Where a quantizer begins: gain and unit (rows, 1) or (1, 1); codebook (levels,) or (rows, levels)."""

    gain: Tensor
    unit: Tensor
    codebook: Tensor


def fixed_levels(spec: Spec, like: Tensor) -> Tensor:
    """The levels of a format that has them, as float32 on the device of `like`."""
    return torch.tensor(FORMATS[spec.format].levels, dtype=torch.float32, device=like.device)


def edge(spec: Spec) -> int:
    """The outermost level of a format with fixed levels."""
    levels = FORMATS[spec.format].levels
    assert levels is not None
    return levels[-1]


def shares_scale(spec: Spec) -> bool:
    """Whether all rows of a layer have one scale."""
    return spec.granularity == "layer"


def start_clip(rows: Tensor, spec: Spec) -> Start:
    """Clip of the normalised weight by rule: `mse` least squared error, `absmax` the largest, the others 3.0.

    3.0 is the start of APoT's code. The gain is the clip alpha of arXiv 2210.17326. With one bit every rule starts
    from mean |weight|, our reading.
    """
    shared = shares_scale(spec)
    centre, unit = clip_unit(rows, spec)
    normal = (rows if centre is None else rows - centre) / unit
    codebook = fixed_levels(spec, rows)
    if spec.bits == 1:
        gain = normal.abs().mean(dim=(0, 1) if shared else 1, keepdim=True)
    elif spec.rule in CENTRED:
        gain = torch.full_like(unit, 3.0)
    else:
        largest = normal.abs().amax(dim=(0, 1) if shared else 1, keepdim=True)
        gain = search_clip(normal, codebook, shared, largest) if spec.rule == "mse" else largest / edge(spec)
    return Start(gain.clamp(min=FLOOR), unit, codebook)


def clip_unit(rows: Tensor, spec: Spec) -> tuple[Tensor | None, Tensor]:
    """Centre (None: zero) and unit (one level at clip 1) of a weight, both constants for the gradient.

    The paper normalises by mean and standard deviation; the stored weight is multiplied back by the standard
    deviation alone (our reading), as symmetric integer levels cannot hold a mean. That costs accuracy where rows have
    a mean, so only the rules that start at the papers' 3.0 remove it; the others normalise by the root mean square.
    """
    centre, spread = moments(rows, shares_scale(spec), centred=spec.rule in CENTRED)
    return centre, spread / edge(spec)


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


def start_lsq(rows: Tensor, spec: Spec) -> Start:
    """Step size by rule: `lsq` 2 mean |w| / √Q_P (arXiv 1902.08153), `mse` least squared error. The gain starts at 1.

    With one bit it is mean |w|, our reading: there 2 mean |w| would be twice the best scale of two signs.
    """
    shared, codebook = shares_scale(spec), fixed_levels(spec, rows)
    unit = mean_magnitude(rows, shared)
    if spec.bits > 1:
        unit = unit * 2 / edge(spec) ** 0.5
    if spec.rule == "mse":
        largest = (rows / unit).abs().amax(dim=(0, 1) if shared else 1, keepdim=True)
        unit = (unit * search_clip(rows / unit, codebook, shared, largest)).clamp(min=TINY)
    return Start(torch.ones_like(unit), unit, codebook)


def start_kmeans(rows: Tensor, spec: Spec) -> Start:
    """Codebooks on the weights in units of their scale: Lloyd's k-means, or rule `mass`. The gain starts at 1."""
    size = FORMATS[spec.format].size
    scale, codebook = (start_mass if spec.rule == "mass" else start_lloyd)(rows, size, spec.granularity)
    return Start(torch.ones_like(scale), scale, codebook)


def start_lloyd(rows: Tensor, size: int, granularity: str) -> tuple[Tensor, Tensor]:
    """Lloyd's k-means of the pooled normalised weights, or from there of each row's, in turn with the best scales.

    Rows count alike whatever their magnitude, since a batch norm often follows.
    returns: scale (rows, 1) or (1, 1), codebook (size,) or (rows, size) with outermost magnitude 127.
    """
    shared = granularity == "layer"
    scale = moments(rows, shared, centred=False)[1]
    codebook = spread_centroids(sample(rows / scale), size)
    for _ in range(4):
        codebook, stretch = stretched(lloyd(sample(rows / scale), codebook))
        scale = (scale * stretch).clamp(min=TINY)
        scale = least_squares(rows, nearest_value(rows / scale, snap(codebook)), shared, scale)
    return own_codebooks(rows, scale, codebook) if granularity == "codebook" else (scale, codebook)


def own_codebooks(rows: Tensor, scale: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
    """Lloyd's k-means in each row, from the shared codebook and from intervals of equal mass; the better one is kept.

    scale: (rows, 1), of the shared codebook (levels,)   returns: scale (rows, 1), codebook (rows, levels).
    """
    ordered = (rows / scale).sort(dim=1).values
    found = []
    for first in (shared.repeat(len(rows), 1), equal_mass(ordered, len(shared))):
        codebook, stretch = stretched(lloyd(ordered, first))
        unit = (scale * stretch).clamp(min=TINY)
        seen = nearest_value(rows / unit, snap(codebook))
        unit = least_squares(rows, seen, False, unit)
        found.append((unit, codebook, (rows - seen * unit).square().sum(dim=1, keepdim=True)))
    (one, first, error), (other, second, rival) = found
    better = rival < error
    return torch.where(better, other, one), torch.where(better, second, first)


def start_mass(rows: Tensor, size: int, granularity: str) -> tuple[Tensor, Tensor]:
    """Rule `mass`: the equal-mass partition of arXiv 2606.08078 (after 2406.05359); our reading where it is pooled.

    Weights are clamped to their 5 % and 95 % quantiles and divided by the largest magnitude left; a centroid is the
    mean of its quantile interval (the middle value of an empty one); centroids are stretched so that the outermost
    magnitude is 1 (here 127); the scale is least squares for weights assigned in units of that largest magnitude.
    Granularity `codebook` does so in each row; otherwise rows share the centroids.
    returns: scale (rows, 1) or (1, 1), codebook (size,) or (rows, size).
    """
    shared, tail = granularity == "layer", (1 - RETENTION) / 2
    low, high = _quantiles(rows.reshape(1, -1) if shared else rows, (tail, 1 - tail))
    largest = torch.maximum(low.abs(), high.abs()).clamp(min=TINY)
    kept = rows.clamp(low, high) / largest
    ordered = (kept if granularity == "codebook" else kept.reshape(-1)).sort(dim=-1).values
    codebook, _ = stretched(equal_mass(ordered, size))
    unit = largest / EDGE
    return least_squares(rows, nearest_value(rows / unit, snap(codebook)), shared, unit), codebook


def equal_mass(ordered: Tensor, size: int) -> Tensor:
    """Means of `size` intervals with equally many weights: (n,) or (rows, n), ascending → (size,) or (rows, size)."""
    length = ordered.shape[-1]
    edges = torch.linspace(0, length, size + 1).round().long().to(ordered.device)
    count = edges.diff()
    sums = nn.functional.pad(ordered.double().cumsum(-1), (1, 0))
    middle = ordered[..., ((edges[1:] + edges[:-1]) // 2).clamp(max=length - 1)]
    return torch.where(count > 0, sums[..., edges].diff(dim=-1) / count.clamp(min=1), middle.double()).float()


def _quantiles(rows: Tensor, shares: tuple[float, float]) -> list[Tensor]:
    """Nearest-rank quantiles of each row: (rows, n) → one (rows, 1) for each share."""
    ordered = rows.sort(dim=1).values
    return [ordered[:, [round(share * (rows.shape[1] - 1))]] for share in shares]


def start_binary(rows: Tensor, spec: Spec) -> Start:
    """Signs times mean |w|, the best scale for them (arXiv 1603.05279); granularity `codebook`: two free centroids."""
    if spec.granularity == "codebook":
        unit, codebook = start_lloyd(rows, FORMATS[spec.format].size, spec.granularity)
    else:
        unit, codebook = mean_magnitude(rows, shares_scale(spec)), fixed_levels(spec, rows)
    return Start(torch.ones_like(unit), unit, codebook)


def start_ternary(rows: Tensor, spec: Spec) -> Start:
    """The mean magnitude of the weights beyond the cut (arXiv 1605.04711, equations 5 and 6). The gain starts at 1."""
    shared = shares_scale(spec)
    cut = ternary_cut(rows, spec)
    beyond = rows.abs() > cut
    dims = (0, 1) if shared else (1,)
    total = (rows.abs() * beyond).sum(dim=dims, keepdim=True)
    unit = (total / beyond.sum(dim=dims, keepdim=True).clamp(min=1)).clamp(min=TINY)
    return Start(torch.ones_like(unit), unit, fixed_levels(spec, rows))


def ternary_cut(rows: Tensor, spec: Spec) -> Tensor:
    """0.7 mean |w| of the present weight: (rows, 1) or (1, 1)."""
    return TERNARY_CUT * mean_magnitude(rows, shares_scale(spec))
