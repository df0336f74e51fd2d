"""Pseudo-trials: what is cut, which pairs are made, what is stored of them and who says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce import networks
from sottovoce.audio.talker import talker
from sottovoce.cli import main
from sottovoce.errors import BadInput
from sottovoce.export import describe, read_weights
from sottovoce.lab import checkpoint, posttraining, pseudo
from sottovoce.lab.calibrate import calibrate
from sottovoce.lab.compress import compress
from sottovoce.runtime.engine import SHIPPED, load
from sottovoce.runtime.verify import verify
from sottovoce.scores.metrics import eer

NETWORK = {"kind": "resnet", "blocks": [1, 1], "width": 4, "dim": 16}
RATE = 16000


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 9 * RATE), min_size=1, max_size=40), st.integers(0, 3 * RATE))
def test_crops_do_not_overlap_and_are_as_long_as_can_be(lengths: list[int], least: int) -> None:
    waves = [np.arange(1, length + 1, dtype=np.float32) for length in lengths]
    usable = [length for length in lengths if min(length // 2, 3 * RATE) >= max(RATE, least)]
    if len(usable) < pseudo.FEWEST:
        with pytest.raises(BadInput, match="too few for pseudo-trials"):
            pseudo.cut(waves, RATE, least)
        return
    crops = pseudo.cut(waves, RATE, least)
    assert crops.left_out == len(lengths) - len(usable)
    for length, (first, last) in zip(usable, crops.pairs, strict=True):
        assert len(first) == len(last) == min(length // 2, 3 * RATE)
        assert first[0] == 1
        assert last[-1] == length
        assert first[-1] < last[0]


def test_silent_recordings_make_no_trials() -> None:
    waves = [talker(2.5, seed=seed) for seed in range(pseudo.FEWEST)]
    silent = np.concatenate([waves[0], np.zeros(3 * RATE, np.float32)])
    assert pseudo.cut([*waves, silent], RATE).left_out == 1


class Counts:
    """A model whose embedding tells which recording and which end a crop is of."""

    rate, min_samples = RATE, RATE // 2

    def embed(self, wave: np.ndarray) -> np.ndarray:
        angle = float(wave[0])
        return np.array([np.cos(angle), np.sin(angle)], np.float32)


def test_a_target_is_one_recording_and_each_pair_of_others_is_one_nontarget() -> None:
    count = 12
    waves = [np.linspace(n / 10, n / 10 + 0.01, 2 * RATE, dtype=np.float32) for n in range(count)]
    crops = pseudo.cut(waves, RATE)
    trials = pseudo.scored(Counts(), crops)
    assert len(trials) == count * (count + 1) // 2
    assert int(trials.labels.sum()) == count
    told = {
        (trials.utterances[a].split("/")[0], trials.utterances[b].split("/")[0])
        for a, b in zip(trials.enrol, trials.test, strict=True)
    }
    assert told == {(str(a), str(b)) for a in range(count) for b in range(a, count)}
    for enrol, test, score in zip(trials.enrol, trials.test, trials.scores, strict=True):
        (first, end), (other, last) = (trials.utterances[row].split("/") for row in (enrol, test))
        assert (end, last) == ("first", "last")
        ends = float(crops.pairs[int(first)][0][0]), float(crops.pairs[int(other)][1][0])
        assert score == pytest.approx(np.cos(ends[0] - ends[1]), abs=1e-5)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """48 recordings of as many talkers, 2.5 s each."""
    root = tmp_path_factory.mktemp("unlabelled")
    for seed in range(48):
        soundfile.write(root / f"{seed:02d}.wav", talker(2.5, seed=seed), RATE)
    return root


@pytest.fixture(scope="module")
def made(recordings: Path, tmp_path_factory) -> tuple[Path, dict]:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("made")
    about = {"network": NETWORK, "front_end": "wespeaker", "plan": "", "licence": "none"}
    checkpoint.save(root / "float.safetensors", networks.build(**NETWORK).eval(), about)
    report = compress(root / "float.safetensors", out=root / "m.onnx", bits=4, data=recordings, method="nearest")
    return root / "m.onnx", report


def test_compression_without_trials_stores_a_calibration_that_says_what_it_is(made: tuple[Path, dict]) -> None:
    path, report = made
    stored = load(path).metadata
    assert stored["calibration"]["pseudo"] == {"recordings": 48, "crop_s": 1.25, "left_out": 0}
    assert stored["calibration"]["measured_on"] == "pseudo-trials (crops of 48 unlabelled recordings)"
    assert "speakers" not in stored["calibration"]
    assert stored["calibration"]["method"] == "affine"
    assert (stored["calibration"]["targets"], stored["calibration"]["nontargets"]) == (48, 48 * 47 // 2)
    assert "30,000 nontarget trials" in stored["operating_points_refused"]["secure"]
    assert "secure" not in stored["operating_points"]
    assert report["calibration"] == stored["calibration"]


def test_damage_is_told_by_the_same_pseudo_trials(made: tuple[Path, dict], recordings: Path) -> None:
    path, report = made
    told = report["damage"]["pseudo_trials"]
    assert (told["targets"], told["nontargets"]) == (48, 48 * 47 // 2)
    names = sorted(recordings.glob("*.wav"))
    crops = pseudo.cut([soundfile.read(name, dtype="float32")[0] for name in names], RATE)
    trials = pseudo.scored(load(path), crops)  # another order of recordings
    assert told["eer"] == pytest.approx(eer(trials.scores, trials.labels)[0], abs=0.03)
    assert 0 < told["score_change"] < 0.2
    weights = checkpoint.load_tensors(path.with_name("float.safetensors"))[0]
    pairs = [(one.decode(), weights[f"{name}.weight"].numpy()) for name, one in read_weights(path).items()]
    error = sum(float(np.sum((a - b) ** 2)) for a, b in pairs) / sum(float(np.sum(b**2)) for _, b in pairs)
    assert report["damage"]["weights"] == pytest.approx(error, rel=1e-4)


def test_verify_and_inspect_say_it(made: tuple[Path, dict], recordings: Path) -> None:
    path, _ = made
    a, b = (str(recordings / f"{n:02d}.wav") for n in (0, 1))
    assert describe(path)["calibration"]["pseudo"]["recordings"] == 48
    found = verify(load(path), a, b, threshold=0.5)
    assert any("pseudo-trials (crops of 48 unlabelled recordings)" in warning for warning in found.warnings)
    assert found.llr is None or np.isfinite(found.llr)
    told = CliRunner().invoke(main, ["inspect", str(path)]).output
    assert "calibration from pseudo-trials (crops of 48 unlabelled recordings)" in told
    assert "not from labelled trials" in told
    refused = CliRunner().invoke(main, ["verify", a, b, "--model", str(path), "--point", "secure"])
    assert refused.exit_code == 2
    assert "was refused" in refused.output


def test_calibrate_with_labelled_recordings_replaces_it(made: tuple[Path, dict], tmp_path: Path) -> None:
    path, _ = made
    demo = Path(__file__).parents[2] / "demo" / "corpus"
    for voice in sorted(demo.glob("synthetic*"))[:6]:
        (tmp_path / "few" / voice.name).mkdir(parents=True)
        for take in sorted(voice.glob("*.ogg"))[:4]:
            (tmp_path / "few" / voice.name / take.name).symlink_to(take)
    calibrate(path, tmp_path / "real.onnx", data=tmp_path / "few")
    stored = load(tmp_path / "real.onnx").metadata["calibration"]
    assert "pseudo" not in stored
    a, b = (demo / "synthetic01" / f"0{n}.ogg" for n in (1, 2))
    found = verify(load(tmp_path / "real.onnx"), a, b, threshold=0.5)
    assert not any("pseudo" in warning for warning in found.warnings)
    assert "pseudo" not in CliRunner().invoke(main, ["inspect", str(tmp_path / "real.onnx")]).output


def test_the_shipped_model_is_not_said_to_be_pseudo() -> None:
    assert "pseudo" not in (load(SHIPPED).metadata.get("calibration") or {})


def test_too_few_recordings_store_nothing_and_say_why(
    recordings: Path, made: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.setattr(posttraining, "HELD_S", 0.5)
    few = tmp_path / "few"
    few.mkdir()
    for number in range(4):
        (few / f"{number}.wav").symlink_to(recordings / f"{number:02d}.wav")
    report = compress(
        made[0].with_name("float.safetensors"), out=tmp_path / "m.onnx", bits=4, data=few, method="nearest"
    )
    assert "calibration" not in report
    assert "calibration" not in load(tmp_path / "m.onnx").metadata
    assert report["damage"].keys() == {"drift", "weights"}
    assert "too few for pseudo-trials" in capfd.readouterr().err
