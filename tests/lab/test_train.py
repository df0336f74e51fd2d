"""The training loop: it learns, resumes bit for bit after being killed, and is the same for one and two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sottovoce import quant
from sottovoce.bits.plan import Plan
from sottovoce.errors import BadCheckpoint, BadInput, BadRecipe
from sottovoce.lab import checkpoint
from sottovoce.lab.train import train

START = """
import sys, time, torch
torch.set_num_threads(1)
from sottovoce.lab import train as module
slow = float(sys.argv[4])
step = module.Trainer._step
def slowly(self, *arguments):
    time.sleep(slow)
    return step(self, *arguments)
module.Trainer._step = slowly
module.train(sys.argv[1], sys.argv[2], sys.argv[3], save_every_s=0.0)
"""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def float_run(corpus: Path, tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("runs") / "float"
    train(corpus / "recipe.toml", run, corpus)
    return run


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_tensors(run / "model.safetensors")[0]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def recipe_with(corpus: Path, name: str, text: str) -> Path:
    path = corpus / name
    path.write_text((corpus / "recipe.toml").read_text() + text)
    return path


def test_the_loss_falls(float_run: Path) -> None:
    seen = losses(float_run)
    assert len(seen) == 9
    assert sum(seen[-3:]) < sum(seen[:3])


def test_same_seed_same_weights(corpus: Path, float_run: Path, tmp_path: Path) -> None:
    train(corpus / "recipe.toml", tmp_path / "again", corpus)
    for name, tensor in tensors(tmp_path / "again").items():
        assert torch.equal(tensor, tensors(float_run)[name]), name


def test_lines_of_a_run_that_died_before_it_saved_are_dropped(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "early"
    run.mkdir()
    (run / "log.jsonl").write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "lo')
    train(corpus / "recipe.toml", run, corpus)
    assert len(losses(run)) == 9


def test_killed_in_mid_epoch_it_resumes_to_the_same_weights(corpus: Path, float_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    command = [sys.executable, "-c", START, str(corpus / "recipe.toml"), str(run), str(corpus), "0.3"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    give_up = time.monotonic() + 120
    while not (run / "log.jsonl").exists() or len((run / "log.jsonl").read_text().splitlines()) < 5:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < give_up
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    step = checkpoint.load_tensors(run / "state.safetensors")[1]["step"]
    assert step % 3, "the test must kill in mid-epoch"
    assert not (run / "model.safetensors").exists()
    train(corpus / "recipe.toml", run, corpus)
    for name, tensor in tensors(run).items():
        assert torch.equal(tensor, tensors(float_run)[name]), name
    assert losses(run) == losses(float_run)


def test_two_processes_see_the_loss_of_one(corpus: Path, float_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "two"
    script = tmp_path / "start.py"
    script.write_text(START)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    done = subprocess.run(
        [*command, str(corpus / "recipe.toml"), str(run), str(corpus), "0"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(run) == pytest.approx(losses(float_run), rel=2e-3)
    for name, tensor in tensors(run).items():
        assert torch.allclose(tensor.float(), tensors(float_run)[name].float(), rtol=1e-2, atol=2e-3), name


def test_a_folder_belongs_to_one_recipe(corpus: Path, float_run: Path) -> None:
    other = recipe_with(corpus, "other.toml", "weight_decay = 0.1\n")
    with pytest.raises(BadRecipe, match="another recipe"):
        train(other, float_run, corpus)


@pytest.mark.parametrize("plan", ["*=kmeans2", "*=uniform3/layer/mse"])
def test_quantized_training_is_the_same_loop(corpus: Path, float_run: Path, tmp_path: Path, plan: str) -> None:
    start = float_run / "model.safetensors"
    text = (corpus / "recipe.toml").read_text().replace("[loss]", f'[loss]\nteacher = "{start}"\nteacher_weight = 1.0')
    path = tmp_path / "quantized.toml"
    path.write_text(f'{text}[quant]\nstart = "{start}"\nplan = "{plan}"\n')
    train(path, tmp_path / "quantized", corpus)
    loaded = checkpoint.load(tmp_path / "quantized" / "model.safetensors")
    assert loaded.plan == str(Plan.parse(plan))
    before = checkpoint.load(float_run / "model.safetensors").network
    for name, stored in quant.coded(loaded.network).items():
        module = loaded.network.get_submodule(name)
        decoded = torch.from_numpy(stored.decode())
        assert torch.equal(module.weight, decoded)
        assert not torch.equal(decoded, before.get_submodule(name).weight)


def test_a_start_of_another_network_is_refused(corpus: Path, float_run: Path, tmp_path: Path) -> None:
    text = (corpus / "recipe.toml").read_text().replace("width = 4", "width = 8")
    (corpus / "wide.toml").write_text(f'{text}[quant]\nstart = "{float_run}/model.safetensors"\nbits = 4\n')
    with pytest.raises(BadCheckpoint, match="the recipe asks"):
        train(corpus / "wide.toml", tmp_path / "run", corpus)


@pytest.mark.parametrize(
    ("network", "front_end"), [("mels = 64", "wespeaker"), ("mels = 80", "paper-c"), ("", "kiwano")]
)
def test_a_network_for_other_features_is_refused(corpus: Path, tmp_path: Path, network: str, front_end: str) -> None:
    text = (corpus / "recipe.toml").read_text().replace("width = 4", f"width = 4\n{network}")
    (corpus / "rows.toml").write_text(f'front_end = "{front_end}"\n{text}')
    with pytest.raises(BadRecipe, match=r"front_end '.*' makes \d+; set mels = \d+"):
        train(corpus / "rows.toml", tmp_path / "run", tmp_path / "no data here")


def test_a_loss_that_is_not_a_number_stops_the_run(corpus: Path, tmp_path: Path) -> None:
    text = (corpus / "recipe.toml").read_text().replace("rate = 1e-2", "rate = 1e30\nwarm_up = 0.0")
    (corpus / "hot.toml").write_text(text)
    with pytest.raises(BadInput, match="lower \\[optim\\] rate"):
        train(corpus / "hot.toml", tmp_path / "run", corpus)
    assert not (tmp_path / "run" / "model.safetensors").exists()
