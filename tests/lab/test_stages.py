"""Schedules of quantized training in the one loop: stages, averages, held codes; all of it resumes bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sottovoce import quant
from sottovoce.errors import BadCheckpoint, BadRecipe
from sottovoce.lab import checkpoint, feed, parallel
from sottovoce.lab import train as module
from sottovoce.lab.recipe import read_recipe
from sottovoce.lab.run import Run
from sottovoce.lab.train import Trainer, train

QUANT = """
[quant]
start = "{start}"
plan = "conv1=uniform8; *=kmeans2/channel/mse"
"""
EVERYTHING = """through = [4]
gains_from = 1
gain_clip = 1.5
norm_batches = 2
round_batches = 1
assign = "epoch"
"""
OPTIM = """average = 0.9
scale_momentum = false
scale_rate = 0.5
freeze_norms = 0.5
"""


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def plain(corpus: Path) -> str:
    return (corpus / "recipe.toml").read_text().replace("speeds = [1.1]", "").replace("[0.4, 0.3]", "[0.3]")


@pytest.fixture(scope="module")
def start(corpus: Path, plain: str, tmp_path_factory) -> Path:
    """A float model, trained for one epoch with a speed that makes its classifier twice as large."""
    (corpus / "start.toml").write_text(
        plain.replace("epochs = 3", "epochs = 1").replace("probability", "speeds = [1.1]\nprobability")
    )
    run = tmp_path_factory.mktemp("start")
    train(corpus / "start.toml", run, corpus, cache=corpus / "cache")
    return run / "model.safetensors"


@pytest.fixture(scope="module")
def everything(corpus: Path, plain: str, start: Path, tmp_path_factory) -> tuple[Path, Path]:
    """A recipe with all schedules at once, and its run."""
    recipe = corpus / "everything.toml"
    text = plain.replace("[loss]", f'[loss]\ndamping = 1e-3\nteacher = "{start}"\nteacher_weight = 1.0')
    recipe.write_text(text.replace("epochs = 3", "epochs = 4") + OPTIM + QUANT.format(start=start) + EVERYTHING)
    run = tmp_path_factory.mktemp("everything")
    train(recipe, run, corpus, cache=corpus / "cache")
    return recipe, run


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_tensors(run / "model.safetensors")[0]


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def killed(recipe: Path, run: Path, corpus: Path, step: int, monkeypatch) -> None:
    """Train, and end just before `step`, with everything saved up to there."""
    honest = Trainer._step

    def until(self, fed, at):
        if at == step:
            raise KeyboardInterrupt
        return honest(self, fed, at)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", until)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, run, corpus, cache=corpus / "cache", save_every_s=0.0)


@pytest.mark.parametrize("step", [4, 6, 7])  # within the first stage, at the border, within the second
def test_a_run_with_all_schedules_resumes_bit_for_bit(
    corpus: Path, everything: tuple[Path, Path], tmp_path: Path, monkeypatch, step: int
) -> None:
    recipe, whole = everything
    killed(recipe, tmp_path, corpus, step, monkeypatch)
    assert checkpoint.load_tensors(tmp_path / "state.safetensors")[1]["step"] == step
    train(recipe, tmp_path, corpus, cache=corpus / "cache")
    expected = tensors(whole)
    for name, tensor in tensors(tmp_path).items():
        assert torch.equal(tensor, expected[name]), name
    assert [entry["loss"] for entry in log(tmp_path)] == [entry["loss"] for entry in log(whole)]


def test_stages_are_in_the_log_and_the_model_has_the_last_plan(everything: tuple[Path, Path]) -> None:
    _, run = everything
    assert [entry["stage"] for entry in log(run)] == [1] * 6 + [2] * 6
    loaded = checkpoint.load(run / "model.safetensors")
    assert loaded.plan == "conv1=uniform8/channel/mse; *=kmeans2/channel/mse"
    assert all(quantized.codes is None for quantized in quant.attached(loaded.network).values())


def test_the_model_is_the_average(everything: tuple[Path, Path], monkeypatch) -> None:
    _, run = everything
    state = checkpoint.load_tensors(run / "state.safetensors")[0]
    name = "conv1.parametrizations.weight.original"
    assert torch.equal(tensors(run)[name], state[f"average.{name}"])
    assert not torch.equal(tensors(run)[name], state[f"module.network.{name}"])


def test_the_rate_begins_anew_in_each_stage(everything: tuple[Path, Path]) -> None:
    rates = [entry["rate"] for entry in log(everything[1])]
    assert rates[:6] == rates[6:]
    assert rates[0] > rates[5]


def test_gains_rest_in_the_first_epochs(corpus: Path, plain: str, start: Path, tmp_path: Path, monkeypatch) -> None:
    (corpus / "rest.toml").write_text(plain + QUANT.format(start=start) + 'gains_from = 1\nrefresh = "never"\n')
    killed(corpus / "rest.toml", tmp_path, corpus, 3, monkeypatch)
    state = checkpoint.load_tensors(tmp_path / "state.safetensors")[0]
    gains = {name: tensor for name, tensor in state.items() if name.startswith("module.") and name.endswith(".gain")}
    body = {name: gain for name, gain in gains.items() if "conv1" not in name}  # of k-means, which start at 1
    assert body
    assert all(bool((gain == 1).all()) for gain in body.values())
    train(corpus / "rest.toml", tmp_path, corpus, cache=corpus / "cache")
    after = tensors(tmp_path)
    assert any(bool((after[name.removeprefix("module.network.")] != 1).any()) for name in body)


def test_frozen_norms_and_estimated_ones(corpus: Path, plain: str, start: Path, tmp_path: Path) -> None:
    frozen = plain.replace("epochs = 3", "epochs = 1\nfreeze_norms = 0.0")
    (corpus / "frozen.toml").write_text(frozen + QUANT.format(start=start))
    train(corpus / "frozen.toml", tmp_path / "frozen", corpus, cache=corpus / "cache")
    (corpus / "estimated.toml").write_text(frozen + QUANT.format(start=start) + "norm_batches = 3\n")
    train(corpus / "estimated.toml", tmp_path / "estimated", corpus, cache=corpus / "cache")
    before = checkpoint.load_tensors(start)[0]
    name = next(name for name in before if name.endswith("running_var"))
    assert torch.equal(tensors(tmp_path / "frozen")[name], before[name])
    assert not torch.equal(tensors(tmp_path / "estimated")[name], before[name])


def test_following_a_teacher_needs_no_labels(corpus: Path, plain: str, start: Path, tmp_path: Path) -> None:
    rows = (corpus / "train.tsv").read_text().splitlines()
    (corpus / "unlabelled.tsv").write_text("\n".join(row.split("\t")[0] for row in rows) + "\n")
    text = plain.replace("train.tsv", "unlabelled.tsv").replace("epochs = 3", "epochs = 2")
    text = text.replace("[loss]", f'[loss]\nweight = 0\nteacher = "{start}"\nteacher_weight = 1.0\nteacher_kind = "l2"')
    (corpus / "unlabelled.toml").write_text(text + QUANT.format(start=start))
    train(corpus / "unlabelled.toml", tmp_path, corpus, cache=corpus / "cache")
    seen = [entry["loss"] for entry in log(tmp_path)]
    assert sum(seen[-3:]) < sum(seen[:3])
    assert not (tmp_path / module.HEAD).exists()


def test_no_augmentation_keeps_the_classifier_of_recordings_at_their_own_speed(
    corpus: Path, plain: str, start: Path, tmp_path: Path, monkeypatch
) -> None:
    (corpus / "clean.toml").write_text(plain.replace("0.7", "0.0") + QUANT.format(start=start))
    seen = []
    monkeypatch.setattr(Trainer, "_resume", lambda self: seen.append(self.learner.head.weight.detach()) or self.total)
    monkeypatch.setattr(Trainer, "_finish", lambda self: None)
    train(corpus / "clean.toml", tmp_path, corpus, cache=corpus / "cache")
    head = checkpoint.load_tensors(start.with_name(module.HEAD))[0]["weight"]
    assert torch.equal(seen[0], head[::2])


def test_what_cannot_be_followed_is_refused(corpus: Path, plain: str, start: Path, tmp_path: Path) -> None:
    loaded = checkpoint.load(start)
    checkpoint.save(tmp_path / "other.safetensors", loaded.network, {**loaded.about, "front_end": "another"})
    text = plain.replace("[loss]", f'[loss]\nteacher = "{tmp_path}/other.safetensors"\nteacher_weight = 1.0')
    (corpus / "other.toml").write_text(text)
    with pytest.raises(BadCheckpoint, match="front end 'another'"):
        train(corpus / "other.toml", tmp_path / "run", corpus, cache=corpus / "cache")
    narrow = text.replace(f"{tmp_path}/other.safetensors", str(start)).replace("dim = 16", "dim = 8")
    (corpus / "narrow.toml").write_text(narrow)
    with pytest.raises(BadCheckpoint, match="16 numbers, the network's 8"):
        train(corpus / "narrow.toml", tmp_path / "run2", corpus, cache=corpus / "cache")


def test_too_many_stages_are_refused(corpus: Path, plain: str, start: Path, tmp_path: Path) -> None:
    (corpus / "many.toml").write_text(
        plain.replace("epochs = 3", "epochs = 2") + QUANT.format(start=start) + "through = [4, 3]\n"
    )
    with pytest.raises(BadRecipe, match="fewer than the 3 stages"):
        train(corpus / "many.toml", tmp_path, corpus, cache=corpus / "cache")


def test_bf16_falls_back_where_it_is_emulated(monkeypatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(feed, "has_bf16", lambda: False)
    assert [feed.precision("bf16", cpu), feed.precision("bf16", cuda), feed.precision("none", cpu)] == [
        "none",
        "bf16",
        "none",
    ]
    monkeypatch.setattr(feed, "has_bf16", lambda: True)
    assert feed.precision("bf16", cpu) == "bf16"


def test_a_rounded_start_is_nearer_to_the_teacher(corpus: Path, plain: str, start: Path, tmp_path: Path) -> None:
    alone = plain.replace("[loss]", f'[loss]\nweight = 0\nteacher = "{start}"\nteacher_weight = 1.0')
    text = alone.replace("epochs = 3", "epochs = 1\nfreeze_norms = 0.0") + QUANT.format(start=start)
    first = {}
    for count in (0, 3):
        recipe = corpus / f"rounded{count}.toml"
        recipe.write_text(f"{text}round_batches = {count}\n")
        train(recipe, tmp_path / str(count), corpus, cache=corpus / "cache")
        first[count] = log(tmp_path / str(count))[0]["loss"]
    assert first[3] < 0.9 * first[0]


def test_a_teacher_with_axes_of_its_own_is_turned(corpus: Path, plain: str, start: Path, tmp_path: Path) -> None:
    loaded = checkpoint.load(start)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    with torch.no_grad():
        last = loaded.network.seg_1
        last.weight.copy_(rotation @ last.weight)
        last.bias.copy_(rotation @ last.bias)
    teacher = tmp_path / "turned.safetensors"
    checkpoint.save(teacher, loaded.network, loaded.about)
    alone = plain.replace("[loss]", f'[loss]\nweight = 0\nteacher = "{teacher}"\nteacher_weight = 1.0\nMORE')
    text = alone.replace("epochs = 3", "epochs = 1\nfreeze_norms = 0.0") + QUANT.format(start=start)
    first = {}
    for count in (0, 3):
        recipe = corpus / f"turned{count}.toml"
        recipe.write_text(text.replace("MORE", f"teacher_turned = {count}").replace("*=kmeans2/channel/mse", "*=float"))
        train(recipe, tmp_path / str(count), corpus, cache=corpus / "cache")
        first[count] = log(tmp_path / str(count))[0]["loss"]
    assert first[0] > 0.3
    assert first[3] < 0.01


@pytest.mark.parametrize("hears", ["augmented", "clean"])
def test_the_teacher_hears_what_the_recipe_says(
    hears: str, corpus: Path, plain: str, start: Path, tmp_path: Path
) -> None:
    loss = f'[loss]\nteacher = "{start}"\nteacher_weight = 1.0\nteacher_hears = "{hears}"'
    (tmp_path / "recipe.toml").write_text(plain.replace("[loss]", loss))
    recipe = read_recipe(tmp_path / "recipe.toml")
    trainer = Trainer(recipe, Run(tmp_path / "run"), corpus, parallel.join(), tmp_path / "cache")
    trainer._prepare()
    fed, batch = next(iter(trainer.feed.run(0))), trainer.batches.make(0, 0)
    teacher = checkpoint.load(start).network
    heard = {"augmented": batch.waves, "clean": batch.clean}[hears]
    with torch.no_grad():
        torch.testing.assert_close(fed.followed, teacher(trainer.feed.features_of(heard)))
    assert hears == "augmented" or not np.array_equal(batch.waves, batch.clean)
