"""What the toolkits' own definitions make of seeded weights → tests/networks/originals.json.

    python scripts/golden_networks.py --voxceleb-trainer FOLDER

Run it where `wespeaker-unofficial` 0.0.2, `modelscope` 1.40.2 and `speechbrain` 1.1.2 are installed without their
dependencies beside torch, FOLDER being a copy of clovaai/voxceleb_trainer. Features go in, so torchaudio is not needed:
its import is replaced by an empty stand-in, as are modelscope's registry of models and voxceleb_trainer's front end.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import types
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import seeded
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "networks" / "originals.json"
LONGEST = 64  # frames that are surely enough

Definition = Callable[[], nn.Module]


class _Exp(nn.Module):
    """Stands for a mel front end: what voxceleb_trainer takes the logarithm of, plus 1e-6."""

    def __init__(self, **_: object) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp() - 1e-6


class _Registry:
    def register_module(self, *_: object, **__: object) -> Callable[[type], type]:
        return lambda cls: cls


def stand_in(name: str, **entries: object) -> None:
    """Put a module with the entries in the place of one that is not installed."""
    module = types.ModuleType(name)
    module.__path__ = []  # type: ignore[attr-defined]
    vars(module).update(entries)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)


def bare(name: str) -> None:
    """Put packages without what their __init__ imports in the place of the one named and of those around it."""
    parts = name.split(".")
    found = importlib.util.find_spec(parts[0])
    assert found is not None
    root = Path(str(found.origin)).parent
    for depth in range(1, len(parts) + 1):
        stand_in(".".join(parts[:depth]))
        sys.modules[".".join(parts[:depth])].__path__ = [str(root.joinpath(*parts[1:depth]))]


def prepare(voxceleb_trainer: Path) -> None:
    """Stand-ins for all that a definition imports and a network does not need."""
    for name in ("torchaudio", "torchaudio.compliance", "torchaudio.compliance.kaldi"):
        stand_in(name)
    stand_in("torchaudio.transforms", MelSpectrogram=_Exp)
    for name in ("modelscope.models.audio.sv", "wespeaker.models", "speechbrain.lobes.models"):
        bare(name)
    vars(sys.modules["modelscope.models"]).update(MODELS=_Registry(), TorchModel=nn.Module)
    anything = types.SimpleNamespace(campplus_sv="", eres2net_sv="", eres2netv2_sv="", speaker_verification="")
    stand_in("modelscope.metainfo", Models=anything)
    stand_in("modelscope.utils")
    stand_in("modelscope.utils.constant", Tasks=anything)
    stand_in("modelscope.utils.device", create_device=None)
    stand_in("speechbrain.nnet")
    stand_in("speechbrain.nnet.linear", Linear=None)  # of its classifier alone, as the next
    stand_in("speechbrain.nnet.normalization", BatchNorm1d=None)
    sys.path.insert(0, str(voxceleb_trainer))


def full() -> dict[str, Definition]:
    """The published sizes by the name of our preset."""
    campplus, simam, redimnet = (
        importlib.import_module(f"wespeaker.models.{name}") for name in ("campplus", "samresnet", "redimnet")
    )
    dtdnn, base, two = (
        importlib.import_module(f"modelscope.models.audio.sv.{name}") for name in ("DTDNN", "ERes2Net", "ERes2NetV2")
    )
    rouvier = importlib.import_module("speechbrain.lobes.models.ResNet")
    lite, second = (importlib.import_module(f"models.ResNetSE34{name}") for name in ("L", "V2"))
    return {
        "campplus": lambda: campplus.CAMPPlus(),
        "campplus-3dspeaker": lambda: dtdnn.CAMPPlus(embedding_size=192),
        "simam34": lambda: simam.SimAM_ResNet34_ASP(),
        "simam100": lambda: simam.SimAM_ResNet100_ASP(),
        "eres2net": lambda: base.ERes2Net(embed_dim=512),
        "eres2netv2": lambda: two.ERes2NetV2(),
        "resnet-speechbrain": lambda: rouvier.ResNet(),
        **{f"redimnet-b{size}": getattr(redimnet, f"ReDimNetB{size}") for size in range(7)},
        "resnetse34l": lambda: lite.MainModel(nOut=512),
        "resnetse34v2": lambda: second.MainModel(nOut=512, encoder_type="ASP", n_mels=64),
    }


def thin() -> dict[str, tuple[Definition, int]]:
    """Small networks of every kind, and the rows they read."""
    campplus, simam, redimnet = (
        importlib.import_module(f"wespeaker.models.{name}") for name in ("campplus", "samresnet", "redimnet")
    )
    dtdnn, base, two = (
        importlib.import_module(f"modelscope.models.audio.sv.{name}") for name in ("DTDNN", "ERes2Net", "ERes2NetV2")
    )
    rouvier = importlib.import_module("speechbrain.lobes.models.ResNet")
    lite, second = (importlib.import_module(f"models.ResNetSE34{name}") for name in ("L", "V2"))
    narrow = {"growth_rate": 8, "bn_size": 2, "init_channels": 32}

    def redim(block: str, stages: list[tuple[int, ...]], **settings: object) -> nn.Module:
        """stages: stride, blocks, expansion, reduction; the definition has kernel sizes, unused, between them."""
        setup = [(stride, blocks, expansion, [], reduction or None) for stride, blocks, expansion, reduction in stages]
        return redimnet.ReDimNet(24, block_2d_type=block, stages_setup=setup, embed_dim=16, **settings)

    def resnetse(module: types.ModuleType, encoder: str, mels: int) -> nn.Module:
        return module.ResNetSE(module.SEBasicBlock, [3, 4, 6, 3], [8, 16, 16, 32], 16, encoder, mels)

    return {
        "campplus": (lambda: campplus.CAMPPlus(embed_dim=16, **narrow), 80),
        "campplus of 3D-Speaker": (lambda: dtdnn.CAMPPlus(embedding_size=16, **narrow), 80),
        "simam": (lambda: simam.SimAM_ResNet34_ASP(in_planes=8, embed_dim=16), 80),
        "eres2net": (lambda: base.ERes2Net(m_channels=8, embed_dim=16), 80),
        "eres2netv2": (lambda: two.ERes2NetV2(m_channels=16, embed_dim=16), 80),
        "eres2netv2 w24s4ep4": (
            lambda: two.ERes2NetV2(m_channels=8, embed_dim=16, baseWidth=48, scale=4, expansion=4),
            80,
        ),
        "sbresnet": (lambda: rouvier.ResNet(channels=[8, 8, 16, 16], lin_neurons=16), 80),
        "redimnet convnext": (
            lambda: redim(
                "convnext_like", [(1, 1, 1, 0), (2, 1, 1, 4)], C=8, group_divisor=4, global_context_att=False
            ),
            24,
        ),
        "redimnet basic": (
            lambda: redim("basic_resnet", [(1, 1, 2, 8), (2, 1, 2, 8)], C=4, group_divisor=1, global_context_att=True),
            24,
        ),
        "redimnet gated": (
            lambda: redim(
                "basic_resnet_fwse", [(1, 1, 2, 8), (3, 1, 1, 4)], C=4, group_divisor=2, global_context_att=True
            ),
            24,
        ),
        "resnetse34l": (lambda: resnetse(lite, "SAP", 40), 40),
        "resnetse34l with deviations": (lambda: resnetse(lite, "ASP", 40), 40),
        "resnetse34v2": (lambda: resnetse(second, "ASP", 64), 64),
    }


def tensors(network: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes, without those of a front end."""
    return [(name, tuple(t.shape)) for name, t in network.state_dict().items() if not name.startswith("torchfb")]


