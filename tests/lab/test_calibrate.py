"""Calibration of a file: pairs and halves by counting, and the command from recordings to a file that verifies."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce import cli
from sottovoce.errors import BadInput, BadList
from sottovoce.lab.calibrate import calibrate, crossed, fit, fitted, held_out, judged
from sottovoce.lab.evaluate import stored_llrs
from sottovoce.lab.pool import Pool, apart, both_ways, pairs, pooled
from sottovoce.lab.scored import Scored
from sottovoce.lab.scoring import Scoring
from sottovoce.runtime.engine import SHIPPED, load
from sottovoce.runtime.verify import verify
from sottovoce.scores.calibration import AFFINE_SPEAKERS, affine, from_dict, isotonic
from sottovoce.scores.metrics import eer, min_cllr
from sottovoce.scores.splines import STIFFNESS, spline

DEMO = Path(__file__).parents[2] / "demo" / "corpus"


def drawn(speakers: int = 40, each: int = 6, shift: float = 0.0, seed: int = 0, name: str = "a") -> Scored:
    """All pairs of recordings whose scores are drawn: targets 0.5 higher, everything moved by `shift`."""
    of = np.repeat(np.arange(speakers), each)
    first, second = np.triu_indices(len(of), 1)
    labels = (of[first] == of[second]).astype(np.uint8)
    scores = np.random.default_rng(seed).normal(0.5 * labels + shift, 0.2).astype(np.float32)
    names = [f"{name}{index}" for index in range(len(of))], [f"{name}-{index}" for index in range(speakers)]
    return Scored(name, "", *names, first, second, of[first], of[second], labels, scores)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.integers(4, 500), st.integers(0, 3))
def test_pairs_are_each_once_and_bounded(speakers: list[int], most: int, seed: int) -> None:
    of = np.array(speakers)
    first, second = pairs(of, most, seed)
    found = {tuple(sorted(pair)) for pair in zip(first.tolist(), second.tolist(), strict=True)}
    assert len(found) == len(first) <= most
    assert all(a != b for a, b in found)
    every = len(of) * (len(of) - 1) // 2
    same = sum(int((of == one).sum() * ((of == one).sum() - 1) // 2) for one in set(speakers))
    taken = int((of[first] == of[second]).sum())
    assert taken == (same if every <= most else min(same, most // 2))
    again = pairs(of, most, seed)
    assert np.array_equal(first, again[0])
    assert np.array_equal(second, again[1])


def test_halves_share_no_speaker_and_halve_every_list() -> None:
    pool = pooled([drawn(name="a"), drawn(10, name="b")])
    (one, two), (three, four) = both_ways(pool, seed=1)
    assert np.array_equal(one.scores, four.scores)
    assert np.array_equal(two.scores, three.scores)
    sides = [np.union1d(part.enrol_speaker, part.test_speaker) for part in (one, two)]
    assert [len(side) for side in sides] == [25, 25]
    assert not set(sides[0]) & set(sides[1])
    assert [len(np.unique(one.enrol_speaker[one.of == number])) for number in (0, 1)] == [20, 5]


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 9), st.integers(1, 4), st.integers(2, 12), st.integers(0, 3))
def test_each_trial_is_tested_once_and_knows_nobody_it_was_fitted_on(
    speakers: int, others: int, parts: int, seed: int
) -> None:
    pool = pooled([drawn(speakers, 2, name="a"), drawn(others, 2, name="b")])
    tested = np.zeros(len(pool.labels), dtype=int)
    for fit_rows, test_rows in apart(pool, parts, seed):
        tested += test_rows
        here, there = pool.only(test_rows).speakers(), pool.only(fit_rows).speakers()
        assert not set(here.tolist()) & set(there.tolist())
    assert (tested == 1).all()


def test_small_lists_are_dealt_into_parts_of_their_own() -> None:
    pool = pooled([drawn(4, name="a"), drawn(5, name="b")])
    for fit_rows, test_rows in apart(pool, 20, seed=2):
        used = {len(pool.only(rows & (pool.of == 1)).speakers()) for rows in [fit_rows] if pool.of[test_rows][0] == 0}
        assert used <= {5}, "who is tested in one list takes nobody of the other along"


def test_speakers_left_out_are_left_out_by_brute_force() -> None:
    pool = pooled([drawn(7, 3)])
    moved = Pool(pool.scores + 0.3, *_rest(pool), {})
    found = [held_out(pool, lambda part: fit(part, "affine", 0.5), parts=9, fit_on=one) for one in (None, moved)]
    for row in range(0, len(pool.labels), 7):
        pair = [pool.enrol_speaker[row], pool.test_speaker[row]]
        others = ~(np.isin(pool.enrol_speaker, pair) | np.isin(pool.test_speaker, pair))
        for llrs, source in zip(found, (pool, moved), strict=True):
            wanted = affine(source.scores[others], source.labels[others])(pool.scores[row])
            assert llrs[row] == pytest.approx(float(wanted), abs=1e-9)


def test_the_least_cost_is_that_of_the_scores_not_of_what_a_calibration_leaves_of_their_order() -> None:
    pool = pooled([drawn(8, 3)])
    assert judged(pool, isotonic(pool.scores, pool.labels))["min_cllr"] == min_cllr(pool.scores, pool.labels)
    assert crossed(pool, method="isotonic")[0]["min_cllr"] == min_cllr(pool.scores, pool.labels)


def test_a_speaker_of_two_lists_is_one() -> None:
    pool = pooled([drawn(name="a"), drawn(seed=1, name="a")])
    assert len(np.union1d(pool.enrol_speaker, pool.test_speaker)) == 40


def test_entries_say_what_the_file_scores_mean() -> None:
    pool = pooled([drawn(40, 4)])
    entries, _ = fitted(pool, draws=50)
    stored = json.loads(json.dumps(entries, allow_nan=False))
    calibration = from_dict(stored["calibration"])
    assert calibration == spline(pool.scores, pool.labels, 40)
    assert judged(pool, calibration)["cllr"] == stored["calibration"]["cllr"] < 1.1 * stored["calibration"]["min_cllr"]
    beside = fitted(pool, method="shrunk", draws=5)[0]["calibration"]
    assert (beside["method"], beside["affine_speakers"]) == ("isotonic", AFFINE_SPEAKERS)
    rate, threshold = eer(pool.scores, pool.labels)
    point = stored["operating_points"]["balanced"]
    assert (point["threshold"], point["eer"]) == (threshold, pytest.approx(rate, abs=1e-3))
    assert point["measured_on"] == "a"
    assert "by_list" not in point
    assert point["false_accepts_interval"][0] < point["false_accepts"] < point["false_accepts_interval"][1]
    assert set(stored["operating_points"]) | set(stored["operating_points_refused"]) == {
        "convenience",
        "balanced",
        "secure",
    }
    (apart_,) = stored["calibration"]["held_out"]
    assert (apart_["speakers"], apart_["trials"]) == (40, len(pool.labels))
    assert stored["calibration"]["cllr"] < apart_["cllr"] < 1.15 * apart_["min_cllr"]


def test_one_threshold_for_lists_of_different_levels_is_shown_list_by_list() -> None:
    point = fitted(pooled([drawn(20, 5, name="a"), drawn(20, 5, shift=0.3, seed=1, name="b")]), draws=5)[0][
        "operating_points"
    ]
    by = point["balanced"]["by_list"]
    assert by["b"]["false_accepts"] > 3 * by["a"]["false_accepts"]
    assert by["a"]["misses"] > 3 * by["b"]["misses"]


def test_side_information_gives_points_in_llrs_and_lower_costs() -> None:
    plain = pooled([drawn(20, 4)])
    length = np.random.default_rng(2).normal(0, 1, len(plain.labels))
    moved = Pool(plain.scores + 0.2 * length, *_rest(plain), {"log_net_speech": length})
    how: dict[str, Any] = {"method": "affine", "draws": 5}
    with_it, without = fitted(moved, **how)[0], fitted(Pool(moved.scores, *_rest(plain), {}), **how)[0]
    assert with_it["calibration"]["cllr"] < 0.9 * without["calibration"]["cllr"]
    assert with_it["calibration"]["weights"]["log_net_speech"] < 0
    point, found = with_it["operating_points"]["balanced"], from_dict(with_it["calibration"])
    assert found.scale * point["threshold"] + found.offset + found.weights["log_net_speech"] * length.mean() == (
        pytest.approx(point["llr"])
    )


def _rest(pool: Pool) -> tuple[Any, ...]:
    return pool.labels, pool.enrol_speaker, pool.test_speaker, pool.of, pool.lists


def test_too_few_speakers_to_leave_some_out_are_told_by_an_empty_row() -> None:
    assert crossed(pooled([drawn(2)])) == []


def test_evaluation_takes_the_calibration_only_where_it_fits() -> None:
    affine_only = SimpleNamespace(
        id="m", metadata={"calibration": fitted(pooled([drawn(8)]), method="affine")[0]["calibration"]}
    )
    assert stored_llrs(affine_only, Scoring()) is not None
    assert stored_llrs(affine_only, Scoring(way="segments")) is None
    affine_only.metadata["calibration"]["weights"] = {"snr": 0.1}
    assert stored_llrs(affine_only, Scoring()) is None
    assert stored_llrs(SimpleNamespace(id="m", metadata={}), Scoring()) is None


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of eight voices of the demo corpus, three recordings in each."""
    root = tmp_path_factory.mktemp("mine")
    for voice in sorted(path for path in DEMO.iterdir() if path.is_dir())[:8]:
        (root / voice.name).mkdir()
        for path in sorted(voice.glob("*.ogg"))[:3]:
            (root / voice.name / path.name).write_bytes(path.read_bytes())
    return root


