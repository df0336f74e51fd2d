"""Recipes: what is read, what is refused."""

import json

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
        ({**SMALL, "optim": {"name": "adamv"}}, "mean 'adam'"),
        ({**SMALL, "optim": {"schedule": "step"}}, "mean 'steps'"),
        ({**SMALL, "optim": {"schedule": "steps"}}, "needs drops"),
        ({**SMALL, "optim": {"drops": [20]}}, 'schedule = "steps"'),
        ({**SMALL, "optim": {"schedule": "steps", "drops": [30]}}, "between 1 and 29"),
        ({**SMALL, "optim": {"schedule": "steps", "drops": ["20"]}}, "expected int"),
        ({**SMALL, "optim": {"schedule": "exponential", "final_rate": 0.0}}, "above 0"),
        ({**SMALL, "optim": {"average": 1.0}}, "average"),
        ({**SMALL, "optim": {"scale_momentum": 0}}, "expected bool"),
        ({**SMALL, "quant": {"order": "lowest"}}, "mean 'lowest-first'"),
        ({**SMALL, "quant": {"through": [3, 4], "bits": 2, "start": "x"}}, "wide to narrow"),
        ({**SMALL, "quant": {"through": [4]}}, "give bits or plan"),
        ({**SMALL, "quant": {"through": [4], "order": "lowest-first", "bits": 2, "start": "x"}}, "order and through"),
        ({**SMALL, "loss": {"kind": "an"}}, "did you mean"),
        ({**SMALL, "loss": {"weight": 0}}, "name a teacher"),
        ({**SMALL, "augment": {"noise_snr": [1.0]}}, "expected 2 numbers"),
        ({**SMALL, "augment": {"mask_probability": 2.0}}, "mask_probability"),
        ({**SMALL, "data": {"manifest": "m", "keep_epochs": -1}}, "keep_epochs"),
        ({**SMALL, "loss": 3}, "expected a table"),
    ],
)
def test_refuses(content: dict, told: str) -> None:
    with pytest.raises(BadRecipe, match=told):
        make_recipe(content)


def test_the_recipe_of_an_older_version_is_the_same() -> None:
    recipe = make_recipe(SMALL)
    older = json.loads(recipe.text())
    del older["data"]["keep_epochs"]
    assert recipe.same(json.dumps(older))
    assert not recipe.same(json.dumps({**older, "seed": 1}))
    assert not recipe.same(json.dumps({**older, "unknown": 1}))


def test_refuses_what_is_not_toml(tmp_path) -> None:
    (tmp_path / "r.toml").write_text("[network\n")
    with pytest.raises(BadRecipe, match="not TOML"):
        read_recipe(tmp_path / "r.toml")
    with pytest.raises(BadRecipe, match="no such file"):
        read_recipe(tmp_path / "missing.toml")
