"""Allocation: the exact searches find what brute force finds, fit every budget, and refuse impossible ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.errors import BadInput, BadPlan
from sottovoce.quant.allocate import SEARCHES, Table, allocate, rho_budget


def table(damage, size, rank=None) -> Table:
    damage, size = np.asarray(damage, dtype=np.float64), np.asarray(size, dtype=np.int64)
    layers, choices = damage.shape
    rank = damage.max(axis=1) if rank is None else np.asarray(rank, dtype=np.float64)
    return Table(tuple(f"layer{i}" for i in range(layers)), tuple(map(str, range(choices))), damage, size, rank)


def brute_force(of: Table, budget: int) -> tuple[float, int]:
    """Least damage within the budget, and the least size among those combinations, by trying all."""
    rows = np.arange(len(of.layers))
    tried = [
        (float(of.damage[rows, picks].sum()), int(of.size[rows, picks].sum()))
        for picks in itertools.product(range(len(of.choices)), repeat=len(of.layers))
    ]
    return min(pair for pair in tried if pair[1] <= budget)


@st.composite
def problems(draw) -> tuple[Table, int]:
    """Up to five layers and four choices; damages of very different magnitude, some negative; any possible budget."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 4)))
    count = shape[0] * shape[1]
    values = st.one_of(st.integers(-50, 50).map(float), st.floats(1e-6, 1e6))
    damage = np.array(draw(st.lists(values, min_size=count, max_size=count))).reshape(shape)
    scale = draw(st.sampled_from([1, 7, 4096, 999_999]))
    size = np.array(draw(st.lists(st.integers(0, 40), min_size=count, max_size=count))).reshape(shape) * scale
    made = table(damage, size)
    return made, draw(st.integers(made.least, made.most))


@settings(max_examples=120, deadline=None)
@given(problems())
def test_the_exact_searches_find_what_brute_force_finds(problem: tuple[Table, int]) -> None:
    made, budget = problem
    least, _ = brute_force(made, budget)
    near = pytest.approx(least, rel=1e-7, abs=1e-7 * (1 + float(np.abs(made.damage).max() * 1e-3)))
    for search in ("dp", "milp"):
        found = allocate(made, budget, search)
        assert found.size <= budget
        assert found.damage == near, search


@settings(max_examples=60, deadline=None)
@given(problems())
def test_sections_are_never_better(problem: tuple[Table, int]) -> None:
    made, budget = problem
    try:
        found = allocate(made, budget, "sections")
    except BadPlan:  # no single choice a section fits
        return
    assert found.size <= budget
    assert found.damage >= allocate(made, budget).damage - 1e-9 * (1 + np.abs(made.damage).sum())


def widths_of_a_network(layers: int, seed: int) -> Table:
    """A table like that of a real network: five widths, damage falling about fourfold a bit."""
    rng = np.random.default_rng(seed)
    rows, columns = 2 ** rng.integers(5, 9, layers), 2 ** rng.integers(6, 12, layers) + rng.integers(0, 40, layers)
    bits = np.array([1, 2, 3, 4, 8])
    size = rows[:, None] * columns[:, None] * bits // 8 + 2**bits + 4 * rows[:, None]
    damage = rng.lognormal(0, 2, layers)[:, None] * 4.0**-bits * rng.uniform(0.7, 1.3, (layers, 5))
    return table(damage, size)


@pytest.mark.parametrize("seed", range(3))
def test_dp_and_milp_agree_on_sixty_layers(seed: int) -> None:
    made = widths_of_a_network(60, seed)
    for share in (0.1, 0.4, 0.8):
        budget = int(made.least + share * (made.most - made.least))
        exact, other = allocate(made, budget), allocate(made, budget, "milp")
        assert exact.damage == pytest.approx(other.damage, rel=1e-6)
        assert max(exact.size, other.size) <= budget
        assert exact.damage < allocate(made, budget, "sections").damage


def test_sections_are_those_of_the_rank() -> None:
    """Eight layers, two widths, room for one wide section: the two layers of highest rank get it."""
    rank = [1, 8, 2, 7, 3, 6, 4, 5]
    damage = [[float(r), 0.0] for r in rank]
    found = allocate(table(damage, [[1, 2]] * 8, rank), 10, "sections")
    assert found.picks == (0, 1, 0, 1, 0, 0, 0, 0)
    assert (found.damage, found.size) == (36.0 - 15.0, 10)


def test_sections_need_one_choice_that_fits_the_whole_section() -> None:
    made = table([[0.0, 1.0]] * 8, [[1, 9], [9, 1]] * 4, rank=range(8))
    with pytest.raises(BadPlan, match="least possible is 40 bytes"):
        allocate(made, 39, "sections")
    assert allocate(made, 8).size == 8


def test_a_byte_too_many_is_too_many() -> None:
    """Sizes so large that a solver's tolerance is worth several bytes."""
    size = np.array([[1, 1_000_000_007], [2, 1_000_000_003], [3, 1_000_000_001]], dtype=np.int64)
    made = table([[5.0, 0.0], [4.0, 0.0], [3.0, 0.0]], size)
    budget = 2_000_000_012  # one byte short of the two most harmful layers
    for search in ("dp", "milp"):
        found = allocate(made, budget, search)
        assert found.size <= budget
        assert found.picks == (1, 0, 1)


def test_equal_damage_takes_fewer_bytes_and_repeats() -> None:
    made = table([[1.0, 1.0, 1.0]] * 3, [[3, 2, 4]] * 3)
    assert allocate(made, 12) == allocate(made, 12)
    assert allocate(made, 12).picks == (1, 1, 1)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize(
    ("budget", "told"), [(29, "least possible is 30 bytes"), (61, "the most that can be used is 60 bytes")]
)
def test_impossible_budgets_are_refused(search: str, budget: int, told: str) -> None:
    made = table([[2.0, 1.0]] * 3, [[10, 20]] * 3)
    with pytest.raises(BadPlan, match=told):
        allocate(made, budget, search)
    assert allocate(made, 30, search).picks == (0, 0, 0)
    assert allocate(made, 60, search).picks == (1, 1, 1)


def test_an_unknown_search_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="did you mean 'milp'"):
        allocate(table([[1.0]], [[1]]), 1, "mlip")


@pytest.mark.parametrize(
    ("damage", "size"),
    [([[np.nan]], [[1]]), ([[1.0]], [[-1]]), ([[1.0, 2.0]], [[1]])],
    ids=["nan", "negative", "shape"],
)
def test_bad_tables_are_refused(damage, size) -> None:
    with pytest.raises(BadInput):
        table(damage, size)


def test_rho_is_a_share_of_float() -> None:
    assert rho_budget(0.10, 1000) == 3200  # 3.2 bits a weight
