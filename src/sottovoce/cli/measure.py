"""Commands that look at a model: `evaluate`, `inspect`, `bench`, `demo`."""

from __future__ import annotations

from typing import Any

import click

from sottovoce.cli.cascade import show_evaluation
from sottovoce.cli.frame import ENGINE, MODEL, WORKERS, command, lab_extra, opened, options
from sottovoce.cli.rates import evaluation
from sottovoce.cli.show import interval, percent, show, table

WAYS = click.Choice(["whole", "segments", "crops"])
ENROLMENT = click.Choice(["mean", "scores", "concatenate"])
COHORT = [
    click.option("--cohort", type=click.Path(), help="Folder or manifest of strangers, for AS-norm."),
    click.option("--top", type=click.IntRange(0), default=300, show_default=True, help="Of the cohort; 0: no AS-norm."),
    click.option("--cohort-by", type=click.Choice(["utterance", "speaker"]), default="utterance", show_default=True),
    click.option("--deviation", type=click.Choice(["population", "sample"]), default="population", show_default=True),
    click.option("--subtract-mean", is_flag=True, help="The cohort's mean, from every embedding."),
]
GROUPS = [
    click.option("--manifest", type=click.Path(), help="Table of the recordings, for --by."),
    click.option("--by", multiple=True, help="Column to make groups by, `age` or `age:12,18`; repeatable."),
]


