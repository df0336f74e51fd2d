"""Is the front end Kaldi's? Module and file against kaldi-native-fbank (dither 0) on recorded speech, and times.

    python benchmarks/frontend.py --root FOLDER --out results/frontend.json

FOLDER holds recordings; each is taken whole. Times are processor milliseconds for 3 s on one thread, taken in turns.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import kaldi_native_fbank
import numpy as np
import onnxruntime
import torch

from sottovoce.audio.features import mel_matrix, preset, window_shape
from sottovoce.audio.wav import read
from sottovoce.export.frontend import add_front_end
from sottovoce.export.graph import Graph
from sottovoce.lab.bench import interleave, machine, versions
from sottovoce.lab.compress import recordings
from sottovoce.lab.run import write_text
from sottovoce.networks.frontend import FrontEnd

CONFIG = preset("wespeaker")


def kaldi(wave: np.ndarray) -> np.ndarray:
    """(mels, frames), mean removed, by the independent implementation."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither, options.frame_opts.window_type = 0.0, CONFIG.window
    options.mel_opts.num_bins = CONFIG.mels
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(CONFIG.rate, (wave * CONFIG.input_scale).tolist())
    fbank.input_finished()
    features = np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)], axis=1)
    return features - features.mean(axis=1, keepdims=True)


def exact(wave: np.ndarray) -> np.ndarray:
    """(mels, frames) step by step in float64: who is nearer to the truth where the others differ?"""
    samples = wave.astype(np.float64) * CONFIG.input_scale
    starts = np.arange(CONFIG.frames(len(wave)))[:, None] * CONFIG.hop
    frames = samples[starts + np.arange(CONFIG.window_length)]
    frames -= frames.mean(axis=1, keepdims=True)
    frames -= CONFIG.preemphasis * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    frames *= window_shape(CONFIG.window, CONFIG.window_length)
    power = np.abs(np.fft.rfft(frames, CONFIG.fft_length))[:, : CONFIG.fft_length // 2] ** 2
    features = np.log(np.maximum(power @ mel_matrix(CONFIG).T.astype(np.float64), CONFIG.log_floor)).T
    return features - features.mean(axis=1, keepdims=True)


def nodes() -> onnxruntime.InferenceSession:
    """The front end as it stands in every file."""
    graph = Graph()
    graph.outputs = {"features": [1, CONFIG.mels, "frames"]}
    add_front_end(graph, CONFIG, "features")
    graph.prune()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph.model().SerializeToString(), options)


def summary(differences: list[np.ndarray]) -> dict[str, Any]:
    """How large the differences are."""
    all_values = np.concatenate([d.reshape(-1) for d in differences])
    return {
        "values": len(all_values),
        "share_within_2e-4": float(np.mean(all_values <= 2e-4)),
        "quantile_0.999": float(np.quantile(all_values, 0.999)),
        "largest": float(all_values.max()),
        "recordings_beyond_1e-2": int(sum(d.max() > 1e-2 for d in differences)),
    }


@click.command()
@click.option("--root", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(root: Path, out: Path) -> None:
    """Compare on every recording below ROOT and write OUT."""
    torch.set_num_threads(1)
    module, session = FrontEnd(CONFIG), nodes()
    ways = {
        "kaldi-native-fbank": kaldi,
        "module": lambda wave: module(torch.from_numpy(wave)[None])[0].numpy(),
        "file": lambda wave: session.run(None, {"wave": wave[None]})[0][0],
    }
    found: dict[str, list[np.ndarray]] = {"module": [], "file": []}
    from_exact: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    paths = recordings(root)
    for path in paths:
        wave = read(path)
        truth, features = exact(wave), {name: way(wave) for name, way in ways.items()}
        for name in ways:
            from_exact[name].append(np.abs(features[name] - truth))
        for name, differences in found.items():
            differences.append(np.abs(features[name] - features["kaldi-native-fbank"]))
    longest = max((read(path) for path in paths[:200]), key=len)
    turns = interleave(ways, np.resize(longest, 3 * CONFIG.rate))
    result = {
        "what": "absolute difference of log-mel values from kaldi-native-fbank, mean of each recording removed",
        "command": "python benchmarks/frontend.py --root FOLDER --out results/frontend.json",
        "machine": machine(),
        "versions": versions(),
        "recordings": len(paths),
        "difference": {name: summary(differences) for name, differences in found.items()},
        "difference_from_float64": {name: summary(differences) for name, differences in from_exact.items()},
        "processor_ms_per_3_s": {name: 1e3 * min(cpu for _, cpu in turns[name]) for name in ways},
    }
    write_text(out, json.dumps(result, indent=1) + "\n")
    click.echo(json.dumps(result["difference"], indent=1))


if __name__ == "__main__":
    main()
