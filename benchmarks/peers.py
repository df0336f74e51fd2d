"""How fast are low-bit files beside the best that runs the same network? Random weights: speeds are those of any.

    python benchmarks/peers.py --nncf PYTHON [--networks ECAPA-512 ...] [--seconds 1 3 10] [--threads 1 2] [--quick]
                               [--out results/bench.json]

PYTHON: an interpreter that has NNCF, which is never installed here. Every network's rows are written as soon as they
are measured; rows of networks, lengths and threads that are not named stay as they were, so that what needs a quiet
machine (two threads) can be measured apart. --quick: times only, neither memory nor batches.
Least processor time over alternating repetitions, so that ratios hold on a machine that does other work too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from file_contract import FRONT_END, network

from sottovoce import quant
from sottovoce.audio.talker import talker
from sottovoce.bits.plan import Plan
from sottovoce.export import build, save
from sottovoce.lab.bench import MODEL, bench, machine, slower_than, versions
from sottovoce.lab.peers import OURS
from sottovoce.lab.run import write_text

NETWORKS = {
    "ECAPA-512": "ecapa512",
    "ResNet34-32": "resnet34",
    "Gemini-60": "gemini60",
    "ECAPA-1024": "ecapa1024",
    "CAM++": "campplus",
}
BITS = 4  # every width runs the same operators
ENGINES = {"onnxruntime": MODEL, "OpenVINO": "OpenVINO, this file"}  # engine → the row that is our file in it


def measure(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Make the file of a network and time it beside its peers."""
    made = network(kind)
    quant.attach(made, Plan.of_bits(BITS, quant.quantizable(made)))
    coded = quant.coded(made)
    quant.detach(made)
    metadata = {"plan": f"{BITS} bits", "provenance": {"network": {"kind": kind}}}
    waves = [talker(3.0, seed=seed) for seed in range(4)]
    model = build(made, FRONT_END, coded, waves, metadata=metadata)
    floats = build(made, FRONT_END, {}, waves, metadata=metadata, activations="float")
    with TemporaryDirectory() as folder:
        path, exported = Path(folder, f"{kind}.onnx"), Path(folder, f"{kind}-float.onnx")
        save(model, path)
        save(floats, exported)
        found = bench(
            path,
            seconds=options.seconds,
            threads=options.threads,
            peers=True,
            nncf=options.nncf,
            exported=exported,
            footprints=not options.quick,
            batch=not options.quick,
        )
    return {"bits": BITS, **{key: found[key] for key in ("bytes", "rows", "failed", "throughput")}}


def joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What is new, and the rows and batches of before that were not measured again."""
    measured = {(row["seconds"], row["threads"]) for row in new["rows"]}
    rows = [row for row in old.get("rows", []) if (row["seconds"], row["threads"]) not in measured] + new["rows"]
    failed = [row for row in old.get("failed", []) if (row["seconds"], row["threads"]) not in measured]
    told = {"throughput": new["throughput"] or old.get("throughput", []), "failed": failed + new["failed"]}
    return {**new, "rows": rows, **told, "slower_than": slower_than(rows), "over_best": over_best(rows)}


def over_best(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Our file in each engine over the fastest peer that is not our file: {engine, of, seconds, threads, peer, ratio}.

    of: "any" peer made from the network as torch exports it, those of one engine, or also those made from our graph.
    """
    found = []
    for seconds, threads in sorted({(row["seconds"], row["threads"]) for row in rows}):
        here = {row["name"]: row["ratio"] for row in rows if (row["seconds"], row["threads"]) == (seconds, threads)}
        others = {name: ratio for name, ratio in here.items() if name not in ENGINES.values() and "plain" not in name}
        exported = {name: ratio for name, ratio in others.items() if not name.endswith(OURS)}
        for engine, ours in ENGINES.items():
            scopes = {"any": exported, engine: _within(exported, engine), f"{engine}{OURS}": _within(others, engine)}
            for scope, peers in scopes.items():
                if ours in here and peers:
                    best = min(peers, key=lambda name: peers[name])
                    ratio = here[ours] / peers[best]
                    found.append(
                        {
                            "engine": engine,
                            "of": scope,
                            "seconds": seconds,
                            "threads": threads,
                            "peer": best,
                            "ratio": ratio,
                        }
                    )
    return found


def _within(peers: dict[str, float], engine: str) -> dict[str, float]:
    return {name: ratio for name, ratio in peers.items() if name.startswith(engine)}


def main() -> None:
    """Measure the networks that are asked for and write the result after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/bench.json"))
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--seconds", nargs="*", type=float, default=[1.0, 3.0, 10.0])
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--nncf", metavar="PYTHON")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    for title in options.networks:
        began = time.monotonic()
        row = measure(NETWORKS[title], options)
        known = json.loads(options.out.read_text())["networks"] if options.out.is_file() else {}
        result = {
            "command": "python benchmarks/peers.py --nncf PYTHON" + " --quick" * options.quick,
            "machine": machine(),
            "versions": versions(),
            "networks": {**known, title: joined(known.get(title, {}), row)},
        }
        write_text(options.out, json.dumps(result, indent=1) + "\n")
        print(f"{title}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
