"""Paper A's framework: greedy choice on made-up figures, then the whole on a tiny network with real files."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce import networks
from sottovoce.audio.talker import talker
from sottovoce.errors import BadInput, BadPlan
from sottovoce.lab import checkpoint as checkpoints
from sottovoce.lab import sweep as module
from sottovoce.lab.groups import Group
from sottovoce.lab.sweep import greedy, pareto, sweep

GROUPS = [Group(name, (name,), (name,)) for name in "abcd"]


def figures(costs: dict[str, float], saved: dict[str, int]):
    """A measurement in which losses and savings add up; remembers what was asked."""
    asked = []

    def measured(names):
        asked.append(names)
        return {
            "groups": list(names),
            "bytes": 1000 - sum(saved[name] for name in names),
            "mean_eer": 0.05 + sum(costs[name] for name in names),
        }

    return measured, asked


def test_greedy_takes_the_cheapest_bytes_first_and_goes_on_after_one_that_does_not_fit() -> None:
    measured, asked = figures(
        {"a": 0.001, "b": -0.001, "c": 0.004, "d": 0.0015}, {"a": 100, "b": 100, "c": 500, "d": 100}
    )
    steps = greedy(GROUPS, measured, 0.002)
    assert [(step["tried"], step["kept"]) for step in steps] == [("b", True), ("c", False), ("a", True), ("d", True)]
    assert steps[-1]["groups"] == ["a", "b", "d"]
    assert asked[:6] == [(), ("a",), ("b",), ("c",), ("d",), ("a", "b", "c", "d")]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-20, 20), min_size=4, max_size=4),
    st.lists(st.integers(1, 200), min_size=4, max_size=4),
    st.integers(0, 30),
)
def test_what_greedy_keeps_is_within_the_loss(costs: list[int], saved: list[int], loss: int) -> None:
    measured, _ = figures(
        dict(zip("abcd", [c / 1000 for c in costs], strict=True)), dict(zip("abcd", saved, strict=True))
    )
    kept = [step["groups"] for step in greedy(GROUPS, measured, loss / 1000) if step["kept"]]
    for names in kept:
        assert measured(tuple(names))["mean_eer"] - 0.05 <= loss / 1000 + 1e-9


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_pareto(points: list[tuple[int, int]]) -> None:
    front = pareto([{"bytes": x, "mean_eer": float(y)} for x, y in points])
    kept = {(row["bytes"], row["mean_eer"]) for row in front}
    beaten = {
        p
        for p, q in combinations(sorted(set(points)) + sorted(set(points), reverse=True), 2)
        if p != q and q[0] <= p[0] and q[1] <= p[1]
    }
    assert kept == {(x, float(y)) for x, y in set(points) - beaten}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny float checkpoint, two recordings each of three talkers with a trial list, and recordings to observe."""
    root = tmp_path_factory.mktemp("sweep")
    torch.manual_seed(1)
    network = {"kind": "resnet", "blocks": [1, 1], "width": 4, "dim": 8}
    built = networks.build(**network)
    checkpoints.save(root / "float.safetensors", built, {"network": network, "front_end": "wespeaker", "plan": ""})
    for folder, seed in (("test", 0), ("train", 50)):
        for speaker in range(3):
            for take in range(2):
                path = root / folder / f"s{speaker}" / f"{take}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, talker(0.5, seed=seed + 10 * speaker + take), 16000)
    lines = [f"{int(a == b)} s{a}/0.wav s{b}/1.wav" for a in range(3) for b in range(3)]
    (root / "trials.txt").write_text("\n".join(lines) + "\n")
    return root


def run(place: Path, out: Path, **settings):
    given = {"data": place / "train", "trials": [place / "trials.txt"], "audio": place / "test", "utterances": 4}
    return sweep(place / "float.safetensors", out=out, quiet=True, draws=0, **{**given, **settings})


def test_sweep_measures_files_and_is_found_again(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "sweep.json"
    report = run(place, out, max_eer_loss=1.0)
    assert json.loads(out.read_text()) == report
    assert [row["group"] for row in report["table"]] == ["conv1", "layer1", "layer2", "seg_1"]
    whole = next(row for row in report["sets"] if len(row["groups"]) == 4)
    assert report["chosen"]["bytes"] <= whole["bytes"] < report["float"]["bytes"]
    assert sum(row["share"] for row in report["table"]) == pytest.approx(1)
    assert all(0.9 < row["cosine"] <= 1.000001 for row in report["sets"])
    assert not list(tmp_path.glob(".sweep*"))

    monkeypatch.setattr(module._Bench, "measure", lambda *_: pytest.fail("measured again"))
    again = run(place, out, max_eer_loss=0.0)
    assert again["sets"] == report["sets"]
    assert again["chosen"]["eer_change"] <= 0


def test_a_stopped_sweep_goes_on(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(place, tmp_path / "whole.json")
    first, out, done = module._Bench.measure, tmp_path / "stopped.json", []

    def stops(self, groups, beside):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return first(self, groups, beside)

    monkeypatch.setattr(module._Bench, "measure", stops)
    with pytest.raises(KeyboardInterrupt):
        run(place, out)
    assert json.loads(out.read_text())["complete"] is False
    monkeypatch.setattr(module._Bench, "measure", first)

    def timeless(report):
        return [{key: value for key, value in row.items() if key != "seconds"} for row in report["sets"]]

    assert timeless(run(place, out)) == timeless(whole)


def test_an_out_of_other_settings_is_refused(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep.json"
    out.write_text("{}")
    with pytest.raises(BadInput, match="not a sweep"):
        run(place, out)
    out.write_text(json.dumps({"settings": {}, "sets": []}))
    with pytest.raises(BadInput, match="another checkpoint_sha256"):
        run(place, out)


def test_wrong_requests_are_refused_before_any_work(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module._Bench, "measure", lambda *_: pytest.fail("work was done"))
    with pytest.raises(BadInput, match="in a trial list"):
        run(place, tmp_path / "a.json", data=place / "test")
    with pytest.raises(BadPlan, match="'layer1"):
        run(place, tmp_path / "a.json", groups="x=layr1.*")
    with pytest.raises(BadInput, match="does not exist"):
        run(place, tmp_path / "none" / "a.json")
    with pytest.raises(BadInput, match="trial list"):
        run(place, tmp_path / "a.json", trials=[])
