"""Make the tables in README.md and docs/ from results/*.json. Numbers are never typed by hand.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. With --check nothing is written and the exit code is 1
when a table is not what its results say.

Usage: python scripts/tables.py [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Results = Mapping[str, Any]


def markdown(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; the first column to the left, all others to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def percent(fraction: float) -> str:
    """A fraction in per cent."""
    return f"{100 * fraction:.2f} %"


def with_interval(one: Results) -> str:
    """EER and its 95 % interval over speakers, where it is known."""
    if not one["eer_interval"]:
        return percent(one["eer"])
    low, high = one["eer_interval"]
    return f"{percent(one['eer'])} ({100 * low:.2f} to {100 * high:.2f})"


def change(model: Results) -> str:
    """EER against the first file's in per cent of it, with the 95 % interval of the difference where it is known."""
    relative, bounds = 100 * model["relative_eer"], model.get("relative_eer_interval")
    return f"{relative:+.1f} %" + (f" ({100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f})" if bounds else "")


def fill(text: str, where: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """The text with every table made anew. Raises SystemExit for a table that nobody makes."""

    def make(block: re.Match[str]) -> str:
        name = block["name"]
        if name not in tables:
            raise SystemExit(f"{where}: no table {name!r}; known: {', '.join(sorted(tables))}")
        return f"{block[1]}{tables[name]()}{block[3]}"

    return BLOCK.sub(make, text)


def results(name: str) -> Results:
    """One file of results/."""
    path = ROOT / "results" / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SystemExit(f"{path}: a table needs it and it is not there") from None


def baseline() -> str:
    """The baseline without a network, list by list."""
    found = results("baseline_mfcc")
    rows = [
        [
            Path(one["list"]).stem,
            f"{one['trials']:,}",
            one["speakers"],
            with_interval(one),
            f"{one['min_dcf']['0.01']:.3f}",
        ]
        for one in found["lists"]
    ]
    last = ["mean", "", "", percent(found["mean_eer"]), ""]
    return markdown(["list", "trials", "speakers", "EER (95 %)", "minDCF 0.01"], [*rows, last])


def real() -> str:
    """Cost of each width on recorded speech, from {models: [{name, bytes, mean_eer, lists}]}; float first."""
    models = results("real")["models"]
    first = models[0]
    rows = [
        [
            model["name"],
            f"{model['bytes']:,}",
            f"{first['bytes'] / model['bytes']:.1f}",
            percent(model["mean_eer"]),
            change(model) if model is not first else "",
            f"{mean(one['min_dcf']['0.01'] for one in model['lists']):.3f}",
        ]
        for model in models
    ]
    return markdown(["weights", "bytes", "times smaller", "mean EER", "against float", "mean minDCF 0.01"], rows)


def real_lists() -> str:
    """EER of each width on each list."""
    models = results("real")["models"]
    heads = ["list", *(model["name"] for model in models)]
    by_list = zip(*(model["lists"] for model in models), strict=True)
    return markdown(heads, [[Path(ones[0]["list"]).stem, *map(with_interval, ones)] for ones in by_list])


def label_free() -> str:
    """4 bits without labels or training beside 4 bits trained, on the same lists in one run."""
    first, *others = results("label_free")["models"]
    told = [(first, ""), *((model, change(model)) for model in others)]
    rows = [[model["name"], f"{model['bytes']:,}", percent(model["mean_eer"]), against] for model, against in told]
    return markdown(["weights", "bytes", "mean EER", "against float"], rows)


def mixed() -> str:
    """Mixed widths beside one width for all layers, both without labels."""
    first, *others = results("mixed")["models"]
    rows = [
        [
            model["name"],
            f"{model['bytes']:,}",
            f"{1 - model['cosine_to_first']:.5f}",
            *(percent(mean(one["eer"] for one in part)) for part in _apart(model)),
            change(model) if model is not first else "",
        ]
        for model in (first, *others)
    ]
    heads = ["weights", "bytes", "1 - cosine to float", "mean EER", "under stress", "both, against float"]
    return markdown(heads, rows)


def compress_time() -> str:
    """Seconds of label-free compression."""
    found = results("compress_time")
    rows = [
        [row["network"], f"{row['weights']:,}", row["recordings"], f"{row['seconds']:.0f}", f"{row['bytes']:,}"]
        for row in found["rows"]
    ]
    return markdown(["network", "weights", "recordings", f"seconds, {found['threads']} threads", "bytes, 4 bits"], rows)


def quantizers() -> str:
    """Mean EER of every method at every width, against the same float network."""
    models = results("quantizers")["models"]
    return _grid_of([model for model in models[1:] if model["seed"] == models[1]["seed"]], models[0])


def quantizers_pairs() -> str:
    """Ours against k-means training as its papers have it, at the same width."""
    found = results("quantizers")["pairs"]
    rows = [[pair["against"].partition(", seed")[0], change(pair)] for pair in found]
    return markdown(["against", "EER of ours"], rows)


def quantizers_resnet() -> str:
    """The comparison on a thin ResNet."""
    return _of_seeds(results("quantizers_resnet"))


def quantizers_dfresnet() -> str:
    """The comparison on a thin DF-ResNet."""
    return _of_seeds(results("quantizers_dfresnet"))


def quantizers_stress() -> str:
    """Methods at 2 and 1 bits on the lists as they are and under stress, against the same float network."""
    return _of_seeds(results("quantizers_stress"))


def _of_seeds(found: Results) -> str:
    """Float and every method and width, the mean of its seeds: rates, also under stress where measured, and bytes."""
    first, *cells = found["models"]
    groups = {group["name"]: group for group in found["groups"]}
    under_stress = bool(_apart(first)[1])
    rows = [["float", "", *_means([first], under_stress), "", f"{first['bytes']:,}"]]
    for name in dict.fromkeys(cell["name"].partition(", seed")[0] for cell in cells):
        seeds = [cell for cell in cells if cell["name"].partition(", seed")[0] == name]
        told = groups[name] if len(seeds) > 1 else seeds[0]
        size = round(mean(cell["bytes"] for cell in seeds))
        rows.append([name, len(seeds), *_means(seeds, under_stress), change(told), f"{size:,}"])
    heads = ["mean EER", *(["under stress", "both, against float"] if under_stress else ["against float"])]
    return markdown(["method", "seeds", *heads, "bytes"], rows)


def _means(cells: Sequence[Results], under_stress: bool) -> list[str]:
    """Mean EER over lists and seeds, and over the lists under stress."""
    parts = zip(*(_apart(cell) for cell in cells), strict=True)
    rates = [mean(one["eer"] for part in group for one in part) for group in list(parts)[: 1 + under_stress]]
    return [percent(rate) for rate in rates]


def pairs_of(name: str) -> Callable[[], str]:
    """Ours against k-means training at the same width, over all seeds where there are several."""

    def table() -> str:
        found = results(name)
        several = {group["name"] for group in found["groups"] if len(group["files"]) > 1}
        pairs = [p for p in found["pairs"] if p["name"] in several or _is_alone(p["name"], several)]
        rows = [[p["name"].partition(", seed")[0], p["against"].partition(", seed")[0], change(p)] for p in pairs]
        return markdown(["EER of", "against", "(95 % interval)"], rows)

    return table


def _is_alone(name: str, several: set[str]) -> bool:
    """Whether a cell is the only one of its method and width."""
    method, seed, _ = name.partition(", seed")
    return bool(seed) and method not in several


def _apart(model: Results) -> tuple[list[Results], list[Results]]:
    """The lists as they are, and those under stress."""
    hard = [one for one in model["lists"] if one["list"].endswith("-stress.txt")]
    return [one for one in model["lists"] if one not in hard], hard


def _grid_of(cells: Sequence[Results], first: Results) -> str:
    """Methods by widths; the float network's own rate in the heading."""
    widths = sorted({cell["bits"] for cell in cells}, reverse=True)
    found = {(cell["method"], cell["bits"]): cell for cell in cells}
    rows = [
        [
            method,
            *(
                f"{percent(found[method, bits]['mean_eer'])}, {change(found[method, bits])}"
                if (method, bits) in found
                else ""
                for bits in widths
            ),
        ]
        for method in dict.fromkeys(cell["method"] for cell in cells)
    ]
    return markdown([f"float: {percent(first['mean_eer'])}", *(f"{bits} bits" for bits in widths)], rows)


def paper_a() -> str:
    """8 bits in one group of layers at a time, in the smallest file within the loss of EER, and our own widths."""
    found = results("paper_a")
    rows = [[row["group"], *_against_float(row)] for row in found["table"]]
    rows.append([f"chosen: {', '.join(found['chosen']['groups'])}", *_against_float(found["chosen"])])
    names = {Path(name).stem for name in found["lists"]}
    models = results("real")["models"]
    base = _mean_of(models[0], names)
    for model in (m for m in models[1:] if m["name"] in ("8 bits", "4 bits", "3 bits")):
        change, share = _mean_of(model, names) - base, 1 - model["bytes"] / models[0]["bytes"]
        rows.append([f"`sotto compress`, {model['name']}", f"{100 * share:.2f} %", f"{100 * change:+.2f}"])
    return markdown(["8 bits in", "bytes saved", "EER, absolute in %"], rows)


def _against_float(row: Results) -> list[str]:
    return [f"{100 * row['share_saved']:.2f} %", f"{100 * row['eer_change']:+.2f}"]


def _mean_of(model: Results, names: set[str]) -> float:
    """Mean EER over the lists of these names."""
    return mean(one["eer"] for one in model["lists"] if Path(one["list"]).stem in names)


def file_contract() -> str:
    """Size, identity and speed of files with random weights, as benchmarks/file_contract.py measures them."""
    rows = [
        [
            row["network"],
            row["bits"],
            f"{row['bytes']:,}",
            f"{row['limit_bytes']:,}",
            "yes" if all(engine["identical_to_twin"] for engine in row["engines"]) else "no",
            _time_ratio(row, "onnxruntime static int8", inverse=True),
            _time_ratio(row, "torch float"),
            f"{100 * row['front_end']['share']:.1f} %" if "front_end" in row else "",
        ]
        for row in results("file_contract")["rows"]
    ]
    heads = ["network", "bits", "bytes", "limit", "as its int8 twin", "time ÷ int8", "torch float ÷ time", "front end"]
    return markdown(heads, rows)


def training_cost() -> str:
    """A quantized step over a float step, by spec and network."""
    rows = results("training_cost")["rows"]
    names = list(dict.fromkeys(row["network"] for row in rows))
    found = {(row["spec"], row["network"]): row["ratio"] for row in rows}
    specs = dict.fromkeys(row["spec"] for row in rows)
    return markdown(["spec", *names], [[f"`{spec}`", *(f"{found[spec, n]:.2f}" for n in names)] for spec in specs])


def frontend() -> str:
    """How far the front end is from Kaldi's, and both from float64."""
    found = results("frontend")
    exact, times = found["difference_from_float64"], found["processor_ms_per_3_s"]
    rows = [
        [
            name,
            f"{100 * found['difference'][name]['share_within_2e-4']:.3f} %" if name in found["difference"] else "",
            f"{found['difference'][name]['largest']:.4f}" if name in found["difference"] else "",
            f"{exact[name]['largest']:.4f}",
            f"{times[name]:.1f}",
        ]
        for name in exact
    ]
    heads = ["front end", "within 2e-4 of Kaldi", "farthest from Kaldi", "farthest from float64", "ms for 3 s"]
    return markdown(heads, rows)


def _time_ratio(row: Results, peer: str, inverse: bool = False) -> str:
    """Time of the fastest peer of that name over the file's, or the other way round; empty where it was not timed."""
    ratios = [one["ratio"] for one in row.get("speed", []) if one["name"].startswith(peer)]
    if not ratios:
        return ""
    return f"{1 / min(ratios) if inverse else min(ratios):.2f}"


def bench(threads: int = 1) -> str:
    """Our file in each engine over the best peer, 3 s, front end included; of several threads wall time is told."""
    found = results("bench")["networks"]
    rows = []
    for name, one in found.items():
        best = {(r["engine"], r["of"]): r for r in one["over_best"] if r["seconds"] == 3.0 and r["threads"] == threads}
        times = {r["name"]: r for r in one["rows"] if r["seconds"] == 3.0 and r["threads"] == threads}
        for engine, ours in (("onnxruntime", "this file"), ("OpenVINO", "OpenVINO, this file")):
            if ours in times:
                within, over, own = (best[engine, of] for of in (engine, "any", f"{engine}, of this file's graph"))
                rows.append(
                    [
                        name,
                        engine,
                        f"{times[ours]['cpu_ms' if threads == 1 else 'median_ms']:.1f}",
                        f"{within['ratio']:.2f} ({within['peer']})",
                        f"{over['ratio']:.2f} ({over['peer']})",
                        f"{own['ratio']:.2f}",
                        f"{1 / times['onnxruntime, plain int8 weights']['ratio']:.2f}",
                    ]
                )
    heads = ["÷ best peer in it", "÷ best peer of all", "÷ best in it, with our graph", "÷ its twin"]
    return markdown(["network", "our file in", "ms", *heads], rows)


def sherpa() -> str:
    """Cosines between sherpa-onnx and our files, and what each of its ways costs."""
    found = results("sherpa")
    rows = [
        [f"sherpa-onnx, {row['file']}", f"{row['mean']:.4f}", f"{row['least']:.4f}"]
        for row in found["cosine_to_our_file"]
    ]
    rows += [
        [f"our features, {name} as in sherpa-onnx", f"{one['mean']:.4f}", f"{one['least']:.4f}"]
        for name, one in found["causes"].items()
    ]
    return markdown(["what", "mean cosine", "least"], rows)


def cascade() -> str:
    """Cascades on speakers they were not tuned on: how many runs keep to the limits, and all trials at once."""
    heads = ["cascade, lists, tuned for", "runs within both limits", "EER against the last stage, all trials"]
    heads += ["mean EER of the lists", "first stage answers", "ms a fresh pair, of the last stage's"]
    rows = []
    for name in ("cascade_sizes", "cascade_widths"):
        for one in results(name)["on_scores"]:
            half, cross = one["halvings"], one["cross_fit"]
            rows.append(
                [
                    ", ".join(one[key] for key in ("cascade", "scope", "target")),
                    f"{half['kept_both']} of {half['runs']}",
                    change(cross),
                    f"{100 * cross['relative_mean_eer']:+.1f} %",
                    f"{100 * cross['stopped'][0]:.0f} %",
                    f"{cross['ms_fresh_pair']:.1f} of {cross['last_ms_fresh_pair']:.1f}",
                ]
            )
    return markdown(heads, rows)


def cascade_ceiling() -> str:
    """Runs that keep to a cascade's limits, tuned on others and in hindsight, and how fine the limit is."""
    heads = ["cascade, lists", "tuned on others", "in hindsight", "EER of all trials in hindsight", "one target trial"]
    rows = [
        [
            f"{one['cascade']}, {one['scope']}{', weighed' if one['weighed'] else ''}",
            *(f"{one[key]['kept_both']} of {one[key]['runs']}" for key in ("tuned", "in_hindsight")),
            f"{100 * one['all_trials_in_hindsight']['relative_eer']:+.1f} %",
            f"{100 / one['targets_missed']:.1f} % of the EER",
        ]
        for one in results("cascade_ceiling")["rows"]
    ]
    return markdown(heads, rows)


def scoring_ways() -> str:
    """Ways of scoring, file by file: mean EER over lists, and EER and minDCF of all lists together."""
    found = results("scoring_ways")["rows"]
    files = list(dict.fromkeys(row["file"] for row in found))
    heads = [
        "way",
        *(f"{column}, {_file(one)}" for one in files for column in ("mean EER", "EER of all", "minDCF 0.01")),
    ]
    rows = []
    for table, way in dict.fromkeys((row["table"], row["way"]) for row in found):
        cells = [f"{table}: {way}"]
        for file in files:
            row = next((row for row in found if (row["file"], row["table"], row["way"]) == (file, table, way)), None)
            if row is None:
                cells += [""] * 3
                continue
            low, high = row["all"]["min_dcf_interval"]["0.01"]
            cells += [percent(row["mean_eer"]), with_interval(row["all"])]
            cells.append(f"{row['all']['min_dcf']['0.01']:.3f} ({low:.3f} to {high:.3f})")
        rows.append(cells)
    return markdown(heads, rows)


def _file(name: str) -> str:
    return name if name == "float" else f"{name} bits"


def pseudo_calibration() -> str:
    """Calibration without labels beside one with them, on labelled trials of other speakers."""
    rows = []
    for name, model in results("pseudo_calibration")["models"].items():
        known = [
            ("labelled trials", model["labels"]),
            *((f"pseudo-trials of {k}", v) for k, v in model["pseudo"].items()),
        ]
        for source, one in known:
            at = one["at_eer_threshold"]
            own = percent(one["eer_of_pseudo_trials"]) if "eer_of_pseudo_trials" in one else percent(model["eer"])
            costs = [f"{value:.3f}" for value in (one["cllr"], one["line"]["cllr"], one["min_cllr"])]
            rows.append([name, source, own, *costs, percent(at["misses"]), percent(at["false_accepts"])])
    heads = ["file", "calibrated on", "EER of those", "Cllr", "by a line", "least", "misses", "false accepts"]
    return markdown(heads, rows)


def published() -> str:
    """A trained network that came as a published .onnx: drift after every stage, and the file."""
    rows = []
    for one in results("published")["rows"]:
        drift = {stage["name"]: f"{stage['drift']:.4f}" for stage in one["stages"]}
        told = one["damage"]["pseudo_trials"]
        stages = [drift.get(name, "") for name in ("nearest", "round", "follow")]
        file = [f"{one['cosine_to_checkpoint']['mean']:.4f}", f"{one['cosine_to_checkpoint']['least']:.4f}"]
        rates = [percent(told["eer"]), percent(told["float_eer"])]
        rows.append([one["came_as"], one["bits"], f"{one['bytes']:,}", *stages, *file, *rates])
    heads = ["came as", "bits", "bytes", "`nearest`", "`round`", "`follow`", "mean cosine", "least"]
    return markdown([*heads, "EER, pseudo-trials", "in float"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "published": published,
    "pseudo-calibration": pseudo_calibration,
    "baseline": baseline,
    "bench": bench,
    "bench-two-threads": lambda: bench(threads=2),
    "cascade": cascade,
    "cascade-ceiling": cascade_ceiling,
    "file-contract": file_contract,
    "compress-time": compress_time,
    "frontend": frontend,
    "label-free": label_free,
    "mixed": mixed,
    "paper-a": paper_a,
    "quantizers": quantizers,
    "quantizers-pairs": quantizers_pairs,
    "quantizers-resnet": quantizers_resnet,
    "quantizers-resnet-pairs": pairs_of("quantizers_resnet"),
    "quantizers-dfresnet": quantizers_dfresnet,
    "quantizers-dfresnet-pairs": pairs_of("quantizers_dfresnet"),
    "quantizers-stress-pairs": pairs_of("quantizers_stress"),
    "quantizers-stress": quantizers_stress,
    "real": real,
    "real-lists": real_lists,
    "scoring-ways": scoring_ways,
    "sherpa": sherpa,
    "training-cost": training_cost,
}


def pages() -> list[Path]:
    """Every page that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "demo").rglob("*.md"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when a table is stale")
    check = parser.parse_args().check
    stale = []
    for path in pages():
        before = path.read_text(encoding="utf-8")
        after = fill(before, str(path.relative_to(ROOT)), TABLES)
        if after != before:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(after, encoding="utf-8")
    if check and stale:
        sys.exit(f"stale tables in {', '.join(stale)}: run `make tables`")
    print(f"tables: {'written in ' + ', '.join(stale) if stale else 'as the results say'}", file=sys.stderr)


if __name__ == "__main__":
    main()
