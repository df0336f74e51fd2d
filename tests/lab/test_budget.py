"""Budgets: what is asked for is what the file weighs; impossible ones are refused before anything is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sottovoce import networks, quant
from sottovoce.bits.formats import WIDTHS
from sottovoce.bits.plan import Plan, Spec
from sottovoce.errors import BadInput, BadPlan
from sottovoce.lab import budget as budgets
from sottovoce.lab import checkpoint, damage
from sottovoce.lab import desk as desks
from sottovoce.lab.budget import allocate, choices, compress_within
from sottovoce.lab.desk import Desk, look_up_bytes, narrowest
from sottovoce.lab.limits import Loss, parse_loss, parse_size
from sottovoce.lab.subject import Trained
from sottovoce.quant.sensitivity import squared_errors

NETWORK = {"kind": "resnet", "blocks": [1, 1], "width": 8, "dim": 16}


@pytest.fixture(scope="module")
def float_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = networks.build(**NETWORK)
    path = tmp_path_factory.mktemp("models") / "float.safetensors"
    checkpoint.save(path, network.eval(), {"network": NETWORK, "front_end": "wespeaker", "plan": "", "licence": "none"})
    return path


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "DRAWS", 2)


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is built to learn its size."""
    monkeypatch.setattr(desks.Desk, "file_bytes", lambda self, plan: 10**6)


