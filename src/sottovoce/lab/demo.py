"""The tour: compress a checkpoint to 8, 4 and 2 bits, measure each file, verify two pairs. On synthetic voices only."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sottovoce.audio.talker import talker
from sottovoce.errors import BadInput
from sottovoce.lab.bench import interleave
from sottovoce.lab.compress import compress, export
from sottovoce.lab.evaluate import evaluate
from sottovoce.lab.lists import Trials, read_trials
from sottovoce.runtime.engine import load
from sottovoce.runtime.verify import verify

REPOSITORY = Path(__file__).parents[3]
CHECKPOINT = REPOSITORY / "models" / "ecapa256.safetensors"
CORPUS = REPOSITORY / "demo" / "corpus"
WIDTHS = (8, 4, 2)
VERIFIED = 4  # bits of the file that the two pairs are verified with
SECONDS = 3.0


@dataclass(frozen=True)
class Places:
    """Where the tour reads and writes."""

    checkpoint: Path
    corpus: Path
    out: Path

    @property
    def trials(self) -> Path:
        """The trial list of the corpus."""
        return self.corpus / "trials.txt"

    def file(self, bits: int | None) -> Path:
        """The .onnx of a width; None = float."""
        return self.out / (f"{self.checkpoint.stem}-{bits}bit.onnx" if bits else f"{self.checkpoint.stem}-float.onnx")


def demo(
    out: str | Path = "demo/out", *, checkpoint: str | Path | None = None, corpus: str | Path | None = None
) -> dict[str, Any]:
    """Take the tour; returns its table and the two decisions.

    out: folder for the files made.   checkpoint, corpus: those of the repository when left out.
    Rows: weights, bytes, eer (fraction), eer_interval, min_dcf, ms (least for 3 s of audio on one thread, the files
    taking turns), and how many times faster and smaller than the float file. Raises BadInput where the files of the
    repository are not there.
    """
    places = _places(out, checkpoint, corpus)
    files = _make_files(places)
    rows = [_measure(path, weights, places) for weights, path in files.items()]
    for row, least in zip(rows, _milliseconds(files), strict=True):
        row["ms"] = least
        row["speed_ratio"] = rows[0]["ms"] / row["ms"]
        row["size_ratio"] = rows[0]["bytes"] / row["bytes"]
    chosen = rows[1 + WIDTHS.index(VERIFIED)]
    return {
        "synthetic": True,
        "corpus": str(places.corpus),
        "checkpoint": str(places.checkpoint),
        "trials": rows[0]["trials"],
        "speakers": rows[0]["speakers"],
        "rows": rows,
        "verified_with": chosen["model"],
        "pairs": _verify_pairs(places, chosen["eer_threshold"]),
    }


def _places(out: str | Path, checkpoint: str | Path | None, corpus: str | Path | None) -> Places:
    places = Places(Path(checkpoint or CHECKPOINT), Path(corpus or CORPUS), Path(out))
    for path, option in ((places.checkpoint, "--checkpoint"), (places.trials, "--corpus")):
        if not path.is_file():
            raise BadInput(
                f"demo: {path} is not a file; run it in a clone of the repository, or name one with {option}"
            )
    places.out.mkdir(parents=True, exist_ok=True)
    return places


def _make_files(places: Places) -> dict[str, Path]:
    """The float file first, then one of each width; keyed by what the table calls their weights."""
    _say(f"float: writing {places.file(None)}")
    export(places.checkpoint, out=places.file(None), float_weights=True)
    files = {"float": places.file(None)}
    for bits in WIDTHS:
        _say(f"{bits} bits: compressing to {places.file(bits)}")
        compress(places.checkpoint, bits=bits, data=places.corpus, out=places.file(bits), method="round")
        files[f"{bits} bit"] = places.file(bits)
    return files


def _measure(path: Path, weights: str, places: Places) -> dict[str, Any]:
    """A row of the table: size of the file and its accuracy on the corpus."""
    _say(f"{weights}: evaluating {path} on synthetic voices")
    found = evaluate(load(path), places.trials, places.corpus)
    kept = ("trials", "speakers", "eer", "eer_interval", "eer_threshold", "min_dcf")
    return {
        "weights": weights,
        "model": str(path),
        "bytes": path.stat().st_size,
        **{key: found[key] for key in kept},
    }


def _milliseconds(files: dict[str, Path]) -> list[float]:
    """Least wall time of each file on one thread; all take turns in every round."""
    _say(f"timing the {len(files)} files on {SECONDS:g} s of audio, one thread")
    turns = interleave({weights: load(path).embed for weights, path in files.items()}, talker(SECONDS, seed=1))
    return [1e3 * min(wall for wall, _ in turns[weights]) for weights in files]


def _verify_pairs(places: Places, threshold: float) -> list[dict[str, Any]]:
    """The first target and the first nontarget trial of the list, decided at the file's EER threshold."""
    trials, model = read_trials(places.trials), load(places.file(VERIFIED))
    pairs = []
    for label, name in ((1, "the same voice"), (0, "different voices")):
        a, b = _first(trials, label)
        decision = verify(model, places.corpus / a, places.corpus / b, threshold=threshold)
        pairs.append({"pair": name, "a": a, "b": b, "decision": decision.decision, "score": decision.score})
    return pairs


def _first(trials: Trials, label: int) -> tuple[str, str]:
    index = list(trials.labels).index(label)
    return trials.enrol[index], trials.test[index]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
