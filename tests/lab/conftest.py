"""A small corpus of synthetic talkers and a recipe to train on it, made once."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from sottovoce.audio.talker import talker

RECIPE = """
seed = 3
[network]
kind = "resnet"
blocks = [1, 1]
width = 4
dim = 16
[data]
manifest = "train.tsv"
noise = "noise.tsv"
rooms = "rooms.tsv"
crop_s = [0.4, 0.3]
[augment]
probability = 0.7
simulated_rooms = 2
speeds = [1.1]
[loss]
scale = 8.0
margin = 0.0
[optim]
rate = 1e-2
epochs = 3
batch = 8
"""


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Folder with 6 speakers × 4 recordings of 1 to 2 s, two noises, one room, manifests and a recipe."""
    root = tmp_path_factory.mktemp("corpus")
    rows = ["path\tspeaker\tseconds"]
    for speaker in range(6):
        for take in range(4):
            seconds = 1.0 + 0.25 * take
            path = f"speech/s{speaker}/{take}.wav"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(root / path, talker(seconds, seed=10 * speaker + take), 16000)
            rows.append(f"{path}\ts{speaker}\t{seconds}")
    (root / "train.tsv").write_text("\n".join(rows) + "\n")
    rng = np.random.default_rng(0)
    for name in ("n0.wav", "n1.wav"):
        soundfile.write(root / name, rng.normal(0, 0.1, 8000).astype(np.float32), 16000)
    soundfile.write(root / "room.wav", np.exp(-np.arange(800) / 100.0) * rng.normal(0, 1, 800) * 0.3, 16000)
    (root / "noise.tsv").write_text("path\tuse\nn0.wav\ttrain\nn1.wav\teval\n")
    (root / "rooms.tsv").write_text("path\tuse\nroom.wav\troom\n")
    (root / "recipe.toml").write_text(RECIPE)
    return root
