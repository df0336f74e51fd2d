"""The commands drift, analyze and probe: end to end on the demo corpus, and what they say of bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sottovoce import cli
from sottovoce.runtime.engine import SHIPPED

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "demo" / "corpus"
TRAINED = ROOT / "models" / "ecapa256-2bit.onnx"
VOICES = ("synthetic01", "synthetic02", "synthetic03", "synthetic04")


def sotto(*args: Any) -> Result:
    return CliRunner().invoke(cli.main, [str(arg) for arg in args], prog_name="sotto")


@pytest.fixture
def trials(tmp_path: Path) -> Path:
    names = [f"{voice}/0{take}.ogg" for voice in VOICES for take in (1, 2)]
    path = tmp_path / "trials.txt"
    path.write_text("\n".join(f"{int(a[:11] == b[:11])} {a} {b}" for a in names for b in names if a < b))
    return path


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows = [f"{voice}/0{take}.ogg\t{voice}\t{'ab'[index % 2]}" for index, voice in enumerate(VOICES) for take in (1, 2)]
    path = tmp_path / "dev.tsv"
    path.write_text("\n".join(["path\tspeaker\tkind", *rows]))
    return path


def test_drift_between_two_real_files(trials: Path, tmp_path: Path) -> None:
    out = tmp_path / "drift.json"
    done = sotto(
        "drift", SHIPPED, TRAINED, "--trials", trials, "--audio", CORPUS, "--draws", 20, "--out", out, "--json"
    )
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads(out.read_text())
    (one,) = report["lists"]
    assert (one["trials"], one["targets"], one["speakers"]) == (28, 4, 4)
    assert 0.9 < one["models"][1]["full"]["correlation"] < 1
    assert one["models"][1]["full"]["mean_abs"] > 0
    assert [model["bits"] for model in report["models"]] == [4.0, 2.0]


def test_drift_as_text(trials: Path) -> None:
    done = sotto("drift", SHIPPED, SHIPPED, "--trials", trials, "--audio", CORPUS, "--draws", 0)
    assert done.exit_code == 0, done.stderr
    assert "harmful near %" in done.stdout
    assert "mean |drift| 0.0000, harmful flips 0, beneficial 0" in done.stdout


def test_probe_of_a_real_file(manifest: Path) -> None:
    common = ("probe", TRAINED, "--manifest", manifest, "--labels", "kind", "--audio", CORPUS, "--steps", 20)
    done = sotto(*common, "--folds", 2, "--draws", 20, "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["labels"][0]["speakers"] == 4
    assert 0 <= report["models"][0]["probes"][0]["accuracy"] <= 1
    refused = sotto(*common, "--folds", 3)
    assert refused.exit_code == 2
    assert "class 'a' has 2 speakers, 3 folds need 3" in refused.stderr
    assert refused.stdout == ""


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("drift", SHIPPED, TRAINED, "--trials", "TRIALS", "--edges", "0.1,x"), "--edges '0.1,x' cannot be read"),
        (("drift", SHIPPED, "--trials", "TRIALS"), "at least one other"),
        (("drift", SHIPPED, TRAINED, "--trials", "none.txt"), "no such file"),
        (("probe", SHIPPED, "--manifest", "MANIFEST", "--labels", "kind", "--bins", "kind"), "write NAME=VALUE"),
        (("probe", SHIPPED, "--manifest", "MANIFEST", "--labels", "kind", "--path-part", "kind=x"), "whole number"),
        (("probe", SHIPPED, "--manifest", "MANIFEST", "--labels", "kin"), "did you mean 'kind'"),
        (("analyze", ROOT / "models/ecapa256.safetensors", "--data", CORPUS), "one of the two"),
    ],
)
def test_bad_input_is_one_line(trials: Path, manifest: Path, args: tuple[Any, ...], told: str) -> None:
    places = {"TRIALS": trials, "MANIFEST": manifest}
    more = () if args[0] == "analyze" else ("--audio", CORPUS)
    done = sotto(*(places.get(str(arg), arg) for arg in args), *more)
    assert done.exit_code == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_analyze_as_text(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from sottovoce import networks
    from sottovoce.lab import checkpoint

    torch.manual_seed(0)
    about = {"kind": "resnet", "blocks": [1], "width": 4, "dim": 8}
    path = tmp_path / "float.safetensors"
    checkpoint.save(path, networks.build(**about), {"network": about, "front_end": "wespeaker", "plan": ""})
    done = sotto("analyze", path, "--plan", "conv1=float; *=kmeans2", "--data", CORPUS, "--utterances", 2)
    assert done.exit_code == 0, done.stderr
    for told in ("kurtosis", "kept in float", "float already", "Spearman", "plan conv1=float; *=kmeans2"):
        assert told in done.stdout
