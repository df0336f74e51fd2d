"""Nearest levels, scales and codebooks as pure functions on tensors.

Weights are rows, (rows, columns), one row an output channel. Levels are integers of the int8 grid, ascending, as
float32: (levels,) for all rows, or (rows, levels) with a codebook for each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EDGE = 127  # outermost level of a learned codebook
TINY = 1e-10  # smallest unit of a row; a hundredth of it is still a normal float32
SAMPLE = 65536  # normalised weights that Lloyd's iterations of a shared codebook look at
CELLS = 512  # half-integer cells that cover -128.5 … 127.5
ZERO_CELL = 257  # the cell that begins at 0
FEW = 4096  # for fewer weights a search in the levels is faster than a table of cells
EMA = 0.1  # share of the new centroids in a refresh (arXiv 2606.08078)
EMA_SPARSE = 0.2  # the same when too few levels are in use
USED = 0.9  # share of levels in use below which EMA_SPARSE holds


def snap(codebook: Tensor) -> Tensor:
    """A float codebook, ascending → its levels: integers in -127..127, as float32, ascending and distinct (K ≤ 255).

    codebook, returns: (levels,) or (rows, levels).
    """
    size = codebook.shape[-1]
    order = torch.arange(size, device=codebook.device, dtype=codebook.dtype)
    apart = torch.cummax(codebook.round() - order, dim=-1).values
    highest = max(EDGE - (size - 1), -EDGE)
    return (apart.clamp(-EDGE, highest) + order).clamp(max=EDGE)


def cell(at: Tensor) -> Tensor:
    """Index of the half-integer cell of each weight / scale; all in one cell have the same nearest level."""
    return at.mul(2).add_(ZERO_CELL).clamp_(0, CELLS - 1).to(torch.int32)


def staircase(levels: Tensor, first: Tensor, rises: Tensor) -> Tensor:
    """What every cell stands for, when it is `first` below all borders and rises at each border between two levels.

    A tie goes to the upper level. levels: (..., K)   first: (..., 1)   rises: (..., K - 1)   returns: (..., CELLS).
    """
    border = (levels[..., 1:] + levels[..., :-1] + ZERO_CELL).long()
    steps = levels.new_zeros(*levels.shape[:-1], CELLS).scatter_add_(-1, border, rises)
    return steps.cumsum(-1).add_(first)  # integers, so the sums are exact


def value_table(levels: Tensor) -> Tensor:
    """Nearest level of every cell: (..., K) → (..., CELLS)."""
    return staircase(levels, levels[..., :1], levels.diff(dim=-1))


def code_table(levels: Tensor) -> Tensor:
    """Index of that level: (..., K) → uint8 (..., CELLS)."""
    ones = torch.ones_like(levels)
    return staircase(levels, ones[..., :1] - 1, ones[..., 1:]).to(torch.uint8)


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """Entries of a table, (n,) for all rows or (rows, n), at an int32 index: (rows, columns), or any shape for (n,)."""
    if table.dim() == 2:
        size = table.shape[1]
        index = index + torch.arange(0, len(table) * size, size, device=index.device, dtype=torch.int32)[:, None]
    return table.reshape(-1).index_select(0, index.reshape(-1)).reshape(index.shape)


def search(at: Tensor, levels: Tensor) -> Tensor:
    """Index of the nearest level by bisection, a tie to the upper one: int32, same shape as `at`."""
    borders = (levels[..., 1:] + levels[..., :-1]) / 2
    return torch.searchsorted(borders, at.contiguous(), right=True, out_int32=True)


def nearest_value(at: Tensor, levels: Tensor, table: Tensor | None = None) -> Tensor:
    """The nearest level of each weight / scale; same shape as `at`. table: that of the levels, if it is at hand."""
    if at.numel() < FEW:
        return look_up(levels, search(at, levels))
    return look_up(value_table(levels) if table is None else table, cell(at))


def nearest_code(at: Tensor, levels: Tensor) -> Tensor:
    """The index of that level: uint8, same shape as `at`."""
    if at.numel() < FEW:
        return search(at, levels).to(torch.uint8)
    return look_up(code_table(levels), cell(at))


def cluster_sums(values: Tensor, codes: Tensor, levels: Tensor) -> Tensor:
    """Sum of the values with each code, in the shape of the levels.

    values: (rows, columns)   codes: the same shape, integers   returns: (levels,) or (rows, levels).
    """
    rows = values.new_zeros(len(values), levels.shape[-1]).scatter_add_(1, codes.long(), values)
    return rows if levels.dim() == 2 else rows.sum(dim=0)


def least_squares(rows: Tensor, seen: Tensor, shared: bool, otherwise: Tensor) -> Tensor:
    """The scale that minimises |rows - seen · scale|²: <w, q> / <q, q> per row or, if `shared`, per layer.

    rows, seen: (rows, columns)   returns: (rows, 1) or (1, 1); `otherwise` where it would not be positive.
    """
    dims = (0, 1) if shared else (1,)
    top = (rows * seen).sum(dim=dims, keepdim=True)
    bottom = (seen * seen).sum(dim=dims, keepdim=True)
    return torch.where((top > 0) & (bottom > 0), top / bottom, otherwise).clamp(min=TINY)


def moments(rows: Tensor, shared: bool, centred: bool) -> tuple[Tensor | None, Tensor]:
    """Mean and standard deviation per row or layer; not `centred`: None and root mean square.

    Sums are made in float64, so that the order of the elements does not show. returns: (rows, 1) or (1, 1) each.
    """
    size = rows.numel() if shared else rows.shape[1]
    norm = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()
    power = (norm.sum(dim=0, keepdim=True) if shared else norm) / size
    if not centred:
        return None, power.sqrt().clamp(min=TINY).float()[:, None]
    total = rows.sum(dim=1, dtype=torch.float64)
    mean = (total.sum(dim=0, keepdim=True) if shared else total) / size
    std = (power - mean.square()).clamp(min=0).sqrt().clamp(min=TINY)
    return mean.float()[:, None], std.float()[:, None]


def mean_magnitude(rows: Tensor, shared: bool) -> Tensor:
    """Mean |weight| per row or layer, above 0: (rows, 1) or (1, 1)."""
    norm = torch.linalg.vector_norm(rows, 1, dim=1, keepdim=True, dtype=torch.float64)
    total = norm.sum(dim=0, keepdim=True) / rows.numel() if shared else norm / rows.shape[1]
    return total.float().clamp(min=TINY)


def stretched(codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The codebook with outermost magnitude 127, and the factor, (1,) or (rows, 1), that the scale takes over."""
    largest = codebook.abs().amax(dim=-1, keepdim=True)
    factor = torch.where(largest > 0, largest / EDGE, 1.0)
    return codebook / factor, factor


