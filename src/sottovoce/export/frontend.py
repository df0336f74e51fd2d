"""The front end as nodes in front of the encoder, its matrices computed by constant nodes when the file is loaded.

A frame is cut in the middle: its even part meets the cosines, its odd part the sines of a transform whose phase is zero
there. Power does not depend on the phase, Kaldi's windows are symmetric, and the work is half that of one convolution.
A window that is not symmetric meets whole frames.
"""

from __future__ import annotations

import math

import numpy as np

from sottovoce.audio.features import FrontEndConfig, Triangles, triangles, window_shape
from sottovoce.export.graph import Graph

WAVE = "wave"


def add_front_end(graph: Graph, config: FrontEndConfig, features: str) -> None:
    """Compute the graph's input `features` (1, rows, frames) from `wave` (1, samples), which becomes its input."""
    graph.inputs = {WAVE: [1, "samples"]}
    frames = _frames(graph, config)
    if config.remove_dc:
        frames = _centred(graph, frames)
    real, imaginary = _spectrum(graph, _emphasised(graph, frames, config), config)
    power = graph.add("Add", graph.add("Mul", real, real), graph.add("Mul", imaginary, imaginary))
    rows = graph.add("MatMul", power, _mel_filters(graph, config))
    if config.energy:
        rows = graph.add("Concat", _energy(graph, frames, config), rows, axis=1)
    turned = graph.add("Transpose", _logarithms(graph, rows, config), perm=[1, 0])
    graph.add("Unsqueeze", turned, _whole(graph, 0), output=features)


def _logarithms(graph: Graph, rows: str, config: FrontEndConfig) -> str:
    """Power in each filter → features: (frames, rows)."""
    bounded = graph.add("Max", rows, graph.constant(np.float32(config.log_floor))) if config.log_floor else rows
    if config.log_offset:
        bounded = graph.add("Add", bounded, graph.constant(np.float32(config.log_offset)))
    log = graph.add("Log", bounded)
    if config.log_factor != 1:
        log = graph.add("Mul", log, graph.constant(np.float32(config.log_factor)))
    if config.range_below_peak:
        peak = graph.add("ReduceMax", log, axes=[0, 1], keepdims=1)
        log = graph.add("Max", log, graph.add("Sub", peak, graph.constant(np.float32(config.range_below_peak))))
    return graph.add("Sub", log, graph.add("ReduceMean", log, axes=[0], keepdims=1)) if config.remove_mean else log


def _whole(graph: Graph, *numbers: int) -> str:
    return graph.constant(np.array(numbers, dtype=np.int64))


def _frames(graph: Graph, config: FrontEndConfig) -> str:
    """(1, samples) → (frames, window length): the wave is cut in blocks, and a frame is some blocks side by side."""
    block = math.gcd(config.window_length, config.hop)
    source = _prepared(graph, config)
    samples = graph.add("Gather", graph.add("Shape", source), _whole(graph, 1))
    hops = graph.add("Div", graph.add("Sub", samples, _whole(graph, config.window_length)), _whole(graph, config.hop))
    used = graph.add("Mul", hops, _whole(graph, config.hop))
    end = graph.add("Add", used, _whole(graph, config.window_length))
    wave = graph.add("Slice", source, _whole(graph, 0), end, _whole(graph, 1))
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


def _prepared(graph: Graph, config: FrontEndConfig) -> str:
    """The wave as frames are cut from it: (1, samples + 2 · padding)."""
    wave = WAVE
    if config.pre_emphasis_of == "wave":
        wave = _less_the_last(graph, wave, _columns(graph, wave, 1, 2), _columns(graph, wave, 0, -1), config)
    if config.padding:
        ends = _whole(graph, 0, config.padding, 0, config.padding)
        wave = graph.add("Pad", wave, ends, mode="reflect" if config.edges == "reflect" else "constant")
    return wave


def _less_the_last(graph: Graph, samples: str, first: str, others: str, config: FrontEndConfig) -> str:
    """Pre-emphasis: samples less a part of those before them, which are `first` and `others`, side by side."""
    before = graph.add("Concat", first, others, axis=1)
    return graph.add("Sub", samples, graph.add("Mul", before, graph.constant(np.float32(config.preemphasis))))


def _centred(graph: Graph, frames: str) -> str:
    """Each frame without its mean."""
    return graph.add("Sub", frames, graph.add("ReduceMean", frames, axes=[1], keepdims=1))