@pytest.fixture
def trials(tmp_path: Path) -> Path:
    names = [f"speech/s{speaker}/{take}.wav" for speaker in range(3) for take in range(2)]
    lines = [f"{int(a[:9] == b[:9])} {a} {b}" for a in names for b in names if a < b]
    path = tmp_path / "trials.txt"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500kB", 500_000),
        ("3MB", 3_000_000),
        ("1.5 MiB", 1_572_864),
        ("2000", 2000),
        ("12 B", 12),
        ("1gib", 2**30),
        (" 0.5KIB ", 512),
        ("1.0009kB", 1000),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("3M", "did you mean"),
        ("3 mbit", "did you mean"),
        ("-3MB", "cannot be read"),
        ("", "kB"),
        ("1e6", "cannot be read"),
    ],
)
def test_other_sizes_are_not(text: str, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        parse_size(text)


def test_a_loss_is_relative_or_absolute() -> None:
    assert parse_loss("2%") == Loss(0.02, relative=True)
    assert parse_loss("+0.1") == Loss(0.001, relative=False)
    assert parse_loss("2%").allows(0.0510, 0.05)
    assert not parse_loss("2%").allows(0.0511, 0.05)
    assert parse_loss("0.1").allows(0.0510, 0.05)
    assert not parse_loss("0.1").allows(0.0511, 0.05)
    with pytest.raises(BadInput, match="relative"):
        parse_loss("two")


@pytest.mark.parametrize("lowest", range(29))
def test_the_narrowest_rung_that_passes_is_found_in_few_trials(lowest: int) -> None:
    tried: list[float] = []

    def passes(rung: float) -> bool:
        tried.append(rung)
        return rung >= lowest

    assert narrowest(range(29), passes) == lowest
    assert len(tried) <= 6
    assert len(set(tried)) == len(tried)
    assert narrowest(range(29), lambda rung: False) is None


def test_widths_become_specs() -> None:
    assert choices("kmeans", [8, 2, 2]) == {2: Spec("kmeans2"), 8: Spec("uniform8")}
    assert choices("uniform", WIDTHS) == {width: Spec(f"uniform{width}") for width in WIDTHS}
    assert choices("kmeans/codebook", [4, 8]) == {4: Spec("kmeans4", "codebook"), 8: Spec("uniform8")}


@pytest.mark.parametrize(
    ("family", "widths", "told"),
    [
        ("kmean", [4], "did you mean 'kmeans'"),
        ("kmeans", [5], "the nearest width is 4"),
        ("ternary", [4, 3], "the nearest width is"),
        ("kmeans", [], "no widths"),
        ("kmeans/chanel", [4], "did you mean 'channel'"),
    ],
)
def test_other_widths_and_families_are_refused(family: str, widths: list[int], told: str) -> None:
    with pytest.raises(BadPlan, match=told):
        choices(family, widths)


@pytest.mark.parametrize("sensitivity", ["weights", "drift", "hessian"])
def test_bits_per_weight_are_kept_and_used(float_file: Path, corpus: Path, tmp_path: Path, sensitivity: str) -> None:
    report = allocate(
        float_file,
        bits_per_weight=3.0,
        data=corpus / "speech",
        sensitivity=sensitivity,
        utterances=2,
        widths=(2, 4),
        out=tmp_path / "plan.txt",
    )
    assert 2.0 < report["bits_per_weight"] <= 3.0
    shapes = quant.quantizable(checkpoint.load(float_file).network)
    specs = Plan.parse((tmp_path / "plan.txt").read_text()).resolve(shapes)
    assert {name: str(spec) for name, spec in specs.items()} == {row["name"]: row["spec"] for row in report["layers"]}
    assert set(specs.values()) == {Spec("kmeans2"), Spec("kmeans4")}
    assert report["predicted_damage"] == pytest.approx(sum(row["damage"] for row in report["layers"]))
    assert report["stored_bytes"] == sum(row["bytes"] for row in report["layers"]) < report["file_bytes"]


def test_the_file_is_within_the_size_and_near_it(float_file: Path, tmp_path: Path) -> None:
    largest = allocate(float_file, bits_per_weight=8.0, sensitivity="weights")["file_bytes"]
    least = allocate(float_file, bits_per_weight=1.0, sensitivity="weights")["file_bytes"]
    asked = (largest + least) // 2
    report = compress_within(
        float_file, out=tmp_path / "m.onnx", size=f"{asked}B", allocation={"sensitivity": "weights"}
    )
    assert report["bytes"] == (tmp_path / "m.onnx").stat().st_size
    assert report["bytes"] <= asked
    assert 0 <= report["allocation"]["file_bytes"] - report["bytes"] < 2 * desks.SPARE
    assert report["allocation"]["stored_bytes"] < report["bytes"]
    assert report["plan"] == report["allocation"]["plan"]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.fixture(scope="module")
def desk(float_file: Path) -> Desk:
    """The float network with the squared errors of its weights as damage."""
    desk = Desk(Trained(float_file), choices("kmeans", WIDTHS))
    errors = squared_errors(desk.subject.network, list(desk.specs.values()))
    desk.learn({layer: {str(spec): value for spec, value in row.items()} for layer, row in errors.items()}, {})
    return desk


def test_no_better_plan_fits_the_same_file(desk: Desk) -> None:
    """All plans by brute force: look-ups and the tables of the widths in use against the room."""
    single, tables = look_up_bytes(desk.shapes, list(desk.specs.values()))
    picks = np.indices((len(desk.specs),) * len(desk.shapes)).reshape(len(desk.shapes), -1)
    used = np.array([(picks == width).any(axis=0) for width in range(len(desk.specs))])
    size = sum(single[row, pick] for row, pick in enumerate(picks)) + tables @ used
    total = sum(desk.damage[row, pick] for row, pick in enumerate(picks))
    for room in (int(size.min()), 8000, 14000, int(size.max())):
        found = desk._fit_room(room, single, tables, "dp")
        assert found is not None
        assert found.damage == pytest.approx(total[size <= room].min())
    assert desk._fit_room(int(size.min()) - 1, single, tables, "dp") is None


def test_look_ups_are_foreseen_to_the_byte_but_for_names(desk: Desk) -> None:
    """Files of other widths differ by what is foreseen; a few bytes go to the names of tensors and the plan's text."""
    single, tables = look_up_bytes(desk.shapes, list(desk.specs.values()))
    rows = np.arange(len(desk.shapes))
    beside = [
        desk.file_bytes(desk.plan(picks)) - single[rows, picks].sum() - tables[sorted(set(picks))].sum()
        for picks in ([0] * 7, [2] * 7, [0, 1, 2, 3, 4, 3, 2])
    ]
    assert max(beside) - min(beside) < 1000


def test_a_file_above_the_size_is_made_again(float_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressor that writes 300 bytes more than was foreseen."""
    asked: list[str] = []
    found: dict[str, Any] = {"plan": "*=kmeans2", "damage_by_layer": {}, "predicted_damage": 0.5}
    report: dict[str, Any] = {"wide_layers": [], "damage": {"drift": 0.1}}
    monkeypatch.setattr(budgets, "allocate", lambda *_, size, **__: asked.append(size) or found)
    monkeypatch.setattr(budgets, "compress", lambda *_, **__: {**report, "bytes": int(asked[-1]) + 300})
    made = compress_within(float_file, out=tmp_path / "m.onnx", size="50kB", allocation={})
    assert asked == ["50000", "49700"]
    assert made["bytes"] == 50_000
    assert made["damage"] == {"drift": 0.1, "predicted": 0.5}
    monkeypatch.setattr(budgets, "compress", lambda *_, **__: {"bytes": 60_000})
    with pytest.raises(BadPlan, match="no file within 50,000 bytes"):
        compress_within(float_file, out=tmp_path / "m.onnx", size="50kB", allocation={})


def test_eer_budgets_count_their_evaluations(
    float_file: Path, corpus: Path, trials: Path, monkeypatch: pytest.MonkeyPatch, unbuilt: None
) -> None:
    """EER that rises below 2.6 bits a weight, as a stand-in measures it."""
    rates = iter(range(100))
    state: dict[str, Any] = {"bits": 32.0}

    def compress(*_: Any, plan: str, out: Path, **__: Any) -> None:
        shapes = quant.quantizable(checkpoint.load(float_file).network)
        count = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
        specs = Plan.parse(plan).resolve(shapes)
        state["bits"] = sum(count[name] * int(spec.format[-1]) for name, spec in specs.items()) / sum(count.values())
        next(rates)

    monkeypatch.setattr(desks, "compress", compress)
    monkeypatch.setattr(desks, "_mean_eer", lambda *_: 0.05 if state["bits"] >= 2.6 else 0.06)
    asked = {"sensitivity": "weights", "trials": [trials], "audio": corpus}
    report = allocate(float_file, max_eer_loss="2%", **asked)
    assert report["float_eer"] == 0.05
    assert report["evaluations"] == len(report["tried"]) + 1 <= 7
    assert 2.6 <= report["bits_per_weight"] <= 2.75
    with pytest.raises(BadPlan, match=r"20\.00 % relative; allow at least that"):
        allocate(float_file, max_eer_loss="2%", widths=(1, 2), **asked)


def test_damage_by_eer_is_measured_on_trials(float_file: Path, corpus: Path, trials: Path, unbuilt: None) -> None:
    report = allocate(float_file, bits_per_weight=2.0, sensitivity="eer", widths=(1, 8), trials=[trials], audio=corpus)
    assert all(-1.0 <= row["damage"] <= 1.0 for row in report["layers"])
    assert report["bits_per_weight"] <= 2.0


@pytest.mark.parametrize(
    ("asked", "error", "told"),
    [
        ({}, BadInput, "give one budget"),
        ({"size": "3MB", "bits_per_weight": 3.0}, BadInput, "give one budget"),
        ({"size": "1kB"}, BadPlan, "least possible is"),
        ({"size": "1GB"}, BadPlan, "the most that can be used is"),
        ({"bits_per_weight": 0.5}, BadPlan, "nearest possible average is 1"),
        ({"bits_per_weight": 9.0}, BadPlan, "nearest possible average is 8"),
        ({"bits_per_weight": 3.0, "widths": (4, 8)}, BadPlan, "nearest possible average is 4"),
        ({"bits_per_weight": 3.0, "sensitivity": "hesian"}, BadInput, "did you mean 'hessian'"),
        ({"bits_per_weight": 3.0, "search": "greedy"}, BadInput, "is unknown; did you mean"),
        ({"bits_per_weight": 3.0, "data": "/nowhere"}, BadInput, "--data"),
        ({"bits_per_weight": 3.0, "sensitivity": "eer"}, BadInput, "--trials"),
        ({"max_eer_loss": "2%"}, BadInput, "--trials"),
        ({"bits_per_weight": 3.0, "out": "/nowhere/plan.txt"}, BadInput, "does not exist"),
    ],
)
def test_refused_before_anything_is_measured(
    float_file: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, asked: dict, error: type, told: str
) -> None:
    monkeypatch.setattr(budgets, "measure_damage", lambda *_: pytest.fail("was measured"))
    with pytest.raises(error, match=told):
        allocate(float_file, **{"data": corpus, **asked})


def test_a_quantized_checkpoint_is_refused(float_file: Path, tmp_path: Path) -> None:
    loaded = checkpoint.load(float_file)
    quant.attach(loaded.network, Plan.parse("*=kmeans2"))
    path = tmp_path / "q.safetensors"
    checkpoint.save(path, loaded.network, {**loaded.about, "plan": str(Plan.parse("*=kmeans2"))})
    with pytest.raises(BadInput, match="starts from a float network"):
        allocate(path, bits_per_weight=3.0, sensitivity="weights")


def test_a_stopped_measurement_goes_on(
    float_file: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbuilt: None
) -> None:
    cache = tmp_path / "table.json"
    asked: dict[str, Any] = {"sensitivity": "drift", "bits_per_weight": 3.0, "data": corpus, "cache": cache}
    asked |= {"utterances": 2, "widths": (2, 4)}
    real, calls = damage.sensitivity.measured, []

    def stops(network: Any, plan: Plan, measure: Any) -> float:
        calls.append(str(plan))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(network, plan, measure)

    monkeypatch.setattr(damage.sensitivity, "measured", stops)
    with pytest.raises(KeyboardInterrupt):
        allocate(float_file, **asked)
    assert sum(map(len, json.loads(cache.read_text())["values"].values())) == 3
    report = allocate(float_file, **asked)
    layers = len(report["layers"])
    assert len(calls) == 2 * layers + 1
    assert len(set(calls)) == 2 * layers  # only the one that was interrupted is measured twice
    assert allocate(float_file, **asked) == report
    assert len(calls) == 2 * layers + 1
    allocate(float_file, **{**asked, "widths": (2, 3, 4)})
    assert len(calls) == 3 * layers + 1
    allocate(float_file, **{**asked, "seed": 1})  # other recordings: nothing known holds
    assert len(calls) == 5 * layers + 1
    cache.write_text('{"settings": ')
    allocate(float_file, **asked)
    assert len(calls) == 7 * layers + 1


def test_the_training_loss_needs_its_classifier_and_manifest(
    float_file: Path, corpus: Path, tmp_path: Path, unbuilt: None
) -> None:
    path = tmp_path / "float.safetensors"
    path.write_bytes(float_file.read_bytes())
    asked = {"bits_per_weight": 3.0, "sensitivity": "training-loss", "utterances": 4, "widths": (2, 4)}
    with pytest.raises(BadInput, match="no such classifier"):
        allocate(path, data=corpus / "train.tsv", **asked)
    checkpoint.save_tensors(tmp_path / damage.HEAD, {"weight": torch.randn(12, 16)}, {"head": "aam"})
    report = allocate(path, data=corpus / "train.tsv", search="sections", **asked)
    assert report["bits_per_weight"] <= 3.0
    checkpoint.save_tensors(tmp_path / damage.HEAD, {"weight": torch.randn(7, 16)}, {"head": "aam"})
    with pytest.raises(BadInput, match="6 speakers"):
        allocate(path, data=corpus / "train.tsv", **asked)