@command("evaluate")
@MODEL
@click.option("--trials", multiple=True, required=True, type=click.Path(dir_okay=False), help="Trial list; repeatable.")
@click.option("--audio", required=True, type=click.Path(file_okay=False), help="Folder the lists' paths start from.")
@click.option("--draws", type=click.IntRange(0), default=1000, show_default=True, help="Of the bootstrap; 0: none.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
@click.option("--prior", "priors", multiple=True, type=float, help="Of a target, for minDCF; repeatable.  [0.01, 0.05]")
@click.option(
    "--scoring", "way", type=WAYS, default="whole", show_default=True, help="What of a recording is compared."
)
@click.option("--enrolments", type=click.Path(dir_okay=False), help="Models of several recordings, as enroll.map.")
@click.option("--enrolment", type=ENROLMENT, default="mean", show_default=True, help="How those are joined.")
@options(COHORT)
@options(GROUPS)
@click.option("--scores", type=click.Path(dir_okay=False), help="Also write every score here (.npz).")
@click.option("--skip-missing", is_flag=True, help="Leave out trials whose recordings do not exist.")
@WORKERS
@ENGINE
def evaluate_command(
    model: str | None,
    trials: tuple[str, ...],
    audio: str,
    draws: int,
    seed: int,
    priors: tuple[float, ...],
    way: str,
    enrolments: str | None,
    enrolment: str,
    cohort: str | None,
    top: int,
    cohort_by: str,
    deviation: str,
    subtract_mean: bool,
    manifest: str | None,
    by: tuple[str, ...],
    scores: str | None,
    skip_missing: bool,
    workers: int,
    engine: str,
    as_json: bool,
) -> None:
    """EER and minDCF of MODEL (.onnx; the shipped one if left out), with 95 % intervals over speakers.

    A rate marked * stands on fewer than 30 errors of some kind.
    """
    from sottovoce.lab.evaluate import evaluate_many
    from sottovoce.lab.scoring import Scoring

    loaded = opened(model, engine=engine)
    if hasattr(loaded, "stages"):
        show_evaluation(loaded, trials, audio, enrolments, as_json, draws=draws, seed=seed)
        return
    scoring = Scoring(way, enrolment, cohort, top, cohort_by, deviation, subtract_mean)
    result = evaluate_many(
        loaded,
        list(trials),
        audio,
        draws=draws,
        seed=seed,
        workers=workers,
        enrolments=enrolments,
        scoring=scoring,
        priors=priors or (0.01, 0.05),
        manifest=manifest,
        by=by,
        scores_out=scores,
        strict=not skip_missing,
    )
    lists = result["lists"]
    show(lists[0] if len(trials) == 1 else result, as_json, evaluation(lists))


@command("inspect")
@click.argument("model", type=click.Path(dir_okay=False))
def inspect_command(model: str, as_json: bool) -> None:
    """Layers, formats, sizes and the work of 3 s of audio, read back from MODEL (.onnx), and what its metadata says.

    MACs: multiplications with addition, the front end left out. Bit-operations: MACs × bits of the weight × bits of the
    activation, 32 where one is in float.
    """
    with lab_extra("inspection"):
        from sottovoce.export.inspect import describe
    found = describe(model)
    show(found, as_json, _inspection(found))


def _inspection(found: dict[str, Any]) -> str:
    heads = ["layer", "shape", "format", "bits", "bytes", "million MACs", "giga bit-operations"]
    rows = [
        [
            layer["name"],
            "×".join(map(str, layer["shape"])),
            layer.get("format", "float"),
            layer.get("bits", 32),
            f"{layer['bytes']:,}" if "bytes" in layer else "",
            f"{layer['macs'] / 1e6:.2f}",
            f"{layer['bit_operations'] / 1e9:.2f}",
        ]
        for layer in [*found["layers"], *found["float_layers"]]
    ]
    weights = sum(layer["bytes"] for layer in found["layers"])
    more = [
        f"file {found['bytes']:,} bytes, of which packed weights {weights:,}",
        f"{found['macs'] / 1e9:.3f} billion MACs and {found['bit_operations'] / 1e9:,.1f} billion bit-operations for "
        f"{found['seconds']:g} s of audio",
        f"plan {found['plan']}",
        *_calibration(found),
    ]
    return "\n".join([table(heads, rows), "", *more])


def _calibration(found: dict[str, Any]) -> list[str]:
    """What the scores of a file mean, and by which trials."""
    about = found.get("calibration")
    if not about:
        return ["no calibration: sotto calibrate makes one"]
    points = ", ".join(found.get("operating_points") or {}) or "none"
    line = f"calibration from {about.get('measured_on')}; operating points: {points}"
    proviso = "not from labelled trials: rough; sotto calibrate with trials of yours replaces it"
    return [line, *([proviso] if about.get("pseudo") else [])]


@command("bench")
@MODEL
@click.option("--seconds", multiple=True, type=float, default=(3.0,), show_default=True, help="Length; repeatable.")
@click.option("--threads", multiple=True, type=click.IntRange(1), default=(1,), show_default=True, help="Repeatable.")
@click.option("--peers", is_flag=True, help="Also int8 and float of the same network, memory, batches (extra lab).")
@click.option("--nncf", type=click.Path(dir_okay=False), help="The python that has NNCF.  [default: this one]")
def bench_command(
    model: str | None,
    seconds: tuple[float, ...],
    threads: tuple[int, ...],
    peers: bool,
    nncf: str | None,
    as_json: bool,
) -> None:
    """Time MODEL (.onnx; the shipped one if left out) on audio of --seconds, peers in the same run."""
    with lab_extra("timing peers"):
        from sottovoce.lab.bench import bench

        counts = threads[0] if len(threads) == 1 else threads
        result = bench(model, seconds=seconds, threads=counts, peers=peers, nncf=nncf, footprints=peers, batch=peers)
    show(result, as_json, _timings(result))


def _timings(result: dict[str, Any]) -> str:
    heads = ["what", "seconds", "threads", "median ms", "least ms", "cpu ms", "load ms", "peak MB", "bytes", "ratio"]
    rows = [
        [
            row["name"],
            f"{row['seconds']:g}",
            row["threads"],
            *(f"{row[key]:.2f}" for key in ("median_ms", "min_ms", "cpu_ms", "load_ms")),
            f"{row['peak_mb']:.0f}" if "peak_mb" in row else "",
            f"{row['bytes']:,}",
            f"{row['ratio']:.2f}",
        ]
        for row in result["rows"]
    ]
    batches = [
        f"{row['name']}: {row['one']:.1f} recordings of 3 s a second one by one, {row['batch']:.1f} in batches of 16"
        for row in result["throughput"]
    ]
    slower = [
        f"this file took {row['times']:.2f} times as long as {row['name']} ({row['seconds']:g} s, {row['threads']} "
        f"thread{'s' if row['threads'] > 1 else ''})"
        for row in result["slower_than"]
    ]
    return "\n".join([table(heads, rows), *batches, *slower, f"on {result['machine']['processor']}"])


@command("demo")
@click.option("--out", type=click.Path(file_okay=False), default="demo/out", show_default=True)
@click.option("--checkpoint", type=click.Path(dir_okay=False), help="A float checkpoint.  [default: the repository's]")
@click.option("--corpus", type=click.Path(file_okay=False), help="A folder with trials.txt.  [default: demo/corpus]")
def demo_command(out: str, checkpoint: str | None, corpus: str | None, as_json: bool) -> None:
    """Compress a network to 8, 4 and 2 bits, measure each file, verify two pairs: a tour on synthetic voices."""
    with lab_extra("the demo"):
        from sottovoce.lab.demo import demo
    result = demo(out, checkpoint=checkpoint, corpus=corpus)
    show(result, as_json, _tour(result))


def _tour(result: dict[str, Any]) -> str:
    heads = ["weights", "bytes", "EER %", "95 %", "minDCF 0.01", "ms per 3 s", "times faster", "times smaller"]
    rows = [
        [
            row["weights"],
            f"{row['bytes']:,}",
            percent(row["eer"]),
            interval(row["eer_interval"]),
            f"{row['min_dcf']['0.01']:.3f}",
            f"{row['ms']:.1f}",
            f"{row['speed_ratio']:.2f}",
            f"{row['size_ratio']:.2f}",
        ]
        for row in result["rows"]
    ]
    about = (
        f"{result['trials']} trials between {result['speakers']} synthetic voices: a tour, not a measure of accuracy."
    )
    pairs = [f"{pair['pair']}: {pair['decision']} (score {pair['score']:.3f})" for pair in result["pairs"]]
    return "\n".join([table(heads, rows), about, "", f"sotto verify with {result['verified_with']}:", *pairs])