def lloyd(ordered: Tensor, centroids: Tensor, rounds: int = 60) -> Tensor:
    """Lloyd's k-means in one dimension; an empty cell keeps its centroid.

    ordered: weights (n,) or (rows, n), ascending   centroids, returns: (K,) or (rows, K), ascending.
    """
    ordered, centroids = ordered.double().contiguous(), centroids.double()
    sums = nn.functional.pad(ordered.cumsum(-1), (1, 0))
    for _ in range(rounds):
        inner = torch.searchsorted(ordered, ((centroids[..., 1:] + centroids[..., :-1]) / 2).contiguous())
        edges = nn.functional.pad(inner, (1, 0))
        edges = torch.cat([edges, torch.full_like(edges[..., :1], ordered.shape[-1])], dim=-1)
        count = edges.diff(dim=-1)
        means = sums.gather(-1, edges).diff(dim=-1) / count.clamp(min=1)
        moved = torch.where(count > 0, means, centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids.float()


def spread_centroids(ordered: Tensor, size: int, bins: int = 512) -> Tensor:
    """First centroids with a density of the weights' to the power 1/3, the best for many levels (Panter and Dite 1951).

    ordered: (n,) ascending   returns: (size,) ascending, all different when the weights are not all equal.
    """
    low, high = float(ordered[0]), float(ordered[-1])
    mass = torch.histc(ordered.cpu(), bins, low, high).pow(1 / 3).cumsum(0).to(ordered.device)
    wanted = (torch.arange(size, device=ordered.device) + 0.5) / size * mass[-1]
    return low + (torch.searchsorted(mass, wanted) + 0.5) / bins * (high - low)


def sample(at: Tensor) -> Tensor:
    """At most SAMPLE of the values, ascending; steps of the golden ratio, so that no kernel position is preferred."""
    flat = at.reshape(-1)
    if len(flat) > SAMPLE:
        golden = torch.arange(SAMPLE, device=flat.device, dtype=torch.float64) * ((5**0.5 - 1) / 2)
        flat = flat[((golden - golden.floor()) * len(flat)).long()]
    return flat.sort().values


def refreshed(at: Tensor, codebook: Tensor, clips: bool, codes: Tensor | None = None) -> Tensor:
    """One step of a codebook towards the means of the weights assigned to each level (an exponential moving average).

    at: weight / scale, (rows, columns)   codebook, returns: (levels,) or (rows, levels), float, ascending
    codes: the assignment, nearest levels when None. With `clips` weights beyond the outermost level count as if on it
    (arXiv 2606.08078). A level without weights keeps its place.
    """
    at = at.reshape(-1, at.shape[-1])
    codes = nearest_code(at, snap(codebook)) if codes is None else codes.reshape(at.shape)
    seen = (at.clamp(-EDGE, EDGE) if clips else at).double()
    count = cluster_sums(torch.ones_like(seen), codes, codebook)
    means = cluster_sums(seen, codes, codebook) / count.clamp(min=1)
    used = (count > 0).double().mean(dim=-1, keepdim=True)
    moved = codebook + torch.where(used >= USED, EMA, EMA_SPARSE) * (means - codebook)
    return torch.where(count > 0, moved.float(), codebook).cummax(dim=-1).values
