"""The front end as nodes in front of the encoder, its matrices computed by constant nodes when the file is loaded.

A frame is cut in the middle: its even part meets the cosines, its odd part the sines of a transform whose phase is zero
there. Power does not depend on the phase, the windows are symmetric, and the work is half that of one convolution.
"""

from __future__ import annotations

import math

import numpy as np

from sottovoce.audio.features import FrontEndConfig, window_shape
from sottovoce.export.graph import Graph

WAVE = "wave"


def add_front_end(graph: Graph, config: FrontEndConfig, features: str) -> None:
    """Compute the graph's input `features` (1, rows, frames) from `wave` (1, samples), which becomes its input."""
    graph.inputs = {WAVE: [1, "samples"]}
    centred = _centred(graph, _frames(graph, config))
    even, odd = _halves(graph, centred, config)
    cosines, sines = _transforms(graph, config)
    real, imaginary = graph.add("MatMul", even, cosines), graph.add("MatMul", odd, sines)
    power = graph.add("Add", graph.add("Mul", real, real), graph.add("Mul", imaginary, imaginary))
    rows = graph.add("MatMul", power, _mel_filters(graph, config))
    if config.energy:
        rows = graph.add("Concat", _energy(graph, centred, config), rows, axis=1)
    log = graph.add("Log", graph.add("Max", rows, graph.constant(np.float32(config.log_floor))))
    if config.remove_mean:
        log = graph.add("Sub", log, graph.add("ReduceMean", log, axes=[0], keepdims=1))
    turned = graph.add("Transpose", log, perm=[1, 0])
    graph.add("Unsqueeze", turned, _whole(graph, 0), output=features)


def _whole(graph: Graph, *numbers: int) -> str:
    return graph.constant(np.array(numbers, dtype=np.int64))


def _frames(graph: Graph, config: FrontEndConfig) -> str:
    """(1, samples) → (frames, window length): the wave is cut in blocks, and a frame is some blocks side by side."""
    block = math.gcd(config.window_length, config.hop)
    samples = graph.add("Gather", graph.add("Shape", WAVE), _whole(graph, 1))
    hops = graph.add("Div", graph.add("Sub", samples, _whole(graph, config.window_length)), _whole(graph, config.hop))
    used = graph.add("Mul", hops, _whole(graph, config.hop))
    end = graph.add("Add", used, _whole(graph, config.window_length))
    wave = graph.add("Slice", WAVE, _whole(graph, 0), end, _whole(graph, 1))
    blocks = graph.add("Reshape", wave, _whole(graph, -1, block))
    last = graph.add("Div", used, _whole(graph, block))
    step = _whole(graph, config.hop // block)
    columns = [
        graph.add(
            "Slice", blocks, _whole(graph, i), graph.add("Add", last, _whole(graph, i + 1)), _whole(graph, 0), step
        )
        for i in range(config.window_length // block)
    ]
    return graph.add("Concat", *columns, axis=1)


def _centred(graph: Graph, frames: str) -> str:
    """Each frame without its mean."""
    return graph.add("Sub", frames, graph.add("ReduceMean", frames, axes=[1], keepdims=1))


def _energy(graph: Graph, centred: str, config: FrontEndConfig) -> str:
    """Sum of squares of each frame: (frames, 1)."""
    squares = graph.add("ReduceSumSquare", centred, axes=[1], keepdims=1)
    return graph.add("Mul", squares, graph.constant(np.float32(config.input_scale**2)))


def _halves(graph: Graph, centred: str, config: FrontEndConfig) -> tuple[str, str]:
    """Pre-emphasis, then the even and odd part about the middle: (frames, window length / 2) each."""
    length, half = config.window_length, config.window_length // 2
    before = graph.add("Concat", _columns(graph, centred, 0, 1), _columns(graph, centred, 0, length - 1), axis=1)
    emphasis = graph.constant(np.float32(config.preemphasis))
    emphasised = graph.add("Sub", centred, graph.add("Mul", before, emphasis))
    left, right = _columns(graph, emphasised, 0, half), _columns(graph, emphasised, length - 1, half - 1, -1)
    return graph.add("Add", left, right), graph.add("Sub", left, right)


def _columns(graph: Graph, tensor: str, start: int, end: int, step: int = 1) -> str:
    """tensor[:, start:end:step]"""
    return graph.add("Slice", tensor, *(_whole(graph, number) for number in (start, end, 1, step)))


def _transforms(graph: Graph, config: FrontEndConfig) -> tuple[str, str]:
    """Windowed cosines and sines of the left half of a frame: (window length / 2, fft length / 2) each.

    The phase is 2π · (distance to the middle in half samples) · bin / (2 · fft length), its numerator an exact integer.
    """
    length, turn = config.window_length, 2 * config.fft_length
    distance = graph.add("Range", _scalar(graph, length - 1), _scalar(graph, -1), _scalar(graph, -2))
    bins = graph.add("Range", _scalar(graph, 0), _scalar(graph, config.fft_length // 2), _scalar(graph, 1))
    product = graph.add("Mul", graph.add("Unsqueeze", distance, _whole(graph, 1)), bins)
    steps = graph.add("Cast", graph.add("Mod", product, _scalar(graph, turn)), to=1)
    phase = graph.add("Mul", steps, graph.constant(np.float32(2 * np.pi / turn)))
    window = window_shape(config.window, length)[: length // 2, None] * config.input_scale
    shape = graph.constant(window.astype(np.float32))
    return graph.add("Mul", graph.add("Cos", phase), shape), graph.add("Mul", graph.add("Sin", phase), shape)


def _scalar(graph: Graph, number: int) -> str:
    return graph.constant(np.array(number, dtype=np.int64))


def _mel_filters(graph: Graph, config: FrontEndConfig) -> str:
    """Triangles (fft length / 2, mels): a filter falls from one to nothing within one position to both sides."""
    place = graph.constant(_mel_positions(config)[:, None])
    centres = graph.constant(np.arange(1, config.mels + 1, dtype=np.float32))
    distance = graph.add("Abs", graph.add("Sub", place, centres))
    return graph.add("Relu", graph.add("Sub", graph.constant(np.float32(1)), distance))


def _mel_positions(config: FrontEndConfig) -> np.ndarray:
    """Where each bin lies in mel: (bins,) float32, in steps from one filter to the next, from the lowest edge."""
    hertz = np.arange(config.fft_length // 2) * config.rate / config.fft_length
    mel, low, high = (1127.0 * np.log1p(np.asarray(f) / 700.0) for f in (hertz, config.low_hz, config.high_hz))
    return np.asarray((mel - low) * (config.mels + 1) / (high - low), dtype=np.float32)
