"""Log-mel features as one fixed torch module, equal to those of the toolkits in `audio.features.PRESETS`.

Framing, DC removal, pre-emphasis, window and DFT are linear in the samples of a frame, so a single convolution
(kernel = window length, stride = hop) computes them all. Power, mel matrix, logarithm and mean removal follow.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sottovoce.audio.features import FrontEndConfig, dft_kernel, mel_matrix, preset
from sottovoce.errors import BadInput


class FrontEnd(nn.Module):
    """Waveform → log-mel features.

    wave: (batch, samples) in [-1, 1]   returns: (batch, rows, frames), logarithms, mean over time removed.
    Raises BadInput when the wave is too short for one frame. Nothing in it is trained.
    """

    def __init__(self, config: FrontEndConfig | str = "wespeaker") -> None:
        super().__init__()
        self.config = preset(config) if isinstance(config, str) else config
        self.register_buffer("kernel", torch.from_numpy(dft_kernel(self.config))[:, None, :], persistent=False)
        self.register_buffer("mel", torch.from_numpy(mel_matrix(self.config)), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        shortest = self.config.samples(1)
        if wave.shape[-1] < shortest:
            raise BadInput(f"front end: {wave.shape[-1]} samples are shorter than one window of {shortest}")
        with torch.autocast(wave.device.type, enabled=False):
            wave = wave.float()
            spectrum = nn.functional.conv1d(self._prepared(wave)[:, None, :], self.kernel, stride=self.config.hop)
            real, imaginary = spectrum.chunk(2, dim=1)
            rows = self.mel @ (real * real + imaginary * imaginary)
            if self.config.energy:
                rows = torch.cat([self._energy(wave), rows], dim=1)
            return self._logarithms(rows)

    def _prepared(self, wave: Tensor) -> Tensor:
        """The wave as frames are cut from it: (batch, samples + 2 · padding)."""
        if self.config.pre_emphasis_of == "wave":
            wave = wave - self.config.preemphasis * torch.cat([wave[:, 1:2], wave[:, :-1]], dim=1)
        if self.config.padding == 0:
            return wave
        both = (self.config.padding, self.config.padding)
        return nn.functional.pad(wave, both, mode="reflect" if self.config.edges == "reflect" else "constant")

    def _logarithms(self, rows: Tensor) -> Tensor:
        """Power in each filter → features."""
        config = self.config
        features = config.log_factor * torch.log(torch.clamp(rows, min=config.log_floor) + config.log_offset)
        if config.range_below_peak:
            peak = features.amax(dim=(1, 2), keepdim=True)
            features = torch.maximum(features, peak - config.range_below_peak)
        return features - features.mean(dim=2, keepdim=True) if config.remove_mean else features

    def _energy(self, wave: Tensor) -> Tensor:
        """Sum of squares of each frame without its mean: (batch, 1, frames)."""
        frames = wave.unfold(1, self.config.window_length, self.config.hop) * self.config.input_scale
        centred = frames - frames.mean(dim=2, keepdim=True)
        return (centred * centred).sum(dim=2).unsqueeze(1)
