"""Drift between files, with models whose embeddings are known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sottovoce.errors import BadInput, BadList
from sottovoce.lab import drift as drifts
from sottovoce.lab.lists import read_trials
from sottovoce.scores.metrics import eer


class Turned:
    """Embeds a recording as the angle in its first sample, turned by what the model adds."""

    rate, min_samples = 16000, 400

    def __init__(self, path: Path, turn: Callable[[float], float] = lambda angle: angle, dim: int = 2) -> None:
        self.path, self.turn, self.dim, self.calls = path, turn, dim, 0
        self.metadata = {"plan": "*=kmeans2"}

    @property
    def id(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:12]

    def embed(self, wave: np.ndarray) -> np.ndarray:
        self.calls += 1
        angle = self.turn(float(wave[0]))
        found = np.zeros(self.dim, dtype=np.float32)
        found[:2] = np.cos(angle), np.sin(angle)
        return found


ANGLES = {"ann/1.wav": 0.0, "ann/2.wav": 0.2, "bob/1.wav": 0.5, "bob/2.wav": 0.3, "cid/1.wav": 0.9, "cid/2.wav": 0.7}
PAIRS = [(a, b) for i, a in enumerate(ANGLES) for b in list(ANGLES)[i + 1 :]]
LABELS = np.array([int(a[:3] == b[:3]) for a, b in PAIRS])


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name, angle in ANGLES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        wave = np.full(800, angle)
        wave[1::2] = -0.5
        soundfile.write(tmp_path / name, wave, 16000, subtype="FLOAT")
    lines = [f"{label} {a} {b}\n" for label, (a, b) in zip(LABELS, PAIRS, strict=True)]
    (tmp_path / "trials.txt").write_text("".join(lines))
    for name in ("float", "low", "wide"):
        (tmp_path / f"{name}.onnx").write_text(name)
    return tmp_path


@pytest.fixture
def models(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Turned]:
    """float as it is; low bends the angles; wide does too, in three dimensions."""
    made = {
        "float": Turned(corpus / "float.onnx"),
        "low": Turned(corpus / "low.onnx", lambda angle: 1.5 * angle**2),
        "wide": Turned(corpus / "wide.onnx", lambda angle: 1.5 * angle**2, dim=3),
    }
    monkeypatch.setattr(drifts, "load", lambda path, engine: made[Path(path).stem])
    monkeypatch.setattr(drifts, "bits_per_weight", lambda path: {"float": 32.0, "low": 2.0, "wide": 3.0}[path.stem])
    return made


def angles(turn: Callable[[float], float]) -> list[float]:
    return [turn(angle) for angle in ANGLES.values()]


def expected(first: list[float], second: list[float]) -> np.ndarray:
    """Cosines of all pairs, the enrolled recording from `first` and the tested one from `second`."""
    order = {name: index for index, name in enumerate(ANGLES)}
    return np.array([np.cos(first[order[a]] - second[order[b]]) for a, b in PAIRS])


def test_figures_are_those_of_the_angles(corpus: Path, models: dict[str, Turned]) -> None:
    out = corpus / "drift.json"
    files = [corpus / "float.onnx", corpus / "low.onnx"]
    report = drifts.drift(files, [corpus / "trials.txt"], corpus, draws=40, out=out, command="sotto drift", quiet=True)
    plain, bent = angles(models["float"].turn), angles(models["low"].turn)
    reference = expected(plain, plain)
    (one,) = report["lists"]
    assert one["threshold"] == pytest.approx(eer(reference, LABELS)[1], abs=1e-6)
    row = one["models"][1]
    for kind, scores in (("full", expected(bent, bent)), ("test_only", expected(plain, bent))):
        found, moved = row[kind], scores - reference
        assert found["eer"] == pytest.approx(eer(scores, LABELS)[0], abs=1e-9)
        assert found["mean_abs"] == pytest.approx(np.abs(moved).mean(), abs=1e-6)
        assert found["target_mean"] == pytest.approx(moved[LABELS == 1].mean(), abs=1e-6)
        assert found["nontarget_mean"] == pytest.approx(moved[LABELS == 0].mean(), abs=1e-6)
        assert found["correlation"] == pytest.approx(np.corrcoef(reference, scores)[0, 1], abs=1e-5)
        accepted = (reference >= one["threshold"] - 1e-7, scores >= one["threshold"] - 1e-7)
        right = [side == (LABELS == 1) for side in accepted]
        assert found["flips"]["harmful"] == (right[0] & ~right[1]).sum()
        assert found["flips"]["beneficial"] == (~right[0] & right[1]).sum()
        assert sum(found["histogram"]["targets"]) == 3
        assert sum(found["histogram"]["nontargets"]) == 12
    assert row["full"]["flips"]["harmful"] + row["full"]["flips"]["beneficial"] > 0
    assert json.loads(out.read_text()) == report == json.loads(json.dumps(report, allow_nan=False))
    assert report["models"][0]["model_sha256"] == hashlib.sha256(b"float").hexdigest()
    assert [model.calls for model in models.values()] == [6, 6, 0]


def test_the_reference_is_compared_with_nothing_and_means_are_over_lists(
    corpus: Path, models: dict[str, Turned]
) -> None:
    few = corpus / "few.txt"
    few.write_text("1 ann/1.wav ann/2.wav\n0 ann/1.wav bob/1.wav\n0 bob/1.wav cid/2.wav\n")
    report = drifts.drift(
        [corpus / "float.onnx", corpus / "low.onnx"],
        [corpus / "trials.txt"],
        corpus,
        out_of_domain=[few],
        draws=0,
        quiet=True,
    )
    assert "full" not in report["lists"][0]["models"][0]
    shares = [one["models"][1]["full"]["mean_abs"] for one in report["lists"]]
    mean = report["means"][1]["full"]["mean_abs"]
    assert mean == pytest.approx({"in_domain": shares[0], "out_of_domain": shares[1], "all": sum(shares) / 2})
    harmful = [one["models"][1]["full"]["flips"]["harmful"] for one in report["lists"]]
    assert report["means"][1]["full"]["harmful"] == {"count": sum(harmful), "rate": sum(harmful) / 18}
    assert report["lists"][0]["models"][1]["full"]["mean_abs_interval"] is None
    assert [model.calls for model in models.values()] == [6, 6, 0]


def test_files_of_other_dimensions_have_no_cross_precision_trials(corpus: Path, models: dict[str, Turned]) -> None:
    files = [corpus / f"{name}.onnx" for name in ("float", "low", "wide")]
    report = drifts.drift(files, [corpus / "trials.txt"], corpus, draws=0, quiet=True)
    low, wide = report["lists"][0]["models"][1:]
    assert wide["test_only"] is None
    assert report["means"][2]["test_only"] is None
    assert wide["full"]["mean_abs"] == pytest.approx(low["full"]["mean_abs"])
    assert report["knee"]["points"] == [
        {"model": "low.onnx", "bits": 2.0, "mean_abs": report["means"][1]["full"]["mean_abs"]["all"]},
        {"model": "wide.onnx", "bits": 3.0, "mean_abs": report["means"][2]["full"]["mean_abs"]["all"]},
    ]
    assert report["knee"]["model"] is None


def test_a_recording_that_one_file_cannot_use_is_left_out_for_all(corpus: Path, models: dict[str, Turned]) -> None:
    models["low"].min_samples = 1000
    soundfile.write(corpus / "ann/1.wav", np.linspace(-0.5, 0.5, 4000), 16000, subtype="FLOAT")
    for name in list(ANGLES)[1:4]:
        soundfile.write(corpus / name, np.linspace(-0.2, 0.6, 4000), 16000, subtype="FLOAT")
    report = drifts.drift(
        [corpus / "float.onnx", corpus / "low.onnx"], [corpus / "trials.txt"], corpus, draws=0, quiet=True
    )
    assert [one["path"] for one in report["excluded"]] == ["cid/1.wav", "cid/2.wav"]
    assert report["lists"][0]["trials"] == 6
    assert report["lists"][0]["trials_excluded"] == 9


def test_cross_scores_stand_in_the_order_of_the_trials(corpus: Path, models: dict[str, Turned]) -> None:
    trials = read_trials(corpus / "trials.txt")
    waves = {name: np.array([angle]) for name, angle in ANGLES.items() if name != "bob/1.wav"}
    known = [{name: models[which].embed(wave) for name, wave in waves.items()} for which in ("float", "low")]
    found = drifts.cross_scores(trials, *known)
    wanted = expected(angles(models["float"].turn), angles(models["low"].turn))
    assert found == pytest.approx(wanted[["bob/1.wav" not in pair for pair in PAIRS]], abs=1e-6)


def test_what_cannot_be_compared_is_refused_before_embedding(corpus: Path, models: dict[str, Turned]) -> None:
    files, lists = [corpus / "float.onnx", corpus / "low.onnx"], [corpus / "trials.txt"]
    one_class = corpus / "one.txt"
    one_class.write_text("1 ann/1.wav ann/2.wav\n")
    for change, error, told in (
        ({"files": files[:1]}, BadInput, "at least one other"),
        ({"lists": []}, BadInput, "--trials"),
        ({"lists": [one_class]}, BadList, "need both kinds"),
        ({"edges": (0.3, 0.1)}, BadInput, "that rise"),
        ({"out": corpus / "none" / "x.json"}, BadInput, "does not exist"),
    ):
        with pytest.raises(error, match=told):
            drifts.drift(**{"files": files, "lists": lists, "root": corpus, "quiet": True, **change})
    assert [model.calls for model in models.values()] == [0, 0, 0]
