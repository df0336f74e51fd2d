"""Every recipe of the repository can be read, and its network, front end, plan and starting points fit each other."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from sottovoce import networks, quant
from sottovoce.audio.features import preset
from sottovoce.bits.plan import Plan
from sottovoce.lab.papers import TABLES
from sottovoce.lab.recipe import Recipe, read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
PAPERS = sorted(RECIPES.glob("paper-*/*.toml"))


@functools.cache
def network_of(text: str) -> nn.Module:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return networks.build(**json.loads(text))


def shapes_of(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    return quant.quantizable(network_of(json.dumps(dict(recipe.network))))


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.toml")), ids=lambda path: str(path.relative_to(RECIPES)))
def test_recipe_fits_together(path: Path) -> None:
    recipe = read_recipe(path)
    shapes = shapes_of(recipe)
    if recipe.quant.plan:
        assert all(spec is not None for spec in Plan.parse(recipe.quant.plan).resolve(shapes).values())
    network = network_of(json.dumps(dict(recipe.network)))
    rows = preset(recipe.front_end).rows
    assert network(torch.zeros(2, rows, 24, device="meta")).shape == (2, network.dim)


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: str(path.relative_to(RECIPES)))
def test_a_recipe_starts_from_a_network_of_its_own_shape(path: Path) -> None:
    recipe = read_recipe(path)
    for start, same in ((recipe.quant.start, True), (recipe.loss.teacher, False)):
        if start:
            base = read_recipe(path.parent / f"{Path(start).parent.name}.toml")
            assert not base.quant.plan
            assert base.front_end == recipe.front_end
            assert not same or shapes_of(base) == shapes_of(recipe)


@pytest.mark.parametrize("table", ["paper-c-table1", "paper-c-table2", "paper-d-system", "paper-d-drift"])
def test_every_row_of_a_paper_has_its_recipe(table: str) -> None:
    for row in TABLES[table].rows:
        recipe = read_recipe(RECIPES / table[:7] / f"{row.key}.toml")
        if row.network:
            assert recipe.network["kind"] == row.network
        specs = Plan.parse(recipe.quant.plan).resolve(shapes_of(recipe)).values() if recipe.quant.plan else []
        assert {spec.bits for spec in specs if spec} == ({row.bits} if row.bits < 32 else set())
