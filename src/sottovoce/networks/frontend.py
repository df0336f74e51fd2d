"""Log-mel features as one fixed torch module, equal to Kaldi's `compute-fbank-feats` (dither 0, edges snipped).

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

    wave: (batch, samples) in [-1, 1]   returns: (batch, rows, frames), natural logarithm, mean over time removed.
    Raises BadInput when the wave is shorter than one window. Nothing in it is trained.
    """

    def __init__(self, config: FrontEndConfig | str = "wespeaker") -> None:
        super().__init__()
        self.config = preset(config) if isinstance(config, str) else config
        self.register_buffer("kernel", torch.from_numpy(dft_kernel(self.config))[:, None, :], persistent=False)
        self.register_buffer("mel", torch.from_numpy(mel_matrix(self.config)), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        if wave.shape[-1] < self.config.window_length:
            raise BadInput(
                f"front end: {wave.shape[-1]} samples are shorter than one window of {self.config.window_length}"
            )
        with torch.autocast(wave.device.type, enabled=False):
            spectrum = nn.functional.conv1d(wave.float()[:, None, :], self.kernel, stride=self.config.hop)
            real, imaginary = spectrum.chunk(2, dim=1)
            power = real * real + imaginary * imaginary
            rows = self.mel @ power
            if self.config.energy:
                rows = torch.cat([self._energy(wave.float()), rows], dim=1)
            features = torch.log(torch.clamp(rows, min=self.config.log_floor))
            return features - features.mean(dim=2, keepdim=True) if self.config.remove_mean else features

    def _energy(self, wave: Tensor) -> Tensor:
        """Sum of squares of each frame without its mean: (batch, 1, frames)."""
        frames = wave.unfold(1, self.config.window_length, self.config.hop) * self.config.input_scale
        centred = frames - frames.mean(dim=2, keepdim=True)
        return (centred * centred).sum(dim=2).unsqueeze(1)
