"""What a network's Config is, read off the names and shapes of its tensors as its toolkit calls them.

Shapes come without ones at the end. What is no number of theirs (dilations, strides, floors) is the published one. A
function asked for the Usual shapes, of which nothing is known, names the kind's usual network; of another network it
raises KeyError, IndexError, ValueError or ZeroDivisionError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
Settings = dict[str, Any]  # arguments of networks.build

GROUPED = r"backbone\.stage\d+\.\d+\.conv_block\.(dwconvs\.0|conv1)\.weight"  # 3×3 convolutions of ReDimNet


class Usual(dict[str, tuple[int, ...]]):
    """Shapes of which nothing is known."""


def count(shapes: Shapes, pattern: str) -> int:
    """How many different numbers stand where a pattern has its group."""
    return len({match.group(1) for name in shapes if (match := re.match(pattern, name))})


def resnet_settings(shapes: Shapes) -> Settings:
    """WeSpeaker's ResNet: depth, width and dimension; the mels are eight times the rows that pooling reads."""
    if isinstance(shapes, Usual):
        return {"kind": "resnet34"}
    blocks = tuple(count(shapes, rf"layer{stage}\.(\d+)\.") for stage in range(1, 5))
    width, bottleneck = shapes["conv1.weight"][0], "layer1.0.conv3.weight" in shapes
    dim, pooled = shapes["seg_1.weight"]
    settings = {
        "kind": "resnet",
        "blocks": blocks,
        "width": width,
        "block": "bottleneck" if bottleneck else "basic",
        "mels": 8 * (pooled // (2 * 8 * width * (4 if bottleneck else 1))),
        "dim": dim,
    }
    return {**settings, "two_layers": True} if "seg_2.weight" in shapes else settings


def gemini_settings(shapes: Shapes) -> Settings:
    """WeSpeaker's Gemini-DF-ResNet: depths and widths; the mels are 16 times the rows that pooling reads."""
    if isinstance(shapes, Usual):
        return {"kind": "gemini60"}
    depths = tuple(count(shapes, rf"stages\.{stage}\.(\d+)\.") for stage in range(4))
    dims = tuple(shapes[f"downsample_layers.{i}.0.weight"][0] for i in range(5))
    dim, pooled = shapes["seg_1.weight"]
    return {"kind": "dfresnet", "depths": depths, "dims": dims, "mels": 16 * (pooled // (2 * dims[-1])), "dim": dim}


def ecapa_settings(shapes: Shapes) -> Settings:
    """WeSpeaker's ECAPA; the attention's input tells whether it sees the recording's statistics (GLOB)."""
    if isinstance(shapes, Usual):
        return {"kind": "ecapa512"}
    aggregate = shapes["conv.weight"][0]
    return {
        "kind": "ecapa",
        "width": shapes["layer1.conv.weight"][0],
        "context": shapes["pool.linear1.weight"][1] > aggregate,
        "mels": shapes["layer1.conv.weight"][1],
        "dim": shapes["linear.weight"][0],
        "aggregate": aggregate,
        "attention": shapes["pool.linear1.weight"][0],
        "scale": 1 + count(shapes, r"layer2\.se_res2block\.1\.convs\.(\d+)\."),
    }


def speechbrain_settings(shapes: Shapes) -> Settings:
    """SpeechBrain's ECAPA, which 3D-Speaker's is a copy of."""
    if isinstance(shapes, Usual):
        return {"kind": "ecapa1024-speechbrain"}
    aggregate = shapes["mfa.conv.conv.weight"][0]
    return {
        "kind": "ecapa1024-speechbrain",
        "width": shapes["blocks.0.conv.conv.weight"][0],
        "context": shapes["asp.tdnn.conv.conv.weight"][1] > aggregate,
        "mels": shapes["blocks.0.conv.conv.weight"][1],
        "dim": shapes["fc.conv.weight"][0],
        "aggregate": aggregate,
        "attention": shapes["asp.tdnn.conv.conv.weight"][0],
        "scale": 1 + count(shapes, r"blocks\.1\.res2net_block\.blocks\.(\d+)\."),
    }


def taoruijie_settings(shapes: Shapes) -> Settings:
    """TaoRuijie's ECAPA."""
    usual = {"kind": "ecapa1024-a", "statistics": "taoruijie"}
    if isinstance(shapes, Usual):
        return usual
    return {
        **usual,
        "width": shapes["conv1.weight"][0],
        "mels": shapes["conv1.weight"][1],
        "dim": shapes["fc6.weight"][0],
        "aggregate": shapes["layer4.weight"][0],
        "attention": shapes["attention.0.weight"][0],
        "scale": 1 + count(shapes, r"layer1\.convs\.(\d+)\."),
    }


def campplus_settings(shapes: Shapes) -> Settings:
    """CAM++, whose names WeSpeaker and 3D-Speaker share."""
    if isinstance(shapes, Usual):
        return {"kind": "campplus"}
    head = shapes["head.conv1.weight"][0]
    width, read = shapes["xvector.tdnn.linear.weight"][:2]
    growth = shapes["xvector.block1.tdnnd1.cam_layer.linear_local.weight"][0]
    return {
        "kind": "campplus",
        "layers": tuple(count(shapes, rf"xvector\.block{block}\.tdnnd(\d+)\.") for block in (1, 2, 3)),
        "head": head,
        "width": width,
        "growth": growth,
        "bottleneck": shapes["xvector.block1.tdnnd1.linear1.weight"][0] // growth,
        "mels": 8 * (read // head),
        "dim": shapes["xvector.dense.linear.weight"][0],
    }


def simam_settings(shapes: Shapes) -> Settings:
    """WeSpeaker's SimAM-ResNet: depth and width; the mels are eight times the rows that pooling reads."""
    if isinstance(shapes, Usual):
        return {"kind": "simam34"}
    width = shapes["front.conv1.weight"][0]
    dim, pooled = shapes["bottleneck.weight"]
    return {
        "kind": "simam",
        "blocks": tuple(count(shapes, rf"front\.layer{stage}\.(\d+)\.") for stage in range(1, 5)),
        "width": width,
        "mels": 8 * (pooled // (2 * 8 * width)),
        "dim": dim,
    }


def eres2net_settings(shapes: Shapes) -> Settings:
    """3D-Speaker's ERes2Net, or ERes2NetV2, which fuses the last two stages alone; `base` shows in the widest stage."""
    if isinstance(shapes, Usual):
        return {"kind": "eres2net"}
    width = shapes["conv1.weight"][0]
    expansion = shapes["layer1.0.conv3.weight"][0] // width
    dim, pooled = shapes["seg_1.weight"]
    return {
        "kind": "eres2net",
        "blocks": tuple(count(shapes, rf"layer{stage}\.(\d+)\.") for stage in range(1, 5)),
        "width": width,
        "base": -(-8 * shapes["layer4.0.convs.0.weight"][0] // width),
        "scale": count(shapes, r"layer1\.0\.convs\.(\d+)\."),
        "expansion": expansion,
        "fused": "last" if "layer3_ds.weight" in shapes else "all",
        "mels": 8 * (pooled // (2 * 8 * expansion * width)),
        "dim": dim,
    }


def sbresnet_settings(shapes: Shapes) -> Settings:
    """SpeechBrain's ResNet: depths, widths, and how many stages have squeeze-and-excitation."""
    if isinstance(shapes, Usual):
        return {"kind": "resnet-speechbrain"}
    widths = tuple(shapes[f"layer{stage}.0.conv1.weight"][0] for stage in range(1, 5))
    dim, pooled = shapes["fc_embed.weight"]
    return {
        "kind": "sbresnet",
        "blocks": tuple(count(shapes, rf"layer{stage}\.(\d+)\.") for stage in range(1, 5)),
        "widths": widths,
        "gated": count(shapes, r"layer(\d)\.0\.se\."),
        "mels": 8 * (pooled // (2 * widths[-1])),
        "dim": dim,
    }


def redimnet_settings(shapes: Shapes) -> Settings:
    """WeSpeaker's ReDimNet: stages, kind of block and groups; the attention's input tells `context`.

    A stage narrower than two groups is one group, so the smallest found is the size of one.
    """
    if isinstance(shapes, Usual):
        return {"kind": "redimnet-b2"}
    width = shapes["backbone.stem.0.weight"][0]
    dim, pooled = shapes["seg_1.weight"]
    size = pooled // 2
    first = "backbone.stage0.1.conv_block"
    convnext = f"{first}.norm.weight" in shapes
    return {
        "kind": "redimnet",
        "stages": tuple(_stage(shapes, i, size) for i in range(count(shapes, r"backbone\.stage(\d+)\."))),
        "width": width,
        "block": "convnext" if convnext else "gated" if f"{first}.se.squeeze.weight" in shapes else "basic",
        "group": min(shapes[name][1] for name in shapes if re.fullmatch(GROUPED, name)),
        "context": shapes["pool.linear1.weight"][1] > size,
        "mels": size // width,
        "dim": dim,
    }


def _stage(shapes: Shapes, index: int, size: int) -> tuple[int, int, int, int]:
    """Stride, blocks, expansion and reduction of a stage; size: channels times rows."""
    start = f"backbone.stage{index}"
    wide, inputs, stride = (*shapes[f"{start}.0.weight"], 1, 1)[:3]
    reduced = [shapes[name][0] for name in shapes if re.fullmatch(rf"{start}\.\d+\.red_dim_conv\.0\.weight", name)]
    blocks = count(shapes, rf"{start}\.(\d+)\.conv_block\.")
    return stride, blocks, wide // (stride * inputs), size // reduced[0] if reduced else 0


def resnetse_settings(shapes: Shapes) -> Settings:
    """voxceleb_trainer's ResNetSE34L and V2.

    Of L the mels show in the stored front end alone; without one they are left to the front end that is chosen.
    """
    if isinstance(shapes, Usual):
        return {"kind": "resnetse34v2"}
    lite = "sap_linear.weight" in shapes
    widths = tuple(shapes[f"layer{stage}.0.conv1.weight"][0] for stage in range(1, 5))
    pooled = widths[-1] if lite else shapes["attention.3.weight"][0]
    dim, read = shapes["fc.weight"]
    filters = [shapes[name][1] for name in shapes if re.fullmatch(r"torchfb\.(1\.)?mel_scale\.fb", name)]
    mels = filters[:1] if lite else [8 * (pooled // widths[-1])]
    settings = {
        "kind": "resnetse",
        "blocks": tuple(count(shapes, rf"layer{stage}\.(\d+)\.") for stage in range(1, 5)),
        "widths": widths,
        "lite": lite,
        "deviations": read > pooled,
        "dim": dim,
    }
    return {**settings, "mels": mels[0]} if mels else settings
