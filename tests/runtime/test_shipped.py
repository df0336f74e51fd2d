"""The shipped model, end to end through the command: a thousand files with bad ones among them, pairs, itself."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from sottovoce import cli
from sottovoce.audio.talker import talker
from sottovoce.runtime.engine import load

BAD = {
    "empty.wav": "EmptyAudio",
    "text.wav": "NotAudio",
    "nan.wav": "NonFiniteAudio",
    "silent.wav": "SilentAudio",
}


def sotto(*args: object) -> Result:
    return CliRunner().invoke(cli.main, [str(arg) for arg in args], prog_name="sotto")


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """996 recordings of half a second (links to six) and four that cannot be used."""
    root = tmp_path_factory.mktemp("thousand")
    for voice in range(6):
        soundfile.write(root / f"voice{voice}.wav", talker(0.5, seed=voice), 16000)
    for index in range(6, 996):
        os.link(root / f"voice{index % 6}.wav", root / f"link{index}.wav")
    soundfile.write(root / "empty.wav", np.zeros(0, np.float32), 16000)
    soundfile.write(root / "nan.wav", np.full(8000, np.nan, np.float32), 16000, subtype="FLOAT")
    soundfile.write(root / "silent.wav", np.zeros(8000, np.float32), 16000)
    (root / "text.wav").write_text("these are words, not sound")
    return root


def test_four_bad_files_in_a_thousand_cost_four_embeddings(thousand: Path, tmp_path: Path) -> None:
    done = sotto("embed", thousand, "--out", tmp_path / "e.npz", "--json")
    assert done.exit_code == 3
    report = json.loads(done.stdout)
    assert sorted(Path(one["path"]).name for one in report["errors"]) == sorted(BAD)
    for one in report["errors"]:
        assert BAD[Path(one["path"]).name] in one["error"]
        assert Path(one["path"]).name in done.stderr
    with np.load(tmp_path / "e.npz") as arrays:
        assert arrays["embeddings"].shape == (996, report["dim"])
        assert arrays["embeddings"].dtype == np.float32
        assert np.allclose(np.linalg.norm(arrays["embeddings"], axis=1), 1, atol=1e-5)
        assert len(arrays["paths"]) == 996


def test_the_shipped_model_passes_its_own_test_and_is_four_bits() -> None:
    model = load(check=True)
    assert model.metadata["bits"] == [4]
    point = model.metadata["operating_points"]["balanced"]
    assert -1 < point["threshold"] < 1
    assert point["measured_on"]


def test_a_recording_is_accepted_as_itself_and_noise_is_not_judged(tmp_path: Path) -> None:
    wave = talker(3.0, seed=1)
    soundfile.write(tmp_path / "a.wav", wave, 16000)
    soundfile.write(tmp_path / "quieter.wav", 0.5 * wave, 16000)
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).normal(0, 0.1, 48000), 16000)
    same = sotto("verify", tmp_path / "a.wav", tmp_path / "quieter.wav", "--json")
    other = sotto("verify", tmp_path / "a.wav", tmp_path / "noise.wav", "--json")
    assert (same.exit_code, other.exit_code) == (0, 4)
    assert "net speech" in json.loads(other.stdout)["reason"]
    assert json.loads(same.stdout)["decision"] == "accept"
    assert json.loads(same.stdout)["score"] > json.loads(same.stdout)["threshold"] > json.loads(other.stdout)["score"]
    assert sotto("verify", tmp_path / "a.wav", tmp_path / "missing.wav").exit_code == 2
