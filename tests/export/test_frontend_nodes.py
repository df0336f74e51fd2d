"""The front end computed by nodes, against Kaldi and against the torch module."""

import numpy as np
import onnxruntime
import pytest
import torch

from sottovoce.audio.features import PRESETS, preset
from sottovoce.audio.talker import talker
from sottovoce.export.frontend import add_front_end
from sottovoce.export.graph import Graph
from sottovoce.networks.frontend import FrontEnd

CONFIG = preset("wespeaker")


def make_session(config):
    graph = Graph()
    graph.outputs = {"features": [1, config.rows, "frames"]}
    add_front_end(graph, config, "features")
    graph.prune()
    model = graph.model().SerializeToString()
    assert len(model) < 10_000  # of matrices that would take half a million bytes
    return onnxruntime.InferenceSession(model)


@pytest.fixture(scope="module")
def session():
    return make_session(CONFIG)


def features(session, wave: np.ndarray) -> np.ndarray:
    return session.run(None, {"wave": wave[None]})[0][0]


def kaldi(wave: np.ndarray) -> np.ndarray:
    fbank = pytest.importorskip("kaldi_native_fbank", reason="a development dependency")
    options = fbank.FbankOptions()
    options.frame_opts.dither, options.frame_opts.window_type = 0.0, "hamming"
    options.mel_opts.num_bins, options.mel_opts.low_freq, options.mel_opts.high_freq = 80, 20, 8000
    stream = fbank.OnlineFbank(options)
    stream.accept_waveform(16000, (wave * 32768).tolist())
    found = np.stack([stream.get_frame(i) for i in range(stream.num_frames_ready)])
    return (found - found.mean(axis=0)).T


@pytest.mark.parametrize("offset", [0.0, 0.02])
def test_equal_to_kaldi(session, offset):
    wave = (talker(4.0, seed=3) + offset).astype(np.float32)
    distance = np.abs(features(session, wave) - kaldi(wave))
    assert distance.shape == (80, CONFIG.frames(len(wave)))
    assert np.mean(distance < 2e-4) > 0.999
    assert distance.max() < 1e-2


@pytest.mark.parametrize("samples", [400, 401, 559, 560, 16000, 16079, 16080])
def test_equal_to_the_torch_module_at_any_length(session, samples):
    wave = talker(2.0, seed=4)[:samples]
    found, expected = features(session, wave), FrontEnd(CONFIG)(torch.from_numpy(wave)[None])[0].numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-3)  # quiet bins lie below the rounding of loud ones


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_the_same_in_torch_and_in_nodes(name):
    wave = (talker(2.0, seed=4) + 0.02).astype(np.float32)
    found = features(make_session(preset(name)), wave)
    expected = FrontEnd(name)(torch.from_numpy(wave)[None])[0].numpy()
    assert found.shape == (preset(name).rows, preset(name).frames(len(wave)))
    np.testing.assert_allclose(found, expected, atol=2e-3)
