"""How toolkits store networks: a table of what is known.

A kind is added in one entry: how its Config is read off names and shapes, what its tensors are called where they
differ from ours, and the front ends it is trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.lab import shapes as read
from sottovoce.lab.shapes import Settings, Shapes

Tensors = dict[str, NDArray[Any]]

CAMPPLUS_FLOOR = 1e-16  # that of the preset campplus-3dspeaker


@dataclass(frozen=True)
class Layout:
    """How a toolkit stores one architecture."""

    name: str  # toolkit and architecture
    settings: Callable[[Shapes], Settings]  # arguments of networks.build from their shapes; KeyError: another network
    front_ends: tuple[str, ...]  # that networks of this layout are trained with
    prefixes: Mapping[str, str] = field(default_factory=dict)  # our beginnings of names: theirs, where they differ
    prefix: str = ""  # before every name
    arrange: Callable[[Tensors], None] = lambda tensors: None  # in place, under our names
    signs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # tensors left out: front ends they are part of
    follows: Mapping[str, Settings] = field(default_factory=dict)  # settings that follow from a front end

    def theirs(self, ours: str) -> str:
        """What a tensor of ours is called there."""
        fitting = [start for start in self.prefixes if ours.startswith(start)]
        start = max(fitting, key=len, default="")
        return self.prefix + (self.prefixes[start] if start else "") + ours[len(start) :]


def roll_parts(tensors: Tensors) -> None:
    """Channels around each Res2 convolution, the untouched part from the first place to the last."""
    part = len(tensors.get("layer2.se_res2block.1.convs.0.weight", ()))  # none: one part alone, which stays
    for block in (f"layer{i}.se_res2block" for i in (2, 3, 4)):
        for name in [name for name in tensors if name.startswith(f"{block}.0.")]:
            tensors[name] = np.roll(tensors[name], -part, axis=0)
        tensors[f"{block}.2.conv.weight"] = np.roll(tensors[f"{block}.2.conv.weight"], -part, axis=1)


def _blocks(ours: Iterable[tuple[str, str]], first: int, theirs: str) -> dict[str, str]:
    """Prefixes inside the three blocks, which are theirs `theirs`1 to 3 counted from `first`."""
    return {
        f"layer{index + 2}.se_res2block.{start}": f"{theirs}{index + first}.{other}"
        for index in range(3)
        for start, other in ours
    }


SPEECHBRAIN = {
    "layer1.conv.": "blocks.0.conv.conv.",
    "layer1.bn.": "blocks.0.norm.norm.",
    **_blocks(
        [
            ("0.conv.", "tdnn1.conv.conv."),
            ("0.bn.", "tdnn1.norm.norm."),
            *((f"1.convs.{i}.", f"res2net_block.blocks.{i}.conv.conv.") for i in range(16)),
            *((f"1.bns.{i}.", f"res2net_block.blocks.{i}.norm.norm.") for i in range(16)),
            ("2.conv.", "tdnn2.conv.conv."),
            ("2.bn.", "tdnn2.norm.norm."),
            ("3.linear1.", "se_block.conv1.conv."),
            ("3.linear2.", "se_block.conv2.conv."),
        ],
        1,
        "blocks.",
    ),
    "conv.": "mfa.conv.conv.",
    "conv_bn.": "mfa.norm.norm.",
    "pool.linear1.": "asp.tdnn.conv.conv.",
    "pool.hidden.1.": "asp.tdnn.norm.norm.",
    "pool.linear2.": "asp.conv.conv.",
    "bn.": "asp_bn.norm.",
    "linear.": "fc.conv.",
}
TAORUIJIE = {
    "layer1.conv.": "conv1.",
    "layer1.bn.": "bn1.",
    **_blocks(
        [
            ("0.conv.", "conv1."),
            ("0.bn.", "bn1."),
            ("1.convs.", "convs."),
            ("1.bns.", "bns."),
            ("2.conv.", "conv3."),
            ("2.bn.", "bn3."),
            ("3.linear1.", "se.se.1."),
            ("3.linear2.", "se.se.3."),
        ],
        1,
        "layer",
    ),
    "conv.": "layer4.",
    "pool.linear1.": "attention.0.",
    "pool.hidden.1.": "attention.2.",
    "pool.linear2.": "attention.4.",
    "bn.": "bn5.",
    "linear.": "fc6.",
    "bn2.": "bn6.",
}
PLAIN = ("torchfb.spectrogram.window", "torchfb.mel_scale.fb")  # of torchaudio alone
EMPHASISED = ("torchfb.0.flipped_filter", "torchfb.1.mel_scale.fb")  # behind voxceleb_trainer's pre-emphasis
LAYOUTS = (
    Layout("WeSpeaker ResNet", read.resnet_settings, ("wespeaker", "3dspeaker")),
    Layout("pyannote ResNet", read.resnet_settings, ("wespeaker",), prefix="resnet."),
    Layout("WeSpeaker ECAPA", read.ecapa_settings, ("wespeaker",)),
    Layout("WeSpeaker Gemini-DF-ResNet", read.gemini_settings, ("wespeaker",)),
    Layout(
        "SpeechBrain ECAPA", read.speechbrain_settings, ("speechbrain", "3dspeaker"), SPEECHBRAIN, arrange=roll_parts
    ),
    Layout("TaoRuijie ECAPA", read.taoruijie_settings, ("taoruijie",), TAORUIJIE),
    Layout(
        "CAM++", read.campplus_settings, ("wespeaker", "3dspeaker"), follows={"3dspeaker": {"floor": CAMPPLUS_FLOOR}}
    ),
    Layout("WeSpeaker SimAM-ResNet", read.simam_settings, ("wespeaker",)),
    Layout("WeSpeaker ReDimNet", read.redimnet_settings, ("wespeaker-72", "wespeaker-60", "wespeaker")),
    Layout("3D-Speaker ERes2Net", read.eres2net_settings, ("3dspeaker",)),
    Layout("SpeechBrain ResNet", read.sbresnet_settings, ("speechbrain",)),
    Layout(
        "voxceleb_trainer ResNetSE34",
        read.resnetse_settings,
        ("voxceleb_trainer", "voxceleb_trainer-40", "voxceleb_trainer-plain"),
        signs={
            **dict.fromkeys(PLAIN, ("voxceleb_trainer-plain",)),
            **dict.fromkeys(EMPHASISED, ("voxceleb_trainer", "voxceleb_trainer-40")),
        },
    ),
)
