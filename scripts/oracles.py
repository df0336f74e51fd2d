"""Golden embeddings from the original code of other toolkits, for tests that do without it.

Run in an environment that sees this package and torch, and into which speechbrain, modelscope and pyannote.audio are
unpacked without what they depend on. ORIGINALS is a folder with definitions that no package has, their imports made
flat: WeSpeaker's `wespeaker/{pooling_layers,ecapa_tdnn,gemini_dfresnet}.py` and TaoRuijie's `taoruijie/model.py`.

    python scripts/oracles.py ORIGINALS              thin networks → tests/lab/golden.json.gz
    python scripts/oracles.py ORIGINALS --full OUT   networks of full size, imported and compared → OUT (JSON)

There is no torchaudio: its Kaldi features are computed by kaldi-native-fbank, its mel spectrogram by torch.stft. Other
missing packages are replaced by hollow ones, which the definitions never reach.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import json
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import kaldi_native_fbank
import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "lab")]
import foreign  # noqa: E402

HOLLOW = (
    "torchaudio",
    "pandas",
    "opentelemetry",
    "torch_audiomentations",
    "torchcodec",
    "huggingface_hub",
    "modelscope",
    "optuna",
    "pytorch_metric_learning",
    "asteroid_filterbanks",
    "torchmetrics",
    "pyannote.metrics",
    "pyannote.pipeline",
    "pyannoteai",
)


class Hollow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules that stand in the place of packages which are not there."""

    def find_spec(self, name: str, *_: Any) -> Any:
        if any(name == one or name.startswith(f"{one}.") for one in HOLLOW):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = MagicMock()
        module.__name__, module.__path__, module.__spec__, module.__version__ = spec.name, [], spec, "2.13.0"
        module.TorchModel = nn.Module
        return module

    def exec_module(self, module: Any) -> None: ...


