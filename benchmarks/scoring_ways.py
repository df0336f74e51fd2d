"""What do ways of scoring change: views of a recording, several enrolment recordings, a cohort of strangers?

    python benchmarks/scoring_ways.py --root FOLDER --out results/scoring_ways.json float=float.onnx 4=4bit.onnx

FOLDER holds trials/*.txt, dev.tsv (path, speaker, gender; a speaker's name begins with that of the list), the cohort's
recordings in cohort/, and train.tsv (path, speaker); some of its speakers, drawn by seed, are the other cohort. Ways of
one recording a side are measured on the lists, each and all together; ways of several enrolment recordings on lists
made here: of every speaker with more than --enrol recordings so many enrol, the others are tested against all models of
the list's speakers of that gender. EER and minDCF with 95 % intervals by bootstrap over speakers; every row has the
difference of its EER to the first row of its table on the same lists. OUT is written after each row; a row that it
holds is not measured again.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from sottovoce.errors import SottoError
from sottovoce.lab.bench import machine, versions
from sottovoce.lab.evaluate import evaluate_many
from sottovoce.lab.lists import Utterance, read_manifest
from sottovoce.lab.run import write_text
from sottovoce.lab.scoring import Scoring
from sottovoce.runtime.engine import Model, load

TOGETHER = "all lists"
SPEAKERS, RECORDINGS = 600, 3  # of the cohort of training speakers: how many, and of each at most


class Remembered:
    """A model that embeds the same samples once, however many ways look at them."""

    def __init__(self, model: Model) -> None:
        self.model, self.id, self.path = model, model.id, model.path
        self.min_samples, self.rate = model.min_samples, model.rate
        self._known: dict[bytes, Any] = {}

    def embed(self, wave: Any) -> Any:
        """As `Model.embed`, refusals too."""
        key = hashlib.sha256(np.ascontiguousarray(wave)).digest()
        if key not in self._known:
            try:
                self._known[key] = self.model.embed(wave)
            except SottoError as error:
                self._known[key] = error
        if isinstance(self._known[key], SottoError):
            raise self._known[key]
        return self._known[key]


def training(root: Path, folder: Path) -> Path:
    """A manifest of a few recordings each of some training speakers."""
    spoken: dict[str, list[Utterance]] = {}
    for row in read_manifest(root / "train.tsv"):
        spoken.setdefault(row.speaker, []).append(row)
    drawn = np.random.default_rng(0).permutation(sorted(spoken))[:SPEAKERS]
    rows = [(str((root / row.path).absolute()), who) for who in sorted(drawn) for row in spoken[who][:RECORDINGS]]
    path = folder / "training-speakers.tsv"
    path.write_text("path\tspeaker\n" + "".join(f"{name}\t{who}\n" for name, who in rows), encoding="utf-8")
    return path


def ways(root: Path, folder: Path) -> dict[str, Scoring]:
    """Ways of scoring two recordings. The first is the plain one."""
    utterances, speakers = str(root / "cohort"), str(training(root, folder))
    return {
        "whole": Scoring(),
        "segments": Scoring(way="segments"),
        "crops": Scoring(way="crops"),
        "mean of utterances subtracted": Scoring(cohort=utterances, top=0, subtract_mean=True),
        "mean of training speech subtracted": Scoring(cohort=speakers, top=0, subtract_mean=True),
        "AS-norm, 300 utterances": Scoring(cohort=utterances),
        "AS-norm, 300 utterances, sample deviation": Scoring(cohort=utterances, deviation="sample"),
        "AS-norm, 300 training speakers": Scoring(cohort=speakers, cohort_by="speaker"),
        "AS-norm, 300 training speakers, sample deviation": Scoring(
            cohort=speakers, cohort_by="speaker", deviation="sample"
        ),
        "mean of training speech subtracted, AS-norm, 300 training speakers": Scoring(
            cohort=speakers, cohort_by="speaker", subtract_mean=True
        ),
        "segments, AS-norm, 300 training speakers": Scoring(way="segments", cohort=speakers, cohort_by="speaker"),
    }


def enrolled(rows: Sequence[Utterance], folder: Path, several: int) -> tuple[list[Path], dict[int, Path]]:
    """Trial lists of models against recordings, and what enrols them: the first one recording, and `several`."""
    spoken: dict[str, list[Utterance]] = {}
    for row in rows:
        spoken.setdefault(row.speaker, []).append(row)
    usable = {who: said for who, said in sorted(spoken.items()) if len(said) > several}
    lines: dict[str, list[str]] = {}
    for model, said in usable.items():
        name, gender = model.split("-")[0], said[0].fields.get("gender")
        for who, others in usable.items():
            if who.split("-")[0] == name and others[0].fields.get("gender") == gender:
                lines.setdefault(name, []).extend(f"{int(who == model)} {model} {row.path}" for row in others[several:])
    lists = [folder / f"{name}.txt" for name, each in lines.items() if any(line[0] == "0" for line in each)]
    for path in lists:
        path.write_text("\n".join(lines[path.stem]) + "\n", encoding="utf-8")
    maps = {count: folder / f"{count}-recordings.map" for count in (1, several)}
    for count, path in maps.items():
        path.write_text(
            "".join(f"{who} {' '.join(row.path for row in said[:count])}\n" for who, said in usable.items()),
            encoding="utf-8",
        )
    return lists, maps


def joined(lists: Sequence[Path], folder: Path) -> Path:
    """All lists as one."""
    path = folder / f"{TOGETHER}.txt"
    path.write_text("".join(one.read_text(encoding="utf-8") for one in lists), encoding="utf-8")
    return path


def measured(
    model: Remembered, lists: Sequence[Path], root: Path, scoring: Scoring, draws: int, enrolments: Path | None = None
) -> dict[str, Any]:
    """The rates of one way on all lists, each and together."""
    found = evaluate_many(
        model, lists, root, scoring=scoring, draws=draws, quiet=True, enrolments=enrolments, calibrate=None
    )
    kept = ("trials", "targets", "speakers", "eer", "eer_interval", "few_errors", "min_dcf", "min_dcf_interval")
    each = {path.stem: {name: one[name] for name in kept} for path, one in zip(lists, found["lists"], strict=True)}
    together = each.pop(TOGETHER)
    said = {name: found[name] for name in ("scoring", "enrolment", "normalisation")}
    return {**said, "mean_eer": float(np.mean([one["eer"] for one in each.values()])), "lists": each, "all": together}


def against(row: dict[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """The row with what it changes against the plain way, relative."""
    return {
        **row,
        "relative_mean_eer": row["mean_eer"] / first["mean_eer"] - 1,
        "relative_eer": row["all"]["eer"] / first["all"]["eer"] - 1,
    }


def write(out: Path, result: dict[str, Any]) -> None:
    """Write the results so far under a temporary name, then rename."""
    write_text(out, json.dumps(result, indent=1) + "\n")


def plan(root: Path, folder: Path, several: int) -> list[tuple[str, str, list[Path], Scoring, Path | None]]:
    """Every row to measure: table, way, lists, scoring, enrolments."""
    (folder / "pairs").mkdir()
    (folder / "models").mkdir()
    lists = sorted((root / "trials").glob("*.txt"))
    pairs = [*lists, joined(lists, folder / "pairs")]
    found = [("one recording a side", name, pairs, how, None) for name, how in ways(root, folder).items()]
    of_models, maps = enrolled(read_manifest(root / "dev.tsv"), folder / "models", several)
    several_lists = [*of_models, joined(of_models, folder / "models")]
    table = f"{several} recordings enrol"
    found.append((table, "the first recording alone", several_lists, Scoring(), maps[1]))
    for mode in ("mean", "scores", "concatenate"):
        found.append((table, mode, several_lists, Scoring(enrolment=mode), maps[several]))
    return found


@click.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--root", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--draws", default=1000, show_default=True, help="Bootstrap draws.")
@click.option("--enrol", "several", default=3, show_default=True, help="Recordings that enrol a model.")
def main(files: tuple[str, ...], root: Path, out: Path, draws: int, several: int) -> None:
    """Measure FILES, each NAME=FILE, in every way, and write OUT."""
    result = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"rows": []}
    rows = result["rows"]
    result = {
        "what": "ways of scoring on the same recordings; nearly all target pairs come from one session",
        "command": f"python benchmarks/scoring_ways.py --root FOLDER --out {out.name} --draws {draws} "
        f"{' '.join(files)}",
        "bootstrap_draws": draws,
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
    }
    with tempfile.TemporaryDirectory() as folder:
        todo = plan(root, Path(folder), several)
        for text in files:
            name, _, file = text.partition("=")
            model = Remembered(load(file))
            for table, way, lists, scoring, enrolments in todo:
                here = [row for row in rows if (row["file"], row["table"]) == (name, table)]
                if any(row["way"] == way for row in here):
                    continue
                row = measured(model, lists, root, scoring, draws, enrolments)
                row = {"file": name, "id": model.id, "table": table, "way": way, **row}
                rows.append(against(row, here[0] if here else row))
                write(out, result)
                told = f"{name}, {way}: mean EER {100 * row['mean_eer']:.2f} %, all {100 * row['all']['eer']:.2f} %"
                print(told, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
