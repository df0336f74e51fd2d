"""Files of scores: what is written is read back, and anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sottovoce.errors import BadFile
from sottovoce.lab.scored import Scored, read_scores, score_trials, write_scores
from sottovoce.lab.trials import read_trials


def scored(tmp_path: Path, name: str, people: str) -> Scored:
    """Two recordings a speaker, every pair a trial."""
    names = [f"{who}/{take}.wav" for who in people for take in (1, 2)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    (tmp_path / name).write_text("".join(f"{int(a[0] == b[0])} {a} {b}\n" for a, b in pairs))
    rng = np.random.default_rng(len(people))
    return score_trials(read_trials(tmp_path / name), {one: rng.normal(size=4).astype(np.float32) for one in names})


def flat(one: Scored) -> list[tuple[object, ...]]:
    """Every trial, written out."""
    sides = [
        ([one.utterances[row] for row in rows], [one.speakers[row] for row in of])
        for rows, of in ((one.enrol, one.enrol_speaker), (one.test, one.test_speaker))
    ]
    return list(zip(*sides[0], *sides[1], one.labels.tolist(), one.scores.tolist(), strict=True))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    lists = [scored(tmp_path, "one.txt", "abc"), scored(tmp_path, "two.txt", "cd")]
    write_scores(tmp_path / "s.npz", lists, {"model": "m.onnx", "priors": [0.01]})
    found, about = read_scores(tmp_path / "s.npz")
    assert about == {"model": "m.onnx", "priors": [0.01]}
    assert [(one.name, one.sha256) for one in found] == [(one.name, one.sha256) for one in lists]
    assert [flat(one) for one in found] == [flat(one) for one in lists]
    assert flat(lists[0])[0][:4] == ("a/1.wav", "a", "a/2.wav", "a")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_the_arrays_are_those_of_the_documentation(tmp_path: Path) -> None:
    one = scored(tmp_path, "one.txt", "abc")
    write_scores(tmp_path / "s.npz", [one], {})
    with np.load(tmp_path / "s.npz", allow_pickle=False) as file:
        trials = {"list", "enrol", "test", "enrol_speaker", "test_speaker", "labels", "scores"}
        assert set(file) == trials | {"lists", "list_sha256", "utterances", "speakers", "about"}
        assert {len(file[name]) for name in trials} == {len(one)}
        assert file["utterances"][file["enrol"]].tolist() == [one.utterances[row] for row in one.enrol]


def test_some_of_the_trials(tmp_path: Path) -> None:
    one = scored(tmp_path, "one.txt", "abc")
    assert flat(one.only(one.labels == 1)) == [trial for trial in flat(one) if trial[4] == 1]


def spoilt(tmp_path: Path, **changed: object) -> Path:
    write_scores(tmp_path / "s.npz", [scored(tmp_path, "one.txt", "abc")], {})
    with np.load(tmp_path / "s.npz") as file:
        arrays = {name: changed.get(name, file[name]) for name in file}
    np.savez(tmp_path / "bad.npz", **{name: value for name, value in arrays.items() if value is not None})
    return tmp_path / "bad.npz"


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"enrol": np.full(15, 6)}, "enrol does not count into utterances"),
        ({"test_speaker": np.full(15, -1)}, "test_speaker does not count into speakers"),
        ({"list": np.zeros(14, dtype=int)}, "list does not count"),
        ({"scores": np.full(15, np.nan)}, "finite"),
        ({"labels": np.full(15, 2)}, "labels"),
        ({"speakers": None}, "speakers"),
        ({"about": "{"}, "Expecting"),
        ({"about": np.array([{}], dtype=object)}, "allow_pickle"),
    ],
)
def test_a_spoilt_file_is_refused(tmp_path: Path, changed: dict[str, object], what: str) -> None:
    with pytest.raises(BadFile, match=what):
        read_scores(spoilt(tmp_path, **changed))


def test_what_is_no_file_of_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no such file"):
        read_scores(tmp_path / "none.npz")
    whole = spoilt(tmp_path).read_bytes()
    for content in (b"", json.dumps({}).encode(), whole[: len(whole) // 2]):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(BadFile, match="not scores"):
            read_scores(tmp_path / "bad.npz")