def kaldi(wave: Tensor, window: str, scale: float) -> Tensor:
    """(1, samples) → (frames, 80), as torchaudio.compliance.kaldi.fbank with dither 0."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither, options.frame_opts.window_type = 0.0, window
    options.mel_opts.num_bins = 80
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(16000, (wave.reshape(-1) * scale).tolist())
    fbank.input_finished()
    return torch.from_numpy(np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)]))


def centred(features: Tensor) -> Tensor:
    return (features - features.mean(dim=0, keepdim=True))[None]


class MelSpectrogram(nn.Module):
    """torchaudio.transforms.MelSpectrogram with its defaults: centred, mirrored, power, HTK mels without norm."""

    def __init__(self, sample_rate, n_fft, win_length, hop_length, f_min, f_max, window_fn, n_mels) -> None:
        super().__init__()
        self.stft = {"n_fft": n_fft, "hop_length": hop_length, "win_length": win_length, "return_complex": True}
        self.window = window_fn(win_length)
        mel = torch.linspace(*(2595 * np.log10(1 + f / 700) for f in (f_min, f_max)), n_mels + 2, dtype=torch.float64)
        corners = 700 * (10 ** (mel / 2595) - 1)
        slopes = corners[None] - torch.linspace(0, sample_rate // 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
        gaps = corners[1:] - corners[:-1]
        self.filters = torch.minimum(-slopes[:, :-2] / gaps[:-1], slopes[:, 2:] / gaps[1:]).clamp(min=0).float()

    def forward(self, wave: Tensor) -> Tensor:
        power = torch.stft(wave, window=self.window, pad_mode="reflect", **self.stft).abs().square()
        return (power.transpose(1, 2) @ self.filters).transpose(1, 2)


Case = tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor], str]  # definition, wave → embedding, front end asked for


def speechbrain(channels: int) -> Case:
    from speechbrain.lobes.features import Fbank
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
    from speechbrain.processing.features import InputNormalization

    features, mean = Fbank(n_mels=80), InputNormalization(norm_type="sentence", std_norm=False)
    network = ECAPA_TDNN(80, channels=[channels] * 4 + [3 * channels], lin_neurons=192)
    return network, lambda net, wave: net(mean(features(wave), torch.ones(1)))[0, 0], "speechbrain"


def modelscope(module: str, make: Callable[[Any], nn.Module]) -> Case:
    (folder,) = [Path(entry) / "modelscope" for entry in sys.path if (Path(entry) / "modelscope/models/audio").is_dir()]
    sys.modules.pop("modelscope.models.audio.sv.pooling_layers", None)
    for name in ("pooling_layers", module):
        loader = importlib.machinery.SourceFileLoader(
            f"modelscope.models.audio.sv.{name}", str(folder / f"models/audio/sv/{name}.py")
        )
        spec = importlib.machinery.ModuleSpec(loader.name, loader, origin=loader.path)
        loaded = importlib.util.module_from_spec(spec)
        if name == "pooling_layers":
            import modelscope.models.audio.sv as room

            room.pooling_layers = loaded
            sys.modules[loader.name] = loaded
        loader.exec_module(loaded)
    return make(loaded), lambda net, wave: net(centred(kaldi(wave, "povey", 1.0)))[0], "3dspeaker"


def pyannote(width: int, blocks: list[int] | None = None, bottleneck: bool = False, whole: bool = True) -> Case:
    import torchaudio

    torchaudio.compliance.kaldi.fbank = lambda wave, window_type, **_: kaldi(wave, window_type, 1.0)
    torch.vmap = lambda function: lambda many: torch.stack([function(one) for one in many])
    from pyannote.audio.models.embedding.wespeaker import WeSpeakerResNet34, resnet

    inner = resnet.ResNet(
        resnet.Bottleneck if bottleneck else resnet.BasicBlock,
        blocks or [3, 4, 6, 3],
        m_channels=width,
        feat_dim=80,
        embed_dim=256,
        two_emb_layer=False,
    )
    if not whole:
        return inner, wespeaker_embedding, "wespeaker"
    model = WeSpeakerResNet34()
    model.resnet = inner
    return model, lambda net, wave: net(wave[:, None])[0], ""


def wespeaker_embedding(network: nn.Module, wave: Tensor) -> Tensor:
    out = network(centred(kaldi(wave, "hamming", 32768.0)))
    return (out[-1] if isinstance(out, tuple) else out)[0]


def wespeaker(module: str, name: str, **settings: Any) -> Case:
    definition = getattr(importlib.import_module(module), name)
    return definition(**settings), wespeaker_embedding, "wespeaker"


def taoruijie(channels: int) -> Case:
    model = importlib.import_module("model")
    model.MelSpectrogram = MelSpectrogram
    return model.ECAPA_TDNN(channels), lambda net, wave: net(wave, False)[0], ""


def cases(thin: bool) -> dict[str, Callable[[], Case]]:
    width, channels = (4, 32) if thin else (32, 1024)
    blocks = [1, 1, 1, 1] if thin else [3, 4, 6, 3]
    dims = [4, 4, 8, 16, 32] if thin else [32, 32, 64, 128, 256]
    ecapa = {"channels": 32 if thin else 512, "feat_dim": 80, "embed_dim": 192}
    gemini = {"depths": [1, 1, 2, 1] if thin else [3, 3, 27, 3], "dims": dims, "feat_dim": 80, "embed_dim": 256}
    return {
        "speechbrain ecapa": lambda: speechbrain(channels),
        "3dspeaker ecapa": lambda: modelscope(
            "ecapa_tdnn", lambda m: m.ECAPA_TDNN(80, channels=[channels] * 4 + [3 * channels], lin_neurons=192)
        ),
        "3dspeaker resnet34": lambda: modelscope("ResNet", lambda m: m.ResNet(m_channels=width, embedding_size=192)),
        "pyannote resnet34": lambda: pyannote(width),
        "wespeaker resnet34": lambda: pyannote(width, whole=False),
        "wespeaker resnet50": lambda: pyannote(width, blocks, True, whole=False),
        "wespeaker ecapa": lambda: wespeaker("ecapa_tdnn", "ECAPA_TDNN", **ecapa),
        "wespeaker ecapa glob": lambda: wespeaker("ecapa_tdnn", "ECAPA_TDNN", **ecapa, global_context_att=True),
        "wespeaker gemini": lambda: wespeaker("gemini_dfresnet", "Gemini_DF_ResNet", **gemini),
        "taoruijie ecapa": lambda: taoruijie(channels),
    }


def instantiate(make: Callable[[], Case]) -> tuple[dict[str, np.ndarray], np.ndarray, str]:
    """Weights by name, the unit embedding of the original definition, the front end to ask for."""
    network, embedding, front_end = make()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    fixed = {n: t.numpy() for n, t in network.state_dict().items() if n.startswith("torchfbank.")}
    arrays = {**foreign.weights(shapes), **fixed}
    network.load_state_dict({name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()})
    with torch.no_grad():
        found = embedding(network.eval(), torch.from_numpy(foreign.wave())[None]).double().numpy()
    return arrays, found / np.linalg.norm(found), front_end


def write_golden() -> None:
    """Thin networks: names, shapes and embeddings."""
    found = {}
    for name, make in cases(thin=True).items():
        arrays, embedding, front_end = instantiate(make)
        shapes = {key: list(array.shape) for key, array in arrays.items()}
        found[name] = {"shapes": shapes, "embedding": [round(float(v), 8) for v in embedding], "front_end": front_end}
        print(name, len(shapes))
    text = json.dumps(found, sort_keys=True).encode()
    foreign.GOLDEN.write_bytes(gzip.compress(text, mtime=0))


def compare_full(out: Path) -> None:
    """Networks of full size: imported from what torch.save makes of them, on one recording."""
    from sottovoce.lab.bench import machine, versions
    from sottovoce.lab.imports import import_checkpoint

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source, reference, audio = (Path(folder) / name for name in ("net.pt", "reference.npy", "audio.wav"))
        import soundfile

        soundfile.write(audio, foreign.wave(), 16000, subtype="FLOAT")
        for name, make in cases(thin=False).items():
            arrays, embedding, front_end = instantiate(make)
            torch.save({key: torch.from_numpy(np.asarray(array)) for key, array in arrays.items()}, source)
            np.save(reference, embedding)
            began = time.monotonic()
            report = import_checkpoint(
                source,
                out=Path(folder) / "net.safetensors",
                front_end=front_end or None,
                check=reference,
                check_audio=audio,
            )
            row = {"case": name, "toolkit": report["toolkit"], "parameters": report["parameters"], **report["check"]}
            rows.append({**row, "seconds": round(time.monotonic() - began, 2)})
            print(rows[-1], flush=True)
    result = {
        "what": "networks of full size with random weights, imported from their toolkit's layout, against the original "
        "code of that toolkit with its own front end: unit embeddings of one recording",
        "command": f"python scripts/oracles.py ORIGINALS --full results/{out.name}",
        "machine": machine(),
        "versions": {**versions(), **packages()},
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")


def packages() -> dict[str, str]:
    """Versions of the packages whose code is the oracle, as far as they are installed."""
    found = {}
    for name in ("speechbrain", "modelscope", "pyannote.audio", "kaldi-native-fbank"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def main(arguments: list[str]) -> None:
    originals = Path(arguments[0])
    sys.path[:0] = [str(originals / "wespeaker"), str(originals / "taoruijie")]
    sys.meta_path.insert(0, Hollow())
    torch.set_num_threads(1)
    if "--full" in arguments:
        compare_full(Path(arguments[arguments.index("--full") + 1]))
    else:
        write_golden()


if __name__ == "__main__":
    main(sys.argv[1:])