def embed(network: nn.Module, rows: int, frames: int) -> torch.Tensor:
    """The unit embedding (dim,) of seeded features, in float64."""
    x = torch.from_numpy(seeded.features(rows, frames)).double()
    trainer = type(network).__module__.startswith("models.")
    with torch.no_grad():
        found = network(x if trainer else x.transpose(1, 2))
    raw = found[-1] if isinstance(found, tuple) else found
    return nn.functional.normalize(raw.reshape(1, -1))[0]


def least_frames(network: nn.Module, rows: int) -> int:
    """By bisection: from this many frames on the embedding is finite."""
    low, high = 0, LONGEST  # low is too short
    while high - low > 1:
        middle = (low + high) // 2
        try:
            enough = bool(torch.isfinite(embed(network, rows, middle)).all())
        except (RuntimeError, ValueError):
            enough = False
        low, high = (low, middle) if enough else (middle, high)
    return high


def describe(network: nn.Module) -> dict[str, object]:
    """What the full size of a definition is known by."""
    found = tensors(network)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"parameters": parameters, "tensors": len(found), "sha256": seeded.digest(found)}


def measure(network: nn.Module, rows: int) -> dict[str, object]:
    """What a small network with seeded weights computes."""
    found = tensors(network)
    state = {name: torch.from_numpy(array) for name, array in seeded.weights(dict(found)).items()}
    missing = network.load_state_dict(state, strict=False).missing_keys
    assert all(name.endswith("num_batches_tracked") or name.startswith("torchfb") for name in missing), missing
    network.double().eval()
    embeddings = [[round(float(value), 7) for value in embed(network, rows, frames)] for frames in seeded.FRAMES]
    return {
        "rows": rows,
        "min_frames": least_frames(network, rows),
        "sha256": seeded.digest(found),
        "embeddings": embeddings,
    }


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--voxceleb-trainer", type=Path, required=True)
    prepare(parser.parse_args().voxceleb_trainer)
    packages = ("wespeaker-unofficial", "modelscope", "speechbrain")
    content = {
        "made_by": "scripts/golden_networks.py",
        "packages": {name: version(name) for name in packages},
        "full": {name: describe(build()) for name, build in full().items()},
        "thin": {name: measure(build(), rows) for name, (build, rows) in thin().items()},
    }
    OUT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