def _energy(graph: Graph, centred: str, config: FrontEndConfig) -> str:
    """Sum of squares of each frame: (frames, 1)."""
    squares = graph.add("ReduceSumSquare", centred, axes=[1], keepdims=1)
    return graph.add("Mul", squares, graph.constant(np.float32(config.input_scale**2)))


def _emphasised(graph: Graph, frames: str, config: FrontEndConfig) -> str:
    """Frames with pre-emphasis where each has its own: (frames, window length)."""
    if config.pre_emphasis_of == "wave" or not config.preemphasis:
        return frames
    first, others = _columns(graph, frames, 0, 1), _columns(graph, frames, 0, config.window_length - 1)
    return _less_the_last(graph, frames, first, others, config)


def _spectrum(graph: Graph, frames: str, config: FrontEndConfig) -> tuple[str, str]:
    """Real and imaginary parts of windowed frames: (frames, fft length / 2) each."""
    cosines, sines = _transforms(graph, config)
    even, odd = _halves(graph, frames, config) if _symmetric(config) else (frames, frames)
    return graph.add("MatMul", even, cosines), graph.add("MatMul", odd, sines)


def _symmetric(config: FrontEndConfig) -> bool:
    window = window_shape(config.window, config.window_length)
    return config.window_length % 2 == 0 and np.allclose(window, window[::-1])


def _halves(graph: Graph, frames: str, config: FrontEndConfig) -> tuple[str, str]:
    """The even and odd part about the middle of frames: (frames, window length / 2) each."""
    length, half = config.window_length, config.window_length // 2
    left, right = _columns(graph, frames, 0, half), _columns(graph, frames, length - 1, half - 1, -1)
    return graph.add("Add", left, right), graph.add("Sub", left, right)


def _columns(graph: Graph, tensor: str, start: int, end: int, step: int = 1) -> str:
    """tensor[:, start:end:step]"""
    return graph.add("Slice", tensor, *(_whole(graph, number) for number in (start, end, 1, step)))


def _transforms(graph: Graph, config: FrontEndConfig) -> tuple[str, str]:
    """Windowed cosines and sines of a frame, of its left half where the window is symmetric: (samples, fft length / 2).

    The phase is 2π · (distance to the middle in half samples) · bin / (2 · fft length), its numerator an exact integer.
    """
    length, turn = config.window_length, 2 * config.fft_length
    used = length // 2 if _symmetric(config) else length
    distance = graph.add("Range", _scalar(graph, length - 1), _scalar(graph, length - 1 - 2 * used), _scalar(graph, -2))
    bins = graph.add("Range", _scalar(graph, 0), _scalar(graph, config.fft_length // 2), _scalar(graph, 1))
    product = graph.add("Mul", graph.add("Unsqueeze", distance, _whole(graph, 1)), bins)
    steps = graph.add("Cast", graph.add("Mod", product, _scalar(graph, turn)), to=1)
    phase = graph.add("Mul", steps, graph.constant(np.float32(2 * np.pi / turn)))
    window = window_shape(config.window, length)[:used, None] * config.input_scale
    shape = graph.constant(window.astype(np.float32))
    return graph.add("Mul", graph.add("Cos", phase), shape), graph.add("Mul", graph.add("Sin", phase), shape)


def _scalar(graph: Graph, number: int) -> str:
    return graph.constant(np.array(number, dtype=np.int64))


def _mel_filters(graph: Graph, config: FrontEndConfig) -> str:
    """Triangles (fft length / 2, mels), computed from where bins and corners lie."""
    of = triangles(config)
    if config.filters == "mel":
        return _even_filters(graph, of)
    places = graph.constant(of.places[:, None].astype(np.float32))
    rising = _side(graph, graph.add("Sub", places, _row(graph, of.left)), of.centre - of.left)
    falling = _side(graph, graph.add("Sub", _row(graph, of.right), places), of.right - of.centre)
    return graph.add("Relu", graph.add("Min", rising, falling))


def _side(graph: Graph, distance: str, width: np.ndarray) -> str:
    return graph.add("Div", distance, _row(graph, width))


def _row(graph: Graph, values: np.ndarray) -> str:
    return graph.constant(values.astype(np.float32))


def _even_filters(graph: Graph, of: Triangles) -> str:
    """Triangles that are all equal: each falls from one to nothing within one position to both sides."""
    step = of.centre[0] - of.left[0]
    place = graph.constant(((of.places - of.left[0]) / step)[:, None].astype(np.float32))
    centres = graph.constant(np.arange(1, len(of.centre) + 1, dtype=np.float32))
    distance = graph.add("Abs", graph.add("Sub", place, centres))
    return graph.add("Relu", graph.add("Sub", graph.constant(np.float32(1)), distance))
