"""Cascades from their files: what is written comes back, what is damaged or changed is refused, pairs go as far as
they must."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sottovoce.errors import BadInput, BadModel, MissingAudio
from sottovoce.runtime import cascade as module
from sottovoce.runtime.cascade import load_cascade, save_cascade
from sottovoce.runtime.verify import verify
from sottovoce.scores.cascade import SAME, Gate, Map

POINT = {"balanced": {"threshold": 0.5, "measured_on": "one list"}}


class Angles:
    """Embeds a recording as an angle, its first sample, rounded to the digits that its file names."""

    dim, min_samples = 2, 400

    def __init__(self, path: Path) -> None:
        content = path.read_text().split()
        self.path, self.id, self.digits = path, path.name, int(content[0])
        self.rate = int(content[1]) if len(content) > 1 else 16000
        self.calls = 0

    def embed(self, wave: np.ndarray) -> np.ndarray:
        self.calls += 1
        angle = round(float(wave[0]), self.digits)
        return np.array([math.cos(angle), math.sin(angle)], dtype=np.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models of one digit and of six, and a cascade of both that is unsure from 0.4 to 0.6."""
    monkeypatch.setattr(module, "load", lambda path, **_: Angles(Path(path)))
    for name, digits in (("rough.onnx", "1"), ("fine.onnx", "6")):
        (tmp_path / name).write_text(digits)
    write(tmp_path)
    return tmp_path


UNSURE = Gate(0.4, 0.6, 0.01, 0.02)


def write(folder: Path, gate: Gate = UNSURE) -> Path:
    files = [folder / "rough.onnx", folder / "fine.onnx"]
    maps = [Map((0.0, 1.0), (0.1, 0.9)), SAME]
    save_cascade(folder / "c.json", files, [2, 4], maps, [gate], 0.5, {"operating_points": POINT})
    return folder / "c.json"


def wave(angle: float) -> np.ndarray:
    samples = np.full(500, angle, dtype=np.float32)
    samples[1::2] = -0.5
    return samples


def test_what_is_written_comes_back(folder: Path) -> None:
    found = load_cascade(folder / "c.json")
    assert found.id == hashlib.sha256((folder / "c.json").read_bytes()).hexdigest()[:12]
    assert [(stage.model.path.name, stage.bits) for stage in found.stages] == [("rough.onnx", 2.0), ("fine.onnx", 4.0)]
    assert found.maps == [Map((0.0, 1.0), (0.1, 0.9)), SAME]
    assert found.gates == (UNSURE,)
    assert (found.threshold, found.rate, found.min_samples) == (0.5, 16000, 400)
    assert [path.name for path in folder.iterdir() if "part" in path.name] == []


@pytest.mark.parametrize("gate", [Gate.around(0.5, math.inf), Gate(-math.inf, 0.6)])
def test_gates_that_never_answer_come_back(folder: Path, gate: Gate) -> None:
    assert load_cascade(write(folder, gate)).gates == (gate,)


def test_a_clear_pair_stops_at_the_first_stage(folder: Path) -> None:
    found = load_cascade(folder / "c.json")
    verdict = found.score(wave(0.11), wave(0.14))
    assert (verdict.stage, verdict.disagreement) == (1, 0.02)
    assert verdict.score == pytest.approx(0.9, abs=1e-6)  # the rough angles agree: 1, mapped to 0.9
    assert [stage.model.calls for stage in found.stages] == [2, 0]


def test_an_unclear_pair_goes_on(folder: Path) -> None:
    found = load_cascade(folder / "c.json")
    verdict = found.score(wave(0.03), wave(0.98 + 0.04))
    assert (verdict.stage, verdict.disagreement) == (2, 0.0)
    assert verdict.score == pytest.approx(math.cos(0.99), abs=1e-6)
    assert [stage.model.calls for stage in found.stages] == [2, 2]


def test_a_clear_rejection_has_the_bound_of_its_side(folder: Path) -> None:
    verdict = load_cascade(folder / "c.json").score(wave(-0.8), wave(0.8))
    assert (verdict.stage, verdict.disagreement) == (1, 0.01)
    assert verdict.score == pytest.approx(0.1 + math.cos(1.6), abs=1e-6)  # below the lowest knot, with slope 1


def test_verify_takes_a_cascade(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sottovoce.runtime.verify._judged", lambda *_: ([], []))  # these recordings are no speech
    for name, angle in (("a.wav", 0.1), ("b.wav", 1.0)):
        soundfile.write(folder / name, wave(angle), 16000, subtype="FLOAT")
    cascade = load_cascade(folder / "c.json")
    found = verify(cascade, folder / "a.wav", folder / "b.wav")
    assert found.score == pytest.approx(math.cos(0.9), abs=1e-6)  # 0.62; the first stage's is mapped to 0.597
    assert (found.decision, found.threshold, found.model) == ("accept", 0.5, cascade.id)
    assert verify(cascade, folder / "a.wav", folder / "b.wav", threshold=0.7).decision == "reject"
    with pytest.raises(BadInput, match="unknown to model"):
        verify(cascade, folder / "a.wav", folder / "b.wav", point="secure")
    with pytest.raises(MissingAudio):
        verify(cascade, folder / "a.wav", folder / "c.wav")


def test_a_file_of_the_first_form_loads(folder: Path) -> None:
    """As it was written before stages weighed anything."""
    sums = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("rough.onnx", "fine.onnx")]
    text = (
        '{"format": "sottovoce cascade", "version": 1, "threshold": 0.5, "stages": [{"file": "rough.onnx", "sha256": '
        f'"{sums[0]}", "bits": 2, "gate": {{"low": 0.4, "high": 0.6, "below": 0.01, "above": 0.02}}, "map": {{"knots": '
        f'[0.0, 1.0], "values": [0.1, 0.9]}}}}, {{"file": "fine.onnx", "sha256": "{sums[1]}", "bits": 4}}], '
        '"operating_points": {"balanced": {"threshold": 0.5, "measured_on": "one list"}}}\n'
    )
    assert (folder / "c.json").read_text() == text, "and is still written so"
    (folder / "old.json").write_text(text)
    assert load_cascade(folder / "old.json").weights is None


