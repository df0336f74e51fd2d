"""Which choice for which layer: the least total damage within an exact size. NumPy and SciPy; nothing here needs torch.

A choice is a format, or any other thing a layer can have one of. Damages add up over layers, as in arXiv 1911.03852
(HAWQ-V2). Three searches: sections of layers with one choice each (arXiv 2406.05359), an integer program (arXiv
2011.10680, HAWQ-V3), and dynamic programming. The last two are exact and agree.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from sottovoce.errors import BadInput, BadPlan

SECTIONS = 4  # groups of layers that share a choice
HALVINGS = 200  # steps of the search for the price of a byte
SLACK = 1e-9  # relative; a bound this close to the best known total does not rule a choice out
PROGRAM_SCALE = 1e3  # the best known total in the units of the integer program, whose tolerances are absolute

Picks = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Table:
    """What every choice of every layer costs; damages may be negative, sizes are whole and not negative.

    damage: float64 (layers, choices)   size: int64 (layers, choices), in `unit`   rank: float64 (layers,), how
    sensitive a layer is, used by the sections alone.   Raises BadInput when the parts do not fit each other.
    """

    layers: tuple[str, ...]
    choices: tuple[str, ...]
    damage: NDArray[np.float64]
    size: NDArray[np.int64]
    rank: NDArray[np.float64]
    unit: str = "bytes"

    def __post_init__(self) -> None:
        shape = (len(self.layers), len(self.choices))
        if 0 in shape or self.damage.shape != shape or self.size.shape != shape or self.rank.shape != shape[:1]:
            raise BadInput(f"{shape[0]} layers, {shape[1]} choices: damage {self.damage.shape}, size {self.size.shape}")
        if not (np.all(np.isfinite(self.damage)) and np.all(np.isfinite(self.rank))):
            raise BadInput("every damage and rank must be finite")
        if self.size.dtype != np.int64 or np.any(self.size < 0):
            raise BadInput("sizes must be int64 and not negative")

    @property
    def least(self) -> int:
        """Size with the smallest choice of every layer."""
        return int(self.size.min(axis=1).sum())

    @property
    def most(self) -> int:
        """Size with the largest choice of every layer."""
        return int(self.size.max(axis=1).sum())


@dataclass(frozen=True)
class Allocation:
    """A choice for every layer, by index in `Table.choices`, and what all of them cost together."""

    picks: tuple[int, ...]
    damage: float
    size: int


def allocate(table: Table, budget: int, search: str = "dp") -> Allocation:
    """The choices of least total damage whose sizes add up to at most `budget`.

    search: `dp` or `milp`, exact; `sections`, one choice for each of four groups of layers.   Raises BadInput for an
    unknown search, BadPlan for a budget below the least or above the most that the layers can take.
    """
    if search not in SEARCHES:
        near = difflib.get_close_matches(search, SEARCHES, 1, cutoff=0.0)[0]
        raise BadInput(f"search {search!r} is unknown; did you mean {near!r}? known: {', '.join(SEARCHES)}")
    check_budget(table, budget)
    picks = SEARCHES[search](table, budget)
    return Allocation(tuple(int(pick) for pick in picks), *cost(table, picks))


def check_budget(table: Table, budget: int) -> None:
    """Refuse a budget that no choice fits, or that the largest choices leave unused. Raises BadPlan."""
    if budget < table.least:
        raise BadPlan(
            f"a budget of {budget:,} {table.unit} is too small: the least possible is {table.least:,} {table.unit}"
        )
    if budget > table.most:
        raise BadPlan(
            f"a budget of {budget:,} {table.unit} is more than the widest choices take;"
            f" the most that can be used is {table.most:,} {table.unit}"
        )


def cost(table: Table, picks: Picks) -> tuple[float, int]:
    """Total damage and size of a choice for every layer, picks (layers,)."""
    rows = np.arange(len(table.layers))
    return math.fsum(table.damage[rows, picks]), int(table.size[rows, picks].sum())


def rho_budget(rho: float, weights: int) -> int:
    """The budget in bits of arXiv 2406.05359: a share `rho` of what float32 takes, codes alone. Our reading of it."""
    return math.floor(rho * 32 * weights)


# ---- dynamic programming


def dynamic(table: Table, budget: int) -> Picks:
    """Exact multiple-choice knapsack: layer by layer, only the totals that no smaller total beats go on.

    A total is dropped early when even the Lagrangian bound of the layers to come leaves it above the best known one
    (Sinha and Zoltners 1979); that never drops an optimum, and it keeps the lists short. Of equal totals the smaller
    one wins, then the one with earlier choices.
    """
    damage, size, room = _reduced(table, budget)
    price, known = _price(damage, size, room)
    best = _total(damage, known)
    limit = best + SLACK * best + 1e-12 * float(damage.max())
    rest = np.append((damage + price * size).min(axis=1)[::-1].cumsum()[::-1], 0.0)
    totals, sizes = np.zeros(1), np.zeros(1, dtype=np.int64)
    steps: list[NDArray[np.int64]] = []
    for layer in range(len(damage)):
        totals, sizes = (totals[:, None] + damage[layer]).ravel(), (sizes[:, None] + size[layer]).ravel()
        bound = totals + price * (sizes - room) + rest[layer + 1]
        kept = np.flatnonzero((sizes <= room) & (bound <= limit))
        kept = kept[_front(totals[kept], sizes[kept])]
        totals, sizes = totals[kept], sizes[kept]
        steps.append(kept)
    return _walk_back(steps, damage.shape[1])


def _front(totals: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices, by rising size, of the totals that are below every total of smaller or equal size."""
    order = np.lexsort((totals, sizes))
    lowest = np.minimum.accumulate(totals[order])
    first = np.ones(len(order), dtype=bool)
    first[1:] = lowest[1:] < lowest[:-1]
    front: NDArray[np.int64] = order[first]
    return front


