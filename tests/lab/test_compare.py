"""Differences between files: the same draws for all."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from sottovoce.errors import BadInput
from sottovoce.lab import compare as compared
from sottovoce.lab.lists import read_trials
from sottovoce.scores.metrics import equal_error, intervals, redrawn


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def trial_list(tmp_path):
    """Six speakers with four recordings each, every pair a trial."""
    names = [f"s{speaker}/{take}.wav" for speaker in range(6) for take in range(4)]
    lines = [f"{int(a[:2] == b[:2])} {a} {b}" for i, a in enumerate(names) for b in names[i + 1 :]]
    path = tmp_path / "trials.txt"
    path.write_text("\n".join(lines) + "\n")
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.normal(size=(6, 8)), 4, axis=0)
    clean = unit(centres + 0.9 * rng.normal(size=(24, 8)))
    noisy = unit(clean + 0.3 * rng.normal(size=(24, 8)))
    return path, dict(zip(names, clean, strict=True)), dict(zip(names, noisy, strict=True))


def test_a_file_does_not_differ_from_itself_in_any_draw(trial_list):
    path, clean, _ = trial_list
    draws = compared.mean_draws([clean, dict(clean)], [read_trials(path)], 50, 0)
    assert np.array_equal(draws[:, 0], draws[:, 1])


def test_the_interval_of_a_difference_is_that_of_paired_draws(trial_list):
    path, clean, noisy = trial_list
    trials = read_trials(path)
    draws = compared.mean_draws([clean, noisy], [trials, trials], 200, 3)
    scores = [compared.trial_scores(trials, known) for known in (clean, noisy)]
    single = [redrawn([s[0]], *s[1:], [equal_error], 200, 3)[:, 0, 0] for s in scores]
    expected = np.stack(single, axis=1)
    assert np.allclose(draws, expected[~np.isnan(expected).any(axis=1)])


def test_other_speakers_are_drawn_apart(trial_list, tmp_path):
    path, clean, noisy = trial_list
    fewer = tmp_path / "fewer.txt"
    fewer.write_text("".join(f"{line}\n" for line in path.read_text().splitlines() if "s5/" not in line))
    whole, part = read_trials(path), read_trials(fewer)
    draws = compared.mean_draws([clean, noisy], [whole, part], 200, 3)
    scores = [[compared.trial_scores(trials, known) for known in (clean, noisy)] for trials in (whole, part)]
    apart = [
        np.stack([redrawn([s[0]], *s[1:], [equal_error], 200, 3 + number)[:, 0, 0] for s in pair], axis=1)
        for number, pair in enumerate(scores)
    ]
    expected = np.mean(apart, axis=0)
    assert np.allclose(draws, expected[~np.isnan(expected).any(axis=1)])


def test_a_group_is_the_mean_of_its_files(trial_list, monkeypatch):
    path, clean, noisy = trial_list
    known = {"a": clean, "b": noisy, "c": clean}
    monkeypatch.setattr(compared, "load", lambda file: SimpleNamespace(name=str(file), metadata={}, id="x", path=path))
    monkeypatch.setattr(compared, "embed_names", lambda model, *_, **__: (known[model.name[-1]], {}))
    monkeypatch.setattr(compared, "Path", lambda _: path)
    files = {"float": "a", "one": "b", "two": "c"}
    groups = {"both": ["one", "two"], "alone": ["one"]}
    pairs = [("alone", "float"), ("both", "alone"), ("one", "alone")]
    result = compared.compare(files, [path], path.parent, pairs=pairs, groups=groups, draws=50)
    rates = {one["name"]: one["mean_eer"] for one in result["models"]}
    both, alone = result["groups"]
    assert both["mean_eer"] == pytest.approx((rates["one"] + rates["two"]) / 2)
    assert alone["relative_eer_interval"] == result["models"][1]["relative_eer_interval"]
    assert result["pairs"][2]["relative_eer_interval"] == [0.0, 0.0]
    with pytest.raises(BadInput, match="name of a file"):
        compared.compare(files, [path], path.parent, groups={"one": ["two"]})
    with pytest.raises(BadInput, match="'three'"):
        compared.compare(files, [path], path.parent, groups={"more": ["three"]})


def test_one_system_redrawn_has_the_interval_of_intervals(trial_list):
    path, clean, _ = trial_list
    scores, labels, enrol, test = compared.trial_scores(read_trials(path), clean)
    found = redrawn([scores, -scores], labels, enrol, test, [equal_error], 300, 1)[:, 0, 0]
    (interval,) = intervals(scores, labels, enrol, test, [equal_error], 300, 1)
    assert tuple(compared.percentiles(found[~np.isnan(found)])) == interval


def test_compare_measures_files_and_names_the_first(trial_list, monkeypatch):
    path, clean, noisy = trial_list
    known = {"a": clean, "b": noisy}

    def load(file):
        return SimpleNamespace(name=str(file), metadata={"plan": "*=kmeans4"}, id="x", path=path)

    monkeypatch.setattr(compared, "load", load)
    monkeypatch.setattr(compared, "embed_names", lambda model, *_, **__: (known[model.name[-1]], {}))
    monkeypatch.setattr(compared, "Path", lambda _: path)
    pair = ("4 bits", "float")
    result = compared.compare({"float": "a", "4 bits": "b"}, [path], path.parent, pairs=[pair], draws=50)
    first, second = result["models"]
    assert result["pairs"][0]["relative_eer_interval"] == second["relative_eer_interval"]
    assert first["relative_eer"] == 0.0
    assert (first["enrolment"], first["normalisation"]) == ("one recording a model", "none")
    assert first["relative_eer_interval"] == [0.0, 0.0]
    assert second["relative_eer"] == pytest.approx(second["mean_eer"] / first["mean_eer"] - 1)
    assert second["cosine_to_first"] == pytest.approx(np.mean([clean[n] @ noisy[n] for n in clean]))


def test_nothing_to_compare_is_refused():
    with pytest.raises(BadInput, match="no file"):
        compared.compare({}, [], ".")
    with pytest.raises(BadInput, match="'c'"):
        compared.compare({"a": "a"}, [], ".", pairs=[("a", "c")])
