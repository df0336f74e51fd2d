"""Recipes: what is read, what is refused."""

import pytest

from sottovoce.errors import BadRecipe
from sottovoce.lab.recipe import make_recipe, read_recipe

SMALL = {"network": {"kind": "resnet"}, "data": {"manifest": "train.tsv"}}


def test_reads_toml(tmp_path) -> None:
    path = tmp_path / "r.toml"
    text = '[network]\nkind = "ecapa"\nwidth = 64\n[data]\nmanifest = "m.tsv"\n[optim]\nrate = 1\n'
    path.write_text(text + "[augment]\nspeeds = [0.9]\n")
    recipe = read_recipe(path)
    assert recipe.network == {"kind": "ecapa", "width": 64}
    assert recipe.optim.rate == 1.0
    assert recipe.augment.speeds == (0.9,)


def test_same_content_same_hash_other_content_another() -> None:
    assert make_recipe(SMALL).sha256() == make_recipe(dict(SMALL)).sha256()
    assert make_recipe(SMALL).sha256() != make_recipe({**SMALL, "seed": 1}).sha256()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({**SMALL, "optm": {}}, "optim"),
        ({**SMALL, "optim": {"epoch": 3}}, "epochs"),
        ({**SMALL, "optim": {"epochs": "3"}}, "expected int"),
        ({**SMALL, "optim": {"epochs": 0}}, "at least 1"),
        ({"network": {"kind": "resnet"}}, "'data' is missing"),
        ({**SMALL, "quant": {"bits": 4}}, "start"),
        ({**SMALL, "quant": {"bits": 4, "plan": "*=kmeans4", "start": "x"}}, "keep one"),
        ({**SMALL, "optim": {"name": "lamb"}}, "adamw or sgd"),
        ({**SMALL, "loss": 3}, "expected a table"),
    ],
)
def test_refuses(content: dict, told: str) -> None:
    with pytest.raises(BadRecipe, match=told):
        make_recipe(content)


def test_refuses_what_is_not_toml(tmp_path) -> None:
    (tmp_path / "r.toml").write_text("[network\n")
    with pytest.raises(BadRecipe, match="not TOML"):
        read_recipe(tmp_path / "r.toml")
    with pytest.raises(BadRecipe, match="no such file"):
        read_recipe(tmp_path / "missing.toml")
