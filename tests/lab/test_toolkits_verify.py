"""From a toolkit's checkpoint to a decision: imported, compressed and asked by `sotto verify`, for every front end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

from sottovoce import networks
from sottovoce.audio.features import PRESETS, preset
from sottovoce.audio.talker import talker
from sottovoce.cli import main
from sottovoce.lab import checkpoint
from sottovoce.lab.imports import import_checkpoint
from sottovoce.networks.frontend import FrontEnd

sys.path.insert(0, str(Path(__file__).parent))
import foreign

RESNET = {"kind": "resnet", "blocks": (1, 1, 1, 1), "width": 4, "dim": 16}
REDIMNET = {"kind": "redimnet", "stages": ((1, 1, 1, 0), (2, 1, 2, 4)), "group": 1, "block": "basic", "dim": 16}
RESNETSE = {"blocks": (1, 1, 1, 1), "widths": (8, 8, 8, 16), "dim": 16}
GOLDEN = {"speechbrain": "speechbrain ecapa", "3dspeaker": "3dspeaker resnet34", "taoruijie": "taoruijie ecapa"}
NETWORKS: dict[str, dict[str, Any]] = {  # of front ends whose networks have their toolkit's names in ours
    "wespeaker": RESNET,
    "wespeaker-72": {**REDIMNET, "width": 4, "mels": 72},
    "wespeaker-60": {**REDIMNET, "width": 4, "mels": 60},
    "voxceleb_trainer": {"kind": "resnetse34v2", **RESNETSE},
    "voxceleb_trainer-40": {"kind": "resnetse34l", **RESNETSE},
    "voxceleb_trainer-plain": {"kind": "resnetse34l", **RESNETSE},
}
OWN = {  # front ends of papers: there is no published checkpoint to import
    "paper-c": {**RESNET, "mels": 64},
    "kiwano": {**RESNET, "mels": 81},
}


def stored(front_end: str, folder: Path) -> Path:
    """A float checkpoint of ours that goes with a front end, through `import_checkpoint` where a toolkit has it."""
    out = folder / "net.safetensors"
    if front_end in OWN:
        torch.manual_seed(0)
        about = {"network": OWN[front_end], "front_end": front_end, "plan": "", "licence": "none"}
        checkpoint.save(out, networks.build(**OWN[front_end]).eval(), about)
        return out
    if front_end in GOLDEN:
        shapes = {name: tuple(shape) for name, shape in foreign.golden()[GOLDEN[front_end]]["shapes"].items()}
    else:
        own = networks.build(**NETWORKS[front_end]).state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    arrays = foreign.weights(shapes)
    torch.save({name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}, folder / "theirs.pt")
    import_checkpoint(folder / "theirs.pt", out=out, front_end=front_end)
    return out


def cosine(path: Path, waves: list[np.ndarray]) -> float:
    """Of two recordings, by the network and the front end in torch."""
    loaded = checkpoint.load(path)
    with torch.no_grad():
        found = [loaded.network(FrontEnd(loaded.front_end)(torch.from_numpy(wave)[None]))[0] for wave in waves]
    return float(torch.nn.functional.cosine_similarity(*found, dim=0))


def sotto(*arguments: Any) -> Any:
    return CliRunner().invoke(main, [str(one) for one in arguments])


@pytest.mark.parametrize("front_end", PRESETS)
def test_a_pair_is_decided_as_the_imported_network_would(front_end: str, tmp_path: Path) -> None:
    path = stored(front_end, tmp_path)
    assert checkpoint.load(path).front_end == preset(front_end)
    waves = [talker(3.0, seed=seed) for seed in (3, 8)]
    for name, wave in zip("ab", waves, strict=True):
        soundfile.write(tmp_path / f"{name}.wav", wave, 16000, subtype="FLOAT")
    made = sotto("compress", path, "--bits", 8, "--method", "nearest", "--out", tmp_path / "m.onnx")
    assert made.exit_code == 0, made.output
    expected = cosine(path, waves)
    for file, within in ((tmp_path / "m.onnx", 0.03), (tmp_path / "float.onnx", 1e-4)):
        if not file.exists():
            assert sotto("export", path, "--out", file).exit_code == 0
        for threshold, code in ((expected - 0.04, 0), (expected + 0.04, 1)):
            asked = ("verify", tmp_path / "a.wav", tmp_path / "b.wav", "--model", file, "--threshold", threshold)
            done = sotto(*asked, "--check", "--json")
            assert done.exit_code == code, done.output
        assert json.loads(done.stdout)["score"] == pytest.approx(expected, abs=within)