def _walk_back(steps: list[NDArray[np.int64]], choices: int) -> Picks:
    """The choices behind the last, least total; each step holds (index of the state before) · choices + choice."""
    picks, at = np.zeros(len(steps), dtype=np.int64), len(steps[-1]) - 1
    for layer in range(len(steps) - 1, -1, -1):
        at, picks[layer] = divmod(int(steps[layer][at]), choices)
    return picks


def _reduced(table: Table, budget: int) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
    """Damage and size above the least of each layer, and the room that is left for sizes."""
    damage = table.damage - table.damage.min(axis=1, keepdims=True)
    return damage, table.size - table.size.min(axis=1, keepdims=True), budget - table.least


def _price(damage: NDArray[np.float64], size: NDArray[np.int64], room: int) -> tuple[float, Picks]:
    """The Lagrangian price of a unit of size, and choices that fit: those at the price, bettered while room is left."""

    def at(price: float) -> Picks:
        return _least(damage + price * size, size)

    def fits(picks: Picks) -> bool:
        return _total(size, picks) <= room

    if fits(picks := at(0.0)):
        return 0.0, picks
    low, high = 0.0, float(damage.max())  # at this price, or twice that of rounding, a unit outweighs any damage
    while not fits(at(high)):
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if fits(at(middle)) else (middle, high)
    return high, _bettered(damage, size, room, at(high))


def _bettered(damage: NDArray[np.float64], size: NDArray[np.int64], room: int, picks: Picks) -> Picks:
    """Change one layer at a time, the one that gains most among those that fit, until none gains."""
    rows, picks = np.arange(len(damage)), picks.copy()
    while True:
        gain = damage[rows, picks][:, None] - damage
        fits = size - size[rows, picks][:, None] <= room - size[rows, picks].sum()
        gain[~fits] = 0.0
        layer, choice = np.unravel_index(int(gain.argmax()), gain.shape)
        if gain[layer, choice] <= 0:
            return picks
        picks[layer] = choice


def _least(value: NDArray[np.float64], size: NDArray[np.int64]) -> Picks:
    """For each row the index of its least value, of the smallest size where several are least."""
    least = value <= value.min(axis=1, keepdims=True)
    picks: Picks = np.where(least, size, np.iinfo(np.int64).max).argmin(axis=1)
    return picks


def _total(values: NDArray[np.float64] | NDArray[np.int64], picks: Picks) -> float:
    return float(values[np.arange(len(values)), picks].sum())


# ---- integer program


def program(table: Table, budget: int) -> Picks:
    """The integer program of HAWQ-V3 (arXiv 2011.10680, equation 11), with any number of choices, solved by HiGHS.

    The solver's tolerances could let a solution pass the budget by a few bytes; such a solution is forbidden by name
    and the program solved again, so that what comes out fits exactly.
    """
    damage, size, room = _reduced(table, budget)
    _, known = _price(damage, size, room)
    best = _total(damage, known)
    if best <= 0:
        return known
    layers, choices = damage.shape
    unit = math.gcd(*(int(value) for value in size.ravel())) or 1
    rows = np.kron(np.eye(layers), np.ones(choices))
    rules = [
        LinearConstraint(rows, 1, 1),
        LinearConstraint(size.reshape(1, -1) / unit, -np.inf, room // unit),
    ]
    useful = (damage <= best * (1 + SLACK)).astype(float).ravel()  # one larger damage alone is more than the best total
    while True:
        objective = damage.ravel() * useful * (PROGRAM_SCALE / best)
        found = milp(
            objective, integrality=1, bounds=Bounds(0, useful), constraints=rules, options={"mip_rel_gap": 0.0}
        )
        if found.x is None:
            raise BadInput(f"the integer program was not solved ({found.message}); use the search 'dp'")
        picks: Picks = found.x.reshape(damage.shape).argmax(axis=1)
        if _total(size, picks) <= room:
            return picks
        forbidden = np.eye(choices)[picks].reshape(1, -1)
        rules.append(LinearConstraint(forbidden, -np.inf, layers - 1))


# ---- sections


def sections(table: Table, budget: int) -> Picks:
    """Layers by falling rank in four groups of nearly equal number, one choice a group, every combination tried.

    After arXiv 2406.05359, our reading. Of equal damages the smaller size wins, then the earlier combination. Raises
    BadPlan when no combination fits.
    """
    order = np.argsort(-table.rank, kind="stable")
    groups = np.array_split(order, SECTIONS)
    choices = len(table.choices)
    combinations = np.indices((choices,) * SECTIONS).reshape(SECTIONS, -1)
    damage = sum(table.damage[group].sum(axis=0)[pick] for group, pick in zip(groups, combinations, strict=True))
    size = sum(table.size[group].sum(axis=0)[pick] for group, pick in zip(groups, combinations, strict=True))
    fits = np.flatnonzero(size <= budget)
    if not len(fits):
        raise BadPlan(
            f"a budget of {budget:,} {table.unit} is too small for one choice a section: the least possible is"
            f" {int(np.min(size)):,} {table.unit}; search with 'dp' instead"
        )
    best = combinations[:, fits[np.lexsort((size[fits], damage[fits]))[0]]]
    picks = np.zeros(len(order), dtype=np.int64)
    for group, pick in zip(groups, best, strict=True):
        picks[group] = pick
    return picks


SEARCHES: dict[str, Callable[[Table, int], Picks]] = {"dp": dynamic, "milp": program, "sections": sections}
