"""Labels, folds and the probe itself: on embeddings that know a label, and on some that know nothing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sottovoce.errors import BadInput, BadList
from sottovoce.lab import probe as probes
from sottovoce.lab.labels import Labelled, LabelSpec, check_folds, folds_of, labelled
from sottovoce.lab.probe import Probe, accuracies, chosen_labels, predict, probe

FAST = Probe(hidden=32, steps=200, rate=1e-2, folds=4)


def write(path: Path, rows: list[str], head: str = "path\tspeaker\tgender\tage") -> Path:
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """16 speakers with 3 recordings each, half of them F; ages 10 to 25; one recording without labels."""
    rows = [
        f"set{speaker % 2}/s{speaker}/{take}.wav\ts{speaker}\t{'FM'[speaker % 2]}\t{10 + speaker}"
        for speaker in range(16)
        for take in range(3)
    ]
    return write(tmp_path / "dev.tsv", [*rows, "set0/s0/9.wav\ts0\t\t"])


def table(speakers: list[str], values: list[str]) -> Labelled:
    paths = tuple(f"{index}.wav" for index in range(len(values)))
    return Labelled("label", paths, tuple(speakers), tuple(values), 0, "m.tsv", None)


# ---- labels


def test_a_column_is_a_label(manifest: Path) -> None:
    found = labelled(manifest, LabelSpec("gender"))
    assert found.classes == ["F", "M"]
    assert found.unlabelled == 1
    assert found.classes_of.tolist() == [speaker % 2 for speaker in range(16) for _ in range(3)]
    assert found.speakers_of_class() == {"F": 8, "M": 8}


def test_numbers_are_put_in_bins_by_their_edges(manifest: Path) -> None:
    found = labelled(manifest, LabelSpec("age", (13, 20)))
    assert found.classes == ["below 13", "13 to below 20", "20 up"]
    assert found.speakers_of_class() == {"below 13": 3, "13 to below 20": 7, "20 up": 6}


def test_bins_stand_in_the_order_of_numbers(tmp_path: Path) -> None:
    rows = [f"{age}.wav\ts\tF\t{age}" for age in (5, 9, 12, 30, 100)]
    found = labelled(write(tmp_path / "m.tsv", rows), LabelSpec("age", (7, 10, 20, 50)))
    assert found.classes == ["below 7", "7 to below 10", "10 to below 20", "20 to below 50", "50 up"]


def test_a_part_of_the_path_is_a_label(manifest: Path) -> None:
    found = labelled(manifest, LabelSpec("corpus", part=1))
    assert (found.classes, found.unlabelled) == (["set0", "set1"], 0)


def test_scenes_of_a_table_without_speakers_are_kept_apart_by_another_column(tmp_path: Path) -> None:
    """The layout of TAU Urban Acoustic Scenes: filename, scene_label, identifier."""
    rows = [f"audio/{i}.wav\t{'park' if i % 2 else 'bus'}\tcity-{i}" for i in range(8)]
    path = write(tmp_path / "meta.csv", rows, "filename\tscene_label\tidentifier")
    found = labelled(path, LabelSpec("scene_label"), speaker_column="identifier")
    assert found.classes == ["bus", "park"]
    assert len(set(found.speakers)) == 8
    with pytest.raises(BadList, match="--speaker-column"):
        labelled(path, LabelSpec("scene_label"))


@pytest.mark.parametrize(
    ("spec", "error", "told"),
    [
        (LabelSpec("gendr"), BadList, "did you mean 'gender'"),
        (LabelSpec("age"), BadInput, "16 values, all numbers.*--bins age"),
        (LabelSpec("gender", (1.0,)), BadInput, "'F', not a number"),
        (LabelSpec("corpus", part=7), BadInput, "has no part 7"),
        (LabelSpec("corpus", part=0), BadInput, "has no part 0"),
    ],
)
def test_what_is_no_label_is_refused(manifest: Path, spec: LabelSpec, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        labelled(manifest, spec)


def test_a_recording_named_twice_and_an_empty_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadList, match="there twice"):
        labelled(write(tmp_path / "a.tsv", ["x.wav\ta\tF\t1", "x.wav\ta\tM\t1"]), LabelSpec("gender"))
    with pytest.raises(BadList, match="no recording has a 'gender'"):
        labelled(write(tmp_path / "b.tsv", ["x.wav\ta\t\t1"]), LabelSpec("gender"))


def test_options_belong_to_labels() -> None:
    found = chosen_labels(["age", "corpus"], {"age": [18.0]}, {"corpus": 2})
    assert found == [LabelSpec("age", (18.0,)), LabelSpec("corpus", part=2)]
    with pytest.raises(BadInput, match="add --labels agee"):
        chosen_labels(["age"], {"agee": [18.0]}, {})
    with pytest.raises(BadInput, match="at least one label"):
        chosen_labels([], {}, {})


# ---- folds


def test_a_class_of_too_few_speakers_is_refused_or_left_out() -> None:
    speakers = [f"s{index}" for index in range(9)]
    values = ["F"] * 4 + ["M"] * 4 + ["other"]
    with pytest.raises(BadInput, match="class 'other' has 1 speakers, 4 folds need 4"):
        check_folds(table(speakers, values), 4)
    kept = check_folds(table(speakers, values), 4, drop_small=True)
    assert (kept.classes, kept.dropped, len(kept.paths)) == (["F", "M"], ("other",), 8)
    with pytest.raises(BadInput, match="a probe needs two"):
        check_folds(table(speakers, ["F"] * 8 + ["M"]), 4, drop_small=True)
    with pytest.raises(BadInput, match="2 or more"):
        check_folds(table(speakers, values), 1)


def test_folds_that_stay_empty_are_refused() -> None:
    with pytest.raises(BadInput, match="do not fill 3 folds"):
        folds_of(table(["a", "a", "b", "b"], ["x", "y", "x", "y"]), 3)
    with pytest.raises(BadInput, match="'x' would be in one fold alone"):
        folds_of(table(["a", "b", "c"], ["x", "y", "y"]), 2)


def check_invariants(found: Labelled, place: np.ndarray, folds: int) -> None:
    assert set(place) == set(range(folds))
    for speaker in set(found.speakers):
        assert len({int(fold) for fold, who in zip(place, found.speakers, strict=True) if who == speaker}) == 1
    for fold in range(folds):
        assert {value for value, at in zip(found.values, place, strict=True) if at != fold} == set(found.values)


rows_of_speakers = st.lists(st.tuples(st.integers(0, 14), st.sampled_from("abc")), min_size=8, max_size=80)


@settings(deadline=None, max_examples=30)
@given(rows_of_speakers, st.integers(2, 4), st.integers(0, 9))
def test_speakers_of_one_class_each_always_fill_the_folds(rows: list[tuple[int, str]], folds: int, seed: int) -> None:
    found = table([f"{value}{speaker}" for speaker, value in rows], [value for _, value in rows])
    assume(len(found.classes) > 1 and min(found.speakers_of_class().values()) >= folds)
    place = folds_of(found, folds, seed)
    check_invariants(found, place, folds)
    assert np.array_equal(place, folds_of(found, folds, seed))
    for value in found.classes:  # every fold tests every class
        assert {int(fold) for fold, one in zip(place, found.values, strict=True) if one == value} == set(range(folds))


@settings(deadline=None, max_examples=30)
@given(rows_of_speakers, st.integers(2, 3), st.integers(0, 9))
def test_speakers_of_several_classes_are_kept_apart_too(rows: list[tuple[int, str]], folds: int, seed: int) -> None:
    found = table([f"s{speaker}" for speaker, _ in rows], [value for _, value in rows])
    assume(min(found.speakers_of_class().values()) > folds)
    check_invariants(found, folds_of(found, folds, seed), folds)


def test_classes_are_spread_over_folds() -> None:
    found = table([f"s{index}" for index in range(20)], ["rare"] * 4 + ["common"] * 16)
    place = folds_of(found, 4)
    assert np.bincount(place[:4]).tolist() == [1] * 4
    assert np.bincount(place[4:]).tolist() == [4] * 4


# ---- the classifier


def ring(seed: int, speakers: int = 24, takes: int = 6) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Embeddings (n, 8) whose class is whether two coordinates agree in sign, which no plane can tell; speakers."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(speakers * takes, 8)).astype(np.float32)
    sign = np.repeat(np.arange(speakers) % 2, takes)
    x[:, 0] = np.abs(x[:, 0]) + 0.5
    x[:, 1] = np.where(sign == 1, 1, -1) * (np.abs(x[:, 1]) + 0.5)
    flip = rng.random(len(x)) < 0.5
    x[flip, :2] *= -1
    return x, sign, [f"s{index}" for index in range(speakers) for _ in range(takes)]


def test_two_layers_learn_what_a_plane_cannot() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    x, y, speakers = ring(0, takes=20)
    folds = folds_of(table(speakers, [str(value) for value in y]), 4)
    found = predict(x, y, folds, Probe(hidden=32, folds=4))
    plane = [
        linear.LogisticRegression().fit(x[folds != fold], y[folds != fold]).score(x[folds == fold], y[folds == fold])
        for fold in range(4)
    ]
    assert (found == y).mean() > 0.9
    assert np.mean(plane) < 0.65


def test_one_seed_gives_the_same_twice_and_leaves_the_generator_alone() -> None:
    torch = pytest.importorskip("torch")
    x, y, speakers = ring(1, 8, 3)
    folds = folds_of(table(speakers, [str(value) for value in y]), 4)
    torch.manual_seed(5)
    first = predict(x, y, folds, FAST)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert np.array_equal(first, predict(x, y, folds, FAST))


def test_a_label_of_the_speaker_that_embeddings_do_not_hold_stays_at_chance() -> None:
    """A leak between folds would show: each speaker has a place of its own, its label is drawn."""
    rng = np.random.default_rng(3)
    centres = np.repeat(rng.normal(size=(40, 8)), 5, axis=0)
    x = (centres + 0.05 * rng.normal(size=centres.shape)).astype(np.float32)
    y = np.repeat(rng.permutation(np.arange(40) % 2), 5)
    speakers = [f"s{index}" for index in range(40) for _ in range(5)]
    folds = folds_of(table(speakers, [str(value) for value in y]), 4)
    assert 0.2 < (predict(x, y, folds, FAST) == y).mean() < 0.8
    mixed = np.tile(np.arange(5), 40) % 4
    assert (predict(x, y, mixed, FAST) == y).mean() > 0.95


def test_accuracies_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 3, size=(2, 60))
    found = accuracies(predicted == truth, truth)
    assert found[0] == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert found[1] == pytest.approx(metrics.balanced_accuracy_score(truth, predicted))


# ---- files


@pytest.fixture
def models(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """good knows the gender from the name of the set, bad knows nothing; what they were asked is counted."""
    calls = {"good": 0, "bad": 0}

    def load(path: Path, engine: str) -> SimpleNamespace:
        return SimpleNamespace(path=path, name=Path(path).stem, id="x", dim=4, metadata={"plan": "*=kmeans2"})

    def embed_files(model, paths, workers, quiet):
        calls[model.name] += len(paths)
        rng = np.random.default_rng(len(paths))
        rows = rng.normal(size=(len(paths), 4)).astype(np.float32)
        if model.name == "good":
            rows[:, 0] += [3.0 if "/set1/" in path else -3.0 for path in paths]
        lost = [path for path in paths if path.endswith("s3/2.wav")]
        kept = [index for index, path in enumerate(paths) if path not in lost]
        return [paths[index] for index in kept], rows[kept], [{"path": path, "error": "TooShort: x"} for path in lost]

    monkeypatch.setattr(probes, "load", load)
    monkeypatch.setattr(probes, "embed_files", embed_files)
    monkeypatch.setattr(probes, "describe_model", lambda model: {"model": model.name, "bits": 2.0})
    return calls


def test_files_are_probed_on_the_same_folds(manifest: Path, models: dict[str, int], tmp_path: Path) -> None:
    labels, out = [LabelSpec("gender"), LabelSpec("age", (18,))], tmp_path / "probe.json"
    report = probe(["good", "bad"], manifest, labels, settings=FAST, draws=100, out=out, quiet=True)
    good, bad = (model["probes"][0] for model in report["models"])
    assert good["accuracy"] > 0.95
    assert 0.2 < bad["accuracy"] < 0.8
    assert good["balanced_change"] == 0.0
    assert good["balanced_change_interval"] == [0.0, 0.0]
    assert bad["balanced_change"] == pytest.approx(bad["balanced_accuracy"] - good["balanced_accuracy"])
    assert bad["balanced_change_interval"][1] < 0
    low, high = bad["accuracy_interval"]
    assert low < bad["accuracy"] < high
    assert np.sum(bad["confusion"]) == 47 == sum(fold["recordings"] for fold in bad["folds"])
    assert np.trace(bad["confusion"]) / 47 == pytest.approx(bad["accuracy"])
    assert report["excluded"] == [{"path": "set1/s3/2.wav", "error": "TooShort: x"}]
    assert report["labels"][0]["chance_accuracy"] == pytest.approx(24 / 47)
    assert models == {"good": 48, "bad": 48}
    assert json.loads(out.read_text()) == json.loads(json.dumps(report, allow_nan=False))


def test_folds_that_no_order_fills_are_refused_before_embedding(tmp_path: Path, models: dict[str, int]) -> None:
    """Three speakers with two of three classes each: of two folds one has two speakers, who share a class."""
    rows = [f"{who}{kind}.wav\ts{who}\t{kind}" for who in range(3) for kind in range(3) if who != kind]
    path = write(tmp_path / "odd.tsv", rows, "path\tspeaker\temotion")
    with pytest.raises(BadInput, match="would be in one fold alone"):
        probe(["good"], path, [LabelSpec("emotion")], settings=Probe(folds=2), quiet=True)
    assert models == {"good": 0, "bad": 0}


def test_labels_that_cannot_be_probed_are_refused_before_embedding(manifest: Path, models: dict[str, int]) -> None:
    for labels, told in (([LabelSpec("age", (12,))], "has 2 speakers, 4 folds"), ([LabelSpec("sex")], "no column")):
        with pytest.raises((BadInput, BadList), match=told):
            probe(["good"], manifest, labels, settings=FAST, quiet=True)
    assert models == {"good": 0, "bad": 0}