def test_weighed_stages(folder: Path) -> None:
    files = [folder / "rough.onnx", folder / "fine.onnx"]
    maps, weights = [Map((0.0, 1.0), (0.1, 0.9)), SAME], [(1.0,), (0.25, 0.75)]
    save_cascade(folder / "c.json", files, [2, 4], maps, [UNSURE], 0.5, {"operating_points": POINT}, weights)
    assert json.loads((folder / "c.json").read_text())["version"] == 2
    found = load_cascade(folder / "c.json")
    assert found.weights == ((1.0,), (0.25, 0.75))
    verdict = found.score(wave(0.03), wave(1.02))
    assert (verdict.stage, verdict.disagreement) == (2, 0.0)
    assert verdict.score == pytest.approx(
        0.25 * math.cos(1.0) + 0.75 * math.cos(0.99), abs=1e-6
    )  # 0.0 and 1.0; as it is
    assert found.score(wave(0.11), wave(0.14)).stage == 1


def test_the_folder_can_move(folder: Path) -> None:
    moved = folder.rename(folder.with_name(folder.name + "-moved"))
    assert load_cascade(moved / "c.json").stages[1].model.digits == 6


def test_a_changed_or_missing_stage_is_named(folder: Path) -> None:
    (folder / "fine.onnx").write_text("5")
    with pytest.raises(BadModel, match=r"fine\.onnx is ef2d127de37b, the cascade was tuned with e7f6c011776e"):
        load_cascade(folder / "c.json")
    (folder / "fine.onnx").unlink()
    with pytest.raises(BadModel, match=r"fine\.onnx is not there"):
        load_cascade(folder / "c.json")


def test_stages_of_two_rates_are_refused(folder: Path) -> None:
    (folder / "fine.onnx").write_text("6 8000")
    with pytest.raises(BadModel, match=r"fine\.onnx takes 8000 Hz, rough\.onnx 16000"):
        load_cascade(write(folder))


def changed(path: Path, **entries: Any) -> Path:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ("[1, 2]", "not a cascade"),
        ("{}", "not a cascade"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_other_files_are_refused(folder: Path, content: str, message: str) -> None:
    (folder / "c.json").write_text(content)
    with pytest.raises(BadModel, match=message):
        load_cascade(folder / "c.json")


def test_damage_is_refused(folder: Path) -> None:
    path = folder / "c.json"
    whole = path.read_text()
    stages = json.loads(whole)["stages"]
    for entries, message in (
        ({"version": 3}, "version 3"),
        ({"version": 2}, "damaged .*weights"),  # weights are not there
        ({"version": 2, "stages": [{**one, "weights": [1]} for one in stages]}, "do not fit 2 stages"),
        ({"stages": stages[:1]}, "two stages"),
        ({"stages": stages[1:] + stages[:1]}, "damaged"),  # a first stage without a map
        ({"threshold": "high"}, "damaged"),
        ({"threshold": float("nan")}, "damaged"),
        ({"operating_points": []}, "damaged"),
        ({"stages": [{**stages[0], "file": "/etc/passwd"}, stages[1]]}, "relative to the cascade's folder"),
        ({"stages": [{**stages[0], "gate": {"low": 1, "high": 0, "below": None, "above": None}}, stages[1]]}, "range"),
        ({"stages": [{**stages[0], "map": {"knots": [0, 0], "values": [0, 1]}}, stages[1]]}, "rise"),
    ):
        path.write_text(whole)
        with pytest.raises(BadModel, match=message):
            load_cascade(changed(path, **entries))
    path.unlink()
    with pytest.raises(BadModel, match="there is no such cascade"):
        load_cascade(path)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.sampled_from(["stages", "threshold", "operating_points", "gate", "map", "file", "sha256", "bits", "weights"]),
    JUNK,
)
def test_whatever_stands_in_a_place_it_loads_or_is_refused(folder: Path, name: str, value: object) -> None:
    content = json.loads(write(folder).read_text())
    if name == "weights":
        content["version"], content["stages"][1]["weights"] = 2, [0.5, 0.5]
    (content if name in content else content["stages"][0])[name] = value
    (folder / "junk.json").write_text(json.dumps(content))
    with contextlib.suppress(BadModel):
        load_cascade(folder / "junk.json")
