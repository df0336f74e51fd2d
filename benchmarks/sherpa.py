"""What does sherpa-onnx make of our files, and where does the difference come from?

    python benchmarks/sherpa.py AUDIO --python PYTHON [--checkpoint models/ecapa256.safetensors] [--file MODEL.onnx ...]

PYTHON: an interpreter with the package sherpa-onnx. Cosines are between its embedding of a recording and that of our
file with the front end inside. Causes are told apart by changing one thing at a time in our own front end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch

from sottovoce.audio.features import FrontEndConfig, preset
from sottovoce.audio.wav import read
from sottovoce.export.forms import SHERPA, for_sherpa, resampled_rows
from sottovoce.lab.bench import machine, versions
from sottovoce.lab.compress import RATE, export, recordings
from sottovoce.lab.onnx_read import embedder
from sottovoce.lab.onnx_read import read as read_onnx
from sottovoce.networks.frontend import FrontEnd
from sottovoce.runtime.engine import load

THEIRS = """
import sys, numpy as np, sherpa_onnx
model, waves, out = sys.argv[1:]
settings = sherpa_onnx.SpeakerEmbeddingExtractorConfig(model=model, num_threads=1, debug=False, provider="cpu")
extractor, found = sherpa_onnx.SpeakerEmbeddingExtractor(settings), []
stored = np.load(waves)
for name in stored.files:
    stream = extractor.create_stream()
    stream.accept_waveform(sample_rate=16000, waveform=stored[name])
    stream.input_finished()
    embedding = np.array(extractor.compute(stream))
    found.append(embedding / np.linalg.norm(embedding))
np.save(out, np.stack(found))
print(sherpa_onnx.__version__)
"""
Wave = np.ndarray
EDGE = 120  # samples that its first frame begins before the recording


def theirs(python: str, model: Path, waves: list[Wave], folder: Path) -> tuple[np.ndarray, str]:
    """Unit embeddings (waves, dim) by sherpa-onnx, and its version."""
    np.savez(folder / "waves.npz", **{f"{index:04d}": wave for index, wave in enumerate(waves)})
    command = [python, "-c", THEIRS, str(model), str(folder / "waves.npz"), str(folder / "found.npy")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return np.load(folder / "found.npy"), done.stdout.strip()


def not_snipped(wave: Wave) -> Wave:
    """The recording mirrored at both ends, as Kaldi does with snip_edges=false: frames of 400 samples every 160."""
    frames = (len(wave) + 80) // 160
    behind = max(0, 160 * (frames - 1) - EDGE + 400 - len(wave))
    return np.concatenate([wave[:EDGE][::-1], wave, wave[::-1][:behind]]).astype(np.float32)


def causes(checkpoint: Path, waves: list[Wave], folder: Path) -> dict[str, dict[str, float]]:
    """Cosine to our own embedding when one thing, or all, is done in sherpa-onnx's way."""
    export(checkpoint, out=folder / "features.onnx", features_in=True)
    found = read_onnx(folder / "features.onnx")
    embed, ours = embedder(found.graph), found.front_end
    loud = {"window": SHERPA["window"]}
    span = {"low_hz": SHERPA["low_hz"], "high_hz": SHERPA["high_hz"]}
    rows = resampled_rows(ours)

    def embedded(config: FrontEndConfig, change: Callable[[Wave], Wave], rows: np.ndarray | None = None) -> np.ndarray:
        front, all_of_them = FrontEnd(config), []
        for wave in waves:
            with torch.no_grad():
                features = front(torch.from_numpy(np.ascontiguousarray(change(wave)))[None]).numpy()
            if rows is not None:
                features = np.ascontiguousarray(np.einsum("brt,rk->bkt", features, rows))
            all_of_them.append(embed(features))
        return np.stack(all_of_them)

    def same(wave: Wave) -> Wave:
        return wave

    wanted = embedded(ours, same)
    tried = {
        "window": embedded(replace(ours, **loud), same),
        "mel range": embedded(replace(ours, **span), same),
        "mel range, rows put together": embedded(replace(ours, **span), same, rows),
        "edges": embedded(ours, not_snipped),
        "all": embedded(replace(ours, **loud, **span), not_snipped),
        "all, rows put together": embedded(replace(ours, **loud, **span), not_snipped, rows),
    }
    return {name: cosines(one, wanted) for name, one in tried.items()}


def cosines(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Mean and least cosine of unit embeddings."""
    every = np.sum(found * wanted, axis=1)
    return {"mean": float(every.mean()), "least": float(every.min())}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("audio", type=Path)
    parser.add_argument("--python", required=True)
    parser.add_argument("--checkpoint", type=Path, default=Path("models/ecapa256.safetensors"))
    parser.add_argument("--file", type=Path, nargs="*", default=[], help="Low-bit files of the checkpoint.")
    parser.add_argument("--recordings", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("results/sherpa.json"))
    options = parser.parse_args()
    paths = recordings(options.audio)
    order = np.random.default_rng(0).permutation(len(paths))[: options.recordings]
    waves = [read(paths[index], RATE, RATE // 2) for index in order]
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        export(options.checkpoint, out=folder / "float.onnx")
        for path in [folder / "float.onnx", *options.file]:
            model, ours = onnx.load(path), load(path)
            (folder / "sherpa.onnx").write_bytes(for_sherpa(model, {}).SerializeToString())
            found, version = theirs(options.python, folder / "sherpa.onnx", waves, folder)
            wanted = np.stack([ours.embed(wave) for wave in waves])
            rows.append({"file": path.name, "bytes": path.stat().st_size, **cosines(found, wanted)})
        why = causes(options.checkpoint, waves, folder)
    result = {
        "command": f"python benchmarks/sherpa.py AUDIO --python PYTHON --recordings {options.recordings}",
        "checkpoint": options.checkpoint.name,
        "front_end": preset("wespeaker").name,
        "recordings": len(waves),
        "versions": {**versions(), "sherpa-onnx": version},
        "machine": machine(),
        "cosine_to_our_file": rows,
        "causes": why,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
