"""Commands that look at a model: `evaluate`, `inspect`, `bench`, `demo`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sottovoce.cli.cascade import show_evaluation
from sottovoce.cli.frame import ENGINE, MODEL, THREADS, WORKERS, command, lab_extra, opened
from sottovoce.cli.show import interval, percent, show, table


@command("evaluate")
@MODEL
@click.option("--trials", multiple=True, required=True, type=click.Path(dir_okay=False), help="Trial list; repeatable.")
@click.option("--audio", required=True, type=click.Path(file_okay=False), help="Folder the lists' paths start from.")
@click.option("--draws", type=click.IntRange(0), default=1000, show_default=True, help="Of the bootstrap; 0: none.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
@click.option("--enrolments", type=click.Path(dir_okay=False), help="Models of several files, as enroll.map: averaged.")
@WORKERS
@ENGINE
def evaluate_command(
    model: str | None,
    trials: tuple[str, ...],
    audio: str,
    draws: int,
    seed: int,
    enrolments: str | None,
    workers: int,
    engine: str,
    as_json: bool,
) -> None:
    """EER and minDCF of MODEL (.onnx; the shipped one if left out), with 95 % intervals over speakers."""
    from sottovoce.lab.evaluate import evaluate, evaluate_many

    loaded = opened(model, engine=engine)
    if hasattr(loaded, "stages"):
        show_evaluation(loaded, trials, audio, enrolments, as_json, draws=draws, seed=seed)
        return
    if len(trials) == 1:
        result = evaluate(loaded, trials[0], audio, draws=draws, seed=seed, workers=workers, enrolments=enrolments)
        show(result, as_json, f"{_evaluation([result])}{_enrolment(result)}")
        return
    result = evaluate_many(loaded, list(trials), audio, draws=draws, seed=seed, workers=workers, enrolments=enrolments)
    mean = f"mean EER % {percent(result['mean_eer'])}"
    show(result, as_json, f"{_evaluation(result['lists'])}\n{mean}{_enrolment(result)}")


def _enrolment(result: dict[str, Any]) -> str:
    return f"\nenrolment: {result['enrolment']}" if "enrolment" in result else ""


def _evaluation(lists: Sequence[dict[str, Any]]) -> str:
    heads = ["list", "trials", "targets", "EER %", "95 %", "minDCF 0.01", "minDCF 0.05", "left out"]
    rows = [
        [
            Path(one["list"]).name,
            one["trials"],
            one["targets"],
            percent(one["eer"]),
            interval(one["eer_interval"]),
            f"{one['min_dcf']['0.01']:.4f}",
            f"{one['min_dcf']['0.05']:.4f}",
            len(one["excluded"]),
        ]
        for one in lists
    ]
    return table(heads, rows)


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
    ]
    return "\n".join([table(heads, rows), "", *more])


@command("bench")
@MODEL
@click.option("--seconds", multiple=True, type=float, default=(3.0,), show_default=True, help="Length; repeatable.")
@THREADS
@click.option("--peers", is_flag=True, help="Also time int8 and float files of the same network (needs the extra lab).")
def bench_command(model: str | None, seconds: tuple[float, ...], threads: int, peers: bool, as_json: bool) -> None:
    """Time MODEL (.onnx; the shipped one if left out) on audio of --seconds, peers in the same run."""
    with lab_extra("timing peers"):
        from sottovoce.lab.bench import bench

        result = bench(model, seconds=seconds, threads=threads, peers=peers)
    show(result, as_json, _timings(result))


def _timings(result: dict[str, Any]) -> str:
    heads = ["what", "seconds", "median ms", "least ms", "cpu ms", "load ms", "bytes", "time ratio"]
    rows = [
        [
            row["name"],
            f"{row['seconds']:g}",
            *(f"{row[key]:.2f}" for key in ("median_ms", "min_ms", "cpu_ms", "load_ms")),
            f"{row['bytes']:,}",
            f"{row['ratio']:.2f}",
        ]
        for row in result["rows"]
    ]
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    return f"{table(heads, rows)}\n{threads} on {result['machine']['processor']}"


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