def test_the_command_from_recordings_to_a_verdict(recordings: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.onnx"
    done = CliRunner().invoke(cli.main, ["calibrate", "--data", str(recordings), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["calibration"]["targets"], report["calibration"]["nontargets"]) == (24, 252)
    assert "fewer than 30" in report["operating_points_refused"]["secure"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.onnx"]
    before, after = load(SHIPPED), load(out, check=True)
    assert after.metadata["weights_sha256"] == before.metadata["weights_sha256"]
    voices = sorted(path for path in recordings.iterdir())
    found = verify(after, *sorted(voices[0].iterdir())[:2], point="bayes")
    assert found.llr == pytest.approx(from_dict(after.metadata["calibration"])(found.score).item(), abs=1e-5)
    assert found.accepted == (found.probability > 0.5)
    stored = after.metadata["calibration"]
    assert (stored["method"], stored["stiffness"]) == ("spline", STIFFNESS)
    assert stored["held_out"][0]["support"]["0.01"]["few"]
    told = CliRunner().invoke(cli.main, ["calibrate", str(out), "--data", str(recordings), "--out", str(out)])
    assert told.exit_code == 0, told.stderr
    assert "before: Cllr" in told.stdout
    assert "on speakers left out: Cllr" in told.stdout
    assert "few errors at prior 0.01" in told.stdout
    assert "refused: secure" in told.stdout
    beside = ["--measures", "snr", "--json", "--out", str(out)]
    done = CliRunner().invoke(cli.main, ["calibrate", "--data", str(recordings), *beside])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["calibration"]["method"] == "affine"


def test_calibrating_needs_neither_torch_nor_onnx() -> None:
    code = "import sottovoce.lab.calibrate, sys; print({'torch', 'onnx'} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SHIPPED.parents[2]
    )
    assert found.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("settings_", "error", "message"),
    [
        ({"data": None}, BadInput, "one of the two"),
        ({"trials": ["list.txt"], "audio": "root"}, BadInput, "one of the two"),
        ({"method": "guess"}, BadInput, "spline, shrunk, affine, isotonic"),
        ({"measures": ["mood"]}, BadInput, "log_net_speech"),
        ({"measures": ["snr"], "method": "isotonic"}, BadInput, "affine"),
        ({"prior": 0.0}, BadInput, "prior"),
        ({"out": "nowhere/m.onnx"}, BadInput, "does not exist"),
        ({"data": "one"}, BadList, "two speakers or more"),
        ({"data": "flat"}, BadList, "has no speaker"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings_: dict[str, Any], error: type[Exception], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sottovoce.lab.calibrate.load", lambda *_: pytest.fail("loaded"))
    for name in ("one/anna/1.wav", "one/bert/2.wav", "flat/1.wav", "flat/2.wav"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")
    with pytest.raises(error, match=message):
        calibrate(None, **{"out": "m.onnx", "data": "one", **settings_})
