"""Cascades on trial lists: tuned, run, recorded; models are stood in for by angles of few and of many digits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from sottovoce import cli
from sottovoce.errors import BadInput, BadList, BadModel
from sottovoce.lab import cascade as measuring
from sottovoce.lab import cascade_tuning as tuning
from sottovoce.lab.cascade import evaluate_cascade
from sottovoce.lab.cascade_tuning import Scores, tune, width
from sottovoce.lab.evaluate import evaluate
from sottovoce.runtime import cascade as runtime
from sottovoce.runtime.cascade import load_cascade
from sottovoce.scores.cascade import mean_cost
from sottovoce.scores.metrics import eer

SPEAKERS, TAKES = 12, 5


class Angles:
    """Embeds a recording as an angle, its first sample, rounded to the steps that its file names; counts recordings."""

    dim, min_samples, rate = 2, 400, 16000
    embedded = 0

    def __init__(self, path: Path) -> None:
        self.path, self.id, self.steps = path, path.name, int(path.read_text())
        self.metadata: dict[str, Any] = {"layers": {"a": f"kmeans{path.stem[-1]}/channel/mse"}}

    def embed(self, wave: np.ndarray) -> np.ndarray:
        Angles.embedded += len(wave) == 800
        angle = round(float(wave[0]) * self.steps) / self.steps
        return np.array([math.cos(angle), math.sin(angle)], dtype=np.float32)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Recordings whose first sample is the angle of their speaker with some noise; trials of all pairs; two models."""
    for module in (runtime, tuning):
        monkeypatch.setattr(module, "load", lambda path, **_: Angles(Path(path)))
    monkeypatch.setattr(measuring, "resident_bytes", lambda _: 1000)
    monkeypatch.setattr(Angles, "embedded", 0)
    rng = np.random.default_rng(0)
    names = [f"s{speaker:02}/{take}.wav" for speaker in range(SPEAKERS) for take in range(TAKES)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        samples = np.full(800, (int(name[1:3]) - 5.5) / 5 + 0.08 * rng.standard_normal(), dtype=np.float32)
        samples[1::2] = -0.5
        soundfile.write(tmp_path / name, samples, 16000, subtype="FLOAT")
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    (tmp_path / "dev.txt").write_text("".join(f"{int(a[:3] == b[:3])} {a} {b}\n" for a, b in pairs))
    few = [(a, b) for a, b in pairs if a[1:3] in ("00", "01") and b[1:3] in ("00", "01", "11")]
    (tmp_path / "few.txt").write_text("".join(f"{int(a[:3] == b[:3])} {a} {b}\n" for a, b in few))
    for name, steps in (("rough2.onnx", "6"), ("better3.onnx", "14"), ("fine4.onnx", "1000")):
        (tmp_path / name).write_text(steps)
    return tmp_path


def tuned(corpus: Path, *names: str, **target: Any) -> dict[str, Any]:
    files = [corpus / f"{name}.onnx" for name in names or ("rough2", "fine4")]
    return tune(files, [corpus / "dev.txt"], corpus, corpus / "c.json", quiet=True, **target)


def measured(corpus: Path, *lists: str, **settings: Any) -> dict[str, Any]:
    names = [corpus / f"{name}.txt" for name in lists or ("dev",)]
    return evaluate_cascade(load_cascade(corpus / "c.json"), names, corpus, draws=20, quiet=True, **settings)


def test_tuned_for_an_error_rate(corpus: Path) -> None:
    report = tuned(corpus, target_eer="5%")
    first, last = report["eer_of_stages"]
    assert first > 1.2 * last, "the stages must differ for the test to tell anything"
    assert report["eer"] <= 1.05 * last
    assert (report["weights"], report["eer_all_go_on"]) == (None, last)
    assert 0.2 < report["stopped"][0] < 1
    assert report["bits_per_trial"] == pytest.approx(2 + 4 * report["stopped"][1])
    assert report["curve"][0]["cost"] < report["curve"][-1]["cost"]
    found = measured(corpus, full=True)
    assert found["eer"] == pytest.approx(report["eer"], abs=1e-9)
    assert found["stopped"] == report["stopped"]
    assert found["disagreement"] == report["disagreement"]
    assert found["relative_eer"] == pytest.approx(found["eer"] / found["stages"][1]["alone"]["all"] - 1)
    assert found["relative_eer_interval"][0] <= found["relative_eer_interval"][1]
    assert [stage["alone"]["mean_eer"] for stage in found["stages"]] == pytest.approx([first, last], abs=1e-9)
    assert found["all_go_on"]["all"] == pytest.approx(last, abs=1e-9)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_rates_are_those_of_evaluate(corpus: Path) -> None:
    """With gates that never answer a cascade gives what its last model gives, in every entry that both have."""
    tuned(corpus, target_eer="5%")
    path = corpus / "c.json"
    content = json.loads(path.read_text())
    content["stages"][0]["gate"].update(low=None, high=None)
    path.write_text(json.dumps(content))
    found = measured(corpus)
    wanted = evaluate(Angles(corpus / "fine4.onnx"), corpus / "dev.txt", corpus, draws=20, quiet=True)
    shared = (set(wanted) & set(found)) - {"model", "model_id", "model_sha256"}
    assert {"eer", "eer_interval", "min_dcf", "min_dcf_interval", "min_cllr", "few_errors", "trials"} <= shared
    for name in shared:
        both = [one[name].items() if isinstance(one[name], dict) else [("", one[name])] for one in (found, wanted)]
        for (_, one), (_, other) in zip(*both, strict=True):
            assert one == pytest.approx(other, abs=1e-6), name


@pytest.mark.parametrize("fuse", [False, True])
def test_tuned_for_a_share_of_trials(corpus: Path, fuse: bool) -> None:
    report = tuned(corpus, "rough2", "better3", "fine4", stop_at_least="70%", confidence=0.8, fuse=fuse)
    assert 0.7 <= report["stopped"][0] < 0.9
    assert report["stopped"][1] > 0
    cascade = load_cascade(corpus / "c.json")
    assert (cascade.weights is None) is not fuse
    widths = [gate.high - gate.low for gate in cascade.gates]
    assert widths[1] < widths[0], "a stage that is nearer to the last is surer"
    found = measured(corpus, full=True)
    assert found["stopped"] == pytest.approx(report["stopped"], abs=1e-12)
    assert found["eer"] == pytest.approx(report["eer"], abs=1e-9)
    assert found["disagreement"] == pytest.approx(report["disagreement"], abs=1e-12)
    by_hand = tuned(corpus, "rough2", "better3", "fine4", stop_at_least="0.7", confidence=0.8, fuse=fuse)
    assert by_hand["gates"] == report["gates"]


def test_weighed_evidence_is_measured_beside_the_last_stage(corpus: Path) -> None:
    report = tuned(corpus, "rough2", "better3", stop_at_least="70%", fuse=True)
    found = measured(corpus, full=True, record=corpus / "r.npz")
    record, (_, weights) = np.load(corpus / "r.npz"), report["weights"]
    angle = {name: float(soundfile.read(corpus / name)[0][0]) for name in {*record["enrol"], *record["test"]}}
    rough, fine = (
        np.array(
            [
                math.cos(round(angle[a] * steps) / steps - round(angle[b] * steps) / steps)
                for a, b in zip(record["enrol"], record["test"], strict=True)
            ]
        )
        for steps in (6, 14)
    )
    final = weights[0] * rough + weights[1] * fine
    went = record["stage"] == 2
    assert 0 < went.mean() < 1
    assert weights[0] > 0
    np.testing.assert_allclose(record["score"][went], final[went], rtol=0, atol=1e-6)
    content = json.loads((corpus / "c.json").read_text())
    content["stages"][0]["gate"].update(low=None, high=None)
    (corpus / "c.json").write_text(json.dumps(content))
    open_gates = measured(corpus, full=True)
    assert open_gates["stopped"] == [0, 1]
    assert found["all_go_on"]["all"] == open_gates["eer"] == report["eer_all_go_on"]
    for name in ("", "_interval"):
        assert found[f"relative_eer_all_go_on{name}"] == open_gates[f"relative_eer{name}"]
    assert found["relative_eer"] == found["eer"] / found["stages"][1]["alone"]["all"] - 1


def test_tuned_for_a_cost(corpus: Path) -> None:
    report = tuned(corpus, "rough2", "better3", "fine4", target_cost="4.5")
    assert report["bits_per_trial"] <= 4.5
    assert sum(report["stopped"]) == pytest.approx(1)
    reach = [sum(report["stopped"][stage:]) for stage in range(3)]
    assert report["bits_per_trial"] == pytest.approx(2 + 3 * reach[1] + 4 * reach[2])
    assert report["eer"] <= report["eer_of_stages"][0]


def test_tuned_for_agreement(corpus: Path) -> None:
    report = tuned(corpus, max_disagreement="3%")
    assert report["disagreement"] <= 0.03
    assert 0 < report["stopped"][0] < 1
    (gate,) = load_cascade(corpus / "c.json").gates
    assert 0 < max(side for side in (gate.below, gate.above) if side is not None) <= 0.03


def test_the_same_twice(corpus: Path) -> None:
    tuned(corpus, target_eer="5%")
    once = (corpus / "c.json").read_bytes()
    tuned(corpus, target_eer="5%")
    assert (corpus / "c.json").read_bytes() == once


def test_some_trials_of_several_lists() -> None:
    scores = Scores(
        [np.arange(6) / 10, np.arange(6) / 5],
        np.array([1, 0, 1, 0, 1, 0], dtype=np.uint8),
        (np.arange(6), np.arange(6) + 10),
        [np.arange(2), np.arange(2, 3), np.arange(3, 6)],
    )
    part = scores.only(np.array([0, 3, 5]))
    assert [row.tolist() for row in part.stages] == [[0.0, 0.3, 0.5], [0.0, 0.6, 1.0]]
    assert part.labels.tolist() == [1, 0, 0]
    assert [side.tolist() for side in part.speaker] == [[0, 3, 5], [10, 13, 15]]
    assert [rows.tolist() for rows in part.sets] == [[0], [1, 2]]  # the second list keeps no trial


def test_a_recording_is_embedded_only_where_it_is_needed(corpus: Path) -> None:
    tuned(corpus, target_eer="5%")
    Angles.embedded = 0
    found = measured(corpus, "few", record=corpus / "r.npz")
    record = np.load(corpus / "r.npz")
    on = record["stage"] == 2
    reaching = set(record["enrol"][on]) | set(record["test"][on])
    assert 0 < len(reaching) < 15
    assert [stage["recordings"] for stage in found["stages"]] == [15, len(reaching)]
    assert Angles.embedded == 15 + len(reaching)
    assert len(record["label"]) == found["trials"]
    assert found["cost"]["bits"] == pytest.approx(mean_cost((2, 4), record["stage"] - 1))


def test_costs_are_sums_over_the_trials(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that moves 1 ms a look, every embedding takes 1 ms."""
    tuned(corpus, target_eer="5%")
    clock = iter(range(10**6))
    monkeypatch.setattr("sottovoce.lab.bank.time.process_time", lambda: next(clock) / 1e3)
    found = measured(corpus, "few", full=True, record=corpus / "r.npz")
    stage = np.load(corpus / "r.npz")["stage"]
    assert found["cost"]["ms_fresh_pair"] == pytest.approx(2 + 2 * (stage == 2).mean())
    recordings = sum(one["recordings"] for one in found["stages"])
    assert found["cost"]["ms_shared"] == pytest.approx(recordings / len(stage))
    assert found["stages"][1]["alone"]["ms_fresh_pair"] == pytest.approx(2)
    assert found["stages"][1]["alone"]["ms_shared"] == pytest.approx(15 / len(stage))
    assert found["stages"][0]["ms"] == pytest.approx(1)


def test_lists_apart_and_together(corpus: Path) -> None:
    tuned(corpus, target_eer="5%")
    found = measured(corpus, "dev", "few", record=corpus / "r.json")
    rows = json.loads((corpus / "r.json").read_text())
    assert [one["trials"] for one in found["lists"]] == [1770, len(rows) - 1770]
    for one, part in zip([*found["lists"], found["all"]], (rows[:1770], rows[1770:], rows), strict=True):
        scores, labels = [row["score"] for row in part], [row["label"] for row in part]
        assert one["eer"] == pytest.approx(eer(scores, labels)[0])
        assert one["stopped"][0] == pytest.approx(np.mean([row["stage"] == 1 for row in part]))
    assert found["mean_eer"] == pytest.approx(np.mean([one["eer"] for one in found["lists"]]))
    assert "eer" not in found


def test_recordings_that_cannot_be_used_are_left_out(corpus: Path) -> None:
    tuned(corpus, target_eer="5%")
    (corpus / "s00/0.wav").write_text("no sound")
    found = measured(corpus, "few")
    assert [one["path"] for one in found["excluded"]] == ["s00/0.wav"]
    assert found["trials"] < len((corpus / "few.txt").read_text().splitlines())


def test_bad_targets_are_refused_before_recordings_are_read(corpus: Path) -> None:
    for target, message in (
        ({}, "one target"),
        ({"target_eer": "2%", "target_cost": "3"}, "one target"),
        ({"target_eer": "2%", "stop_at_least": "75%"}, "one target"),
        ({"stop_at_least": "most"}, "write 75%"),
        ({"stop_at_least": "100%"}, "between 0 and 1, as 75%"),
        ({"stop_at_least": "75"}, "between 0 and 1"),
        ({"target_eer": "little"}, "cannot be read"),
        ({"target_cost": "3 miles"}, "cannot be read"),
        ({"max_disagreement": "0%"}, "between 0 and 1"),
        ({"max_disagreement": "1%", "confidence": 1.0}, "between 0 and 1"),
        ({"max_disagreement": "0.1%"}, "1770 trials cannot show"),
        ({"target_eer": "2%", "cost": "euros"}, "cost 'euros' is unknown"),
    ):
        with pytest.raises(BadInput, match=message):
            tuned(corpus, **target)
    assert Angles.embedded == 0


def test_bad_stages_and_lists_are_refused_before_recordings_are_read(corpus: Path) -> None:
    with pytest.raises(BadInput, match="two stages or more"):
        tuned(corpus, "rough2", target_eer="2%")
    with pytest.raises(BadInput, match="there twice"):
        tuned(corpus, "rough2", "rough2", target_eer="2%")
    (corpus / "one.txt").write_text("1 s00/0.wav s00/1.wav\n")
    with pytest.raises(BadList, match="both kinds"):
        tune(
            [corpus / "rough2.onnx", corpus / "fine4.onnx"], [corpus / "one.txt"], corpus, corpus / "c", target_eer="2%"
        )
    tuned(corpus, target_eer="5%")
    Angles.embedded = 0
    with pytest.raises(BadInput, match=r"end in \.npz or \.json"):
        measured(corpus, record=corpus / "r.csv")
    (corpus / "fine4.onnx").write_text("1001")
    with pytest.raises(BadModel, match="tuned with"):
        measured(corpus)
    assert Angles.embedded == 0


def test_a_cost_out_of_reach_is_named(corpus: Path) -> None:
    with pytest.raises(BadInput, match="the first stage alone costs 2"):
        tuned(corpus, target_cost="1.5")


def test_the_width_of_a_model_is_that_of_most_layers(corpus: Path) -> None:
    model = Angles(corpus / "fine4.onnx")
    assert width(model) == 4
    model.metadata = {"layers": {"a": "uniform8/layer/mse", "b": "binary/channel/static", "c": "binary/layer/static"}}
    assert width(model) == 1
    model.metadata = {"layers": {"a": "float"}}
    assert width(model) == 32
    model.metadata = {}
    assert width(model) == 32


def test_the_commands(corpus: Path) -> None:
    def sotto(*words: Any) -> str:
        found = CliRunner().invoke(cli.main, [str(word) for word in words])
        assert found.exit_code == 0, found.output
        return found.stdout

    of = ["--trials", corpus / "few.txt", "--audio", corpus]
    files = [corpus / "rough2.onnx", corpus / "fine4.onnx"]
    made = json.loads(sotto("cascade", "tune", *files, *of, "--target-eer", "5%", "--out", corpus / "c.json", "--json"))
    assert made["trials"] == 95
    assert "development trials" in sotto(
        "cascade", "tune", *files, *of, "--target-cost", "5", "--out", corpus / "c.json"
    )
    text = sotto("cascade", "tune", *files, *of, "--stop-at-least", "60%", "--fuse", "--out", corpus / "w.json")
    assert "× stage 2" in text
    assert "all weighed, all go on" in sotto("cascade", "run", corpus / "w.json", *of, "--full", "--draws", 0)
    run = json.loads(sotto("cascade", "run", corpus / "c.json", *of, "--full", "--draws", 0, "--json"))
    evaluated = json.loads(sotto("evaluate", corpus / "c.json", *of, "--draws", 0, "--json"))
    assert {name: run[name] for name in ("eer", "stopped", "model_id")} == {
        name: evaluated[name] for name in ("eer", "stopped", "model_id")
    }
    text = sotto("cascade", "run", corpus / "c.json", *of, *of[:1], corpus / "dev.txt", "--full", "--draws", 0)
    assert "stage 2 alone" in text
    assert "fresh pair" in text
    refused = CliRunner().invoke(cli.main, ["cascade", "tune", str(files[0]), *map(str, of), "--out", "x.json"])
    assert refused.exit_code == 2
    assert "error: give one target" in refused.stderr


def test_memory_is_measured_in_a_process_of_its_own() -> None:
    """The shipped model holds at least its weights, which are int8 when it runs."""
    from sottovoce.runtime.engine import SHIPPED

    held = measuring.resident_bytes(SHIPPED)
    assert held is None or 1_000_000 < held < 500_000_000
