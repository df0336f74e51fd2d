"""The tour, on a small untrained network and a small corpus: every step is really taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sottovoce import networks
from sottovoce.errors import BadInput
from sottovoce.lab import checkpoint
from sottovoce.lab import demo as tour

NETWORK = {"kind": "resnet", "blocks": [1, 1], "width": 4, "dim": 8}


@pytest.fixture(scope="module")
def voices(corpus: Path) -> Path:
    """The small corpus with a trial list that begins with a nontarget."""
    lines = [
        f"{int(a // 4 == b // 4)} speech/s{a // 4}/{a % 4}.wav speech/s{b // 4}/{b % 4}.wav"
        for a in reversed(range(24))
        for b in range(a)
    ]
    (corpus / "trials.txt").write_text("\n".join(lines), encoding="utf-8")
    return corpus


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path: Path = tmp_path_factory.mktemp("demo") / "small.safetensors"
    checkpoint.save(path, networks.build(**NETWORK).eval(), {"network": NETWORK, "front_end": "wespeaker", "plan": ""})
    return path


def test_every_step_is_taken(network: Path, voices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tour.demo(tmp_path / "out", checkpoint=network, corpus=voices)
    assert json.loads(json.dumps(result)) == result
    assert result["synthetic"] is True
    assert (result["trials"], result["speakers"]) == (276, 6)
    assert [row["weights"] for row in result["rows"]] == ["float", "8 bit", "4 bit", "2 bit"]
    for row in result["rows"]:
        assert row["bytes"] == Path(row["model"]).stat().st_size
        assert 0 <= row["eer"] <= 1
        assert row["ms"] > 0
    assert (result["rows"][0]["speed_ratio"], result["rows"][0]["size_ratio"]) == (1.0, 1.0)
    assert [pair["pair"] for pair in result["pairs"]] == ["the same voice", "different voices"]
    same, different = result["pairs"]
    assert Path(same["a"]).parent == Path(same["b"]).parent
    assert Path(different["a"]).parent != Path(different["b"]).parent
    assert result["verified_with"].endswith("small-4bit.onnx")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "synthetic" in printed.err


def test_a_missing_checkpoint_or_corpus_is_named(network: Path, voices: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--checkpoint"):
        tour.demo(tmp_path, checkpoint=tmp_path / "none.safetensors", corpus=voices)
    with pytest.raises(BadInput, match="--corpus"):
        tour.demo(tmp_path, checkpoint=network, corpus=tmp_path)
