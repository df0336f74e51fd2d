"""Data-aware rounding: codes, levels and scale of a layer that keep its output on real inputs, not its weight.

With X the inputs of a layer (positions, columns), H = XᵀX / positions and W the weight, the damage of a rounded weight
Q is tr((Q - W) H (Q - W)ᵀ), the mean squared change of the output summed over its channels. It is lowered by turns:
codes column by column with the error of each passed on to the next (GPTQ, Frantar 2023, arXiv 2210.17323), codes by
coordinate descent, codebook and scale by least squares weighted with H (the idea of GPTVQ, arXiv 2402.15319).

Everything is batched over the groups of a convolution. Shapes: target, codes (groups, rows, columns); moment H
(groups, columns, columns); scale (groups, rows, 1), or (1, 1, 1) shared; levels (groups, rows, K), or (1, 1, K) shared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sottovoce.quant.levels import snap, stretched

BLOCK = 64  # columns whose errors are passed on together
ROWS = 32  # rows whose one-hot codes are held at a time
FIT_ROWS = 64  # rows, at least, that a shared codebook is fitted on
DAMPING = 0.01  # of the mean diagonal of H, added to it
RIDGE = 1e-6  # pulls the levels that no code uses to where they were
ROUNDS = 3
SWEEPS = 2  # of coordinate descent after every propagation


@dataclass(frozen=True)
class Rounded:
    """A weight as levels[codes] · scale; levels are integers of the int8 grid, as floats."""

    codes: Tensor
    scale: Tensor
    levels: Tensor

    def decode(self) -> Tensor:
        """The weight: (groups, rows, columns)."""
        return chosen(self.levels, self.codes) * self.scale


def chosen(levels: Tensor, codes: Tensor) -> Tensor:
    """The level of each code: (groups, rows, columns)."""
    return levels.expand(*codes.shape[:2], levels.shape[-1]).gather(2, codes)


def nearest(target: Tensor, scale: Tensor, levels: Tensor) -> Tensor:
    """Codes of the nearest levels, int64, for any number of columns."""
    middles = ((levels[..., 1:] + levels[..., :-1]) / 2).expand(*target.shape[:2], levels.shape[-1] - 1)
    return torch.searchsorted(middles.contiguous(), (target / scale).contiguous())


def damage(error: Tensor, moment: Tensor) -> float:
    """tr(E H Eᵀ), summed over groups."""
    return float(((error @ moment) * error).sum(dtype=torch.float64))


def damped(moment: Tensor, damping: float) -> Tensor:
    """H with `damping` times its mean diagonal added: columns that the inputs never move are still rounded well."""
    mean = moment.diagonal(dim1=1, dim2=2).mean(dim=1)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    return moment + torch.diag_embed((damping * mean)[:, None].expand(moment.shape[:2]))


def upper_factor(moment: Tensor) -> Tensor:
    """Upper triangular V with V Vᵀ = H, float64 inside. Raises torch.linalg.LinAlgError when H is not positive."""
    lower = torch.linalg.cholesky(moment.double().flip(1, 2))
    return lower.flip(1, 2).to(moment.dtype)


@dataclass(frozen=True)
class Course:
    """In which order columns are rounded (groups, columns), and how much of each earlier error pulls at a later one."""

    order: Tensor
    pull: Tensor  # (groups, later, earlier), unit lower triangular


def course(moment: Tensor) -> Course:
    """Largest diagonal of H first; with V of `upper_factor`, column i pulls at column j by V_ij / V_jj."""
    order = moment.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True)
    v = upper_factor(_permuted(moment, order))
    return Course(order, (v / v.diagonal(dim1=1, dim2=2)[:, None, :]).mT.contiguous())


def propagate(target: Tensor, along: Course, scale: Tensor, levels: Tensor) -> Tensor:
    """Codes column by column, along the course of H; each sees the error of the columns before it.

    Column j aims at w_j - Σ_{i<j} e_i V_ij / V_jj: the rule of GPTQ, written as the nearest plane of a lattice, which
    needs no inverse of H.
    """
    groups, rows, columns = target.shape
    order, pull = along.order, along.pull
    goal = target.mT.gather(1, order[:, :, None].expand(groups, columns, rows))
    bounds, values = _tables(scale, levels, rows, groups)
    codes = torch.empty(goal.shape, dtype=torch.int64, device=goal.device)
    error = torch.zeros_like(goal)
    for low in range(0, columns, BLOCK):
        high = min(low + BLOCK, columns)
        wanted = goal[:, low:high] - pull[:, low:high, :low] @ error[:, :low]
        for j in range(low, high):
            code = torch.searchsorted(bounds, wanted[:, j - low, :, None].contiguous())
            codes[:, j] = code[..., 0]
            error[:, j] = values.gather(2, code)[..., 0] - goal[:, j]
            wanted[:, j - low + 1 :] -= pull[:, j + 1 : high, j, None] * error[:, j, None]
    return torch.empty_like(codes).scatter_(1, order[:, :, None].expand_as(codes), codes).mT.contiguous()


def descend(target: Tensor, moment: Tensor, start: Rounded, sweeps: int = SWEEPS) -> Tensor:
    """Codes after sweeps of coordinate descent: each column takes its best level given all others; never worse."""
    groups, rows, columns = target.shape
    bounds, values = _tables(start.scale, start.levels, rows, groups)
    codes, weight = start.codes.mT.contiguous(), start.decode().mT.contiguous()
    diagonal = moment.diagonal(dim1=1, dim2=2)
    for _ in range(sweeps):
        slope = moment @ (weight - target.mT)
        for low in range(0, columns, BLOCK):
            high = min(low + BLOCK, columns)
            near, moved = slope[:, low:high].clone(), torch.zeros_like(slope[:, low:high])
            for j in range(low, high):
                wanted = weight[:, j] - near[:, j - low] / diagonal[:, j, None]
                code = torch.searchsorted(bounds, wanted[..., None].contiguous())
                step = values.gather(2, code)[..., 0] - weight[:, j]
                codes[:, j], moved[:, j - low] = code[..., 0], step
                near[:, j - low + 1 :] += moment[:, j + 1 : high, j, None] * step[:, None]
            weight[:, low:high] += moved
            slope += moment[:, :, low:high] @ moved
    return codes.mT.contiguous()


def _tables(scale: Tensor, levels: Tensor, rows: int, groups: int) -> tuple[Tensor, Tensor]:
    """Per row, in the unit of the weight: bounds between neighbouring levels (groups, rows, K - 1), levels (.., K)."""
    values = (levels * scale).expand(groups, rows, levels.shape[-1]).contiguous()
    return (values[..., 1:] + values[..., :-1]) / 2, values


def refitted_scale(target: Tensor, moment: Tensor, now: Rounded) -> Tensor:
    """The scale of least damage for these codes: <q, w>_H / <q, q>_H per row, or over all rows when it is shared."""
    seen = chosen(now.levels, now.codes)
    through = seen @ moment
    top, bottom = (through * target).sum(dim=2, keepdim=True), (through * seen).sum(dim=2, keepdim=True)
    if now.scale.numel() == 1 and target.shape[:2].numel() > 1:
        top, bottom = top.sum().reshape(1, 1, 1), bottom.sum().reshape(1, 1, 1)
    return torch.where((top > 0) & (bottom > 0), top / bottom.clamp(min=1e-30), now.scale)


def refitted_levels(target: Tensor, moment: Tensor, now: Rounded) -> Rounded:
    """Codebook of least damage for these codes, by least squares; snapped to the int8 grid, scale refitted after it."""
    shared = now.levels.shape[:2].numel() == 1
    left, right = _normal_equations(target, moment, now, shared)
    ridge = RIDGE * left.diagonal(dim1=-2, dim2=-1).mean(dim=-1, keepdim=True).clamp(min=1e-30)
    left = left + torch.diag_embed(ridge.expand(left.shape[:-1]))
    right = right + ridge * now.levels.reshape(right.shape)
    fitted, order = torch.linalg.solve(left, right).reshape(now.levels.shape).sort(dim=2)
    rank = order.argsort(dim=2)
    codes = rank.expand(*now.codes.shape[:2], rank.shape[2]).gather(2, now.codes)
    codebook, factor = stretched(fitted.to(target.dtype))
    levels = snap(codebook)
    after = Rounded(codes, now.scale * factor, levels)
    return replace(after, scale=refitted_scale(target, moment, after))


def round_to_data(target: Tensor, moment: Tensor, start: Rounded, learned: bool, rounds: int = ROUNDS) -> Rounded:
    """Codes, scale and (when `learned`) levels of little damage, never more than that of `start` or the nearest level.

    moment: positive definite (see `damped`). The best of all rounds is kept.
    """
    best = replace(start, codes=nearest(target, start.scale, start.levels))
    least = damage(best.decode() - target, moment)
    if (given := damage(start.decode() - target, moment)) < least:
        best, least = start, given
    now, along = best, course(moment)
    for turn in range(rounds + 1):
        tried = replace(now, codes=propagate(target, along, now.scale, now.levels))
        tried = replace(tried, scale=refitted_scale(target, moment, tried))
        tried = replace(tried, codes=descend(target, moment, tried))
        loss = damage(tried.decode() - target, moment)
        if loss >= least:
            break
        best, least = tried, loss
        if turn < rounds:
            now = refitted_levels(target, moment, tried) if learned else _rescaled(target, moment, tried)
    return best


def corrected_target(weight: Tensor, moment: Tensor, drift: Tensor) -> Tensor:
    """The weight that makes of the inputs seen what `weight` makes of the inputs that the float network sees.

    drift: (groups, columns, columns), (X_float - X)ᵀ X / positions   returns: W + W · drift · H⁻¹, shape of weight.
    """
    factor = torch.linalg.cholesky(moment.double())
    moved = torch.cholesky_solve((weight.double() @ drift.double()).mT, factor).mT
    return weight + moved.to(weight.dtype)


def patches(layer: nn.Module, x: Tensor, positions: Tensor) -> Tensor:
    """Rows of the im2col matrix of a layer at some of its output positions, drawn without making the whole matrix.

    x: the layer's input   positions: (n,) indices into the output's batch × space   returns: (groups, n, columns),
    columns in the order of the weight's.
    """
    return taken(layer, windows(layer, x), positions)


def windows(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer sees at each output position, a view: (batch, *space, channels, *kernel); (positions, channels)."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    spatial = x.dim() - 2
    pads = [side for amount in reversed(layer.padding) for side in (amount, amount)]
    view = nn.functional.pad(x, pads) if any(pads) else x
    for axis in range(spatial):
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        view = view.unfold(2 + axis, reach, layer.stride[axis])[..., :: layer.dilation[axis]]
    return view.movedim(1, 1 + spatial)


def taken(layer: nn.Module, view: Tensor, positions: Tensor) -> Tensor:
    """Some positions of the view of `windows`, as `patches` returns them."""
    if isinstance(layer, nn.Linear):
        return view[None, positions]
    spatial = view.dim() // 2 - 1
    places = torch.unravel_index(positions, view.shape[: 1 + spatial])
    return view[places].reshape(len(positions), layer.groups, -1).movedim(1, 0)


def _rescaled(target: Tensor, moment: Tensor, now: Rounded) -> Rounded:
    return replace(now, scale=refitted_scale(target, moment, now))


def _permuted(moment: Tensor, order: Tensor) -> Tensor:
    """Rows and columns of H in the given order, per group."""
    by_row = moment.gather(1, order[:, :, None].expand_as(moment))
    return by_row.gather(2, order[:, None, :].expand_as(moment))


def _normal_equations(target: Tensor, moment: Tensor, now: Rounded, shared: bool) -> tuple[Tensor, Tensor]:
    """Left (..., K, K) and right side (..., K) for the levels, float64; summed over rows when they share a codebook."""
    groups, rows, _ = target.shape
    size = now.levels.shape[-1]
    step = max(1, groups * rows // FIT_ROWS) if shared else 1
    kept = torch.arange(0, rows, step) if rows >= step else torch.arange(rows)
    scale = now.scale.expand(groups, rows, 1)
    through = target @ moment
    lefts, rights = [], []
    for some in kept.split(ROWS):
        hot = nn.functional.one_hot(now.codes[:, some], size).to(target.dtype).mT * scale[:, some, None]
        flat = hot.reshape(groups, -1, hot.shape[-1])
        lefts.append((flat @ moment).reshape(hot.shape).double() @ hot.double().mT)
        rights.append((hot.double() @ through[:, some, :, None].double())[..., 0])
    left, right = torch.cat(lefts, dim=1), torch.cat(rights, dim=1)
    return (left.sum(dim=(0, 1), keepdim=True), right.sum(dim=(0, 1), keepdim=True)) if shared else (left, right)
