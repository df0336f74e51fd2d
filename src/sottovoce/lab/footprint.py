"""Memory and loading of one peer in a process of its own, where no other peer has left anything.

python -m sottovoce.lab.footprint ENGINE FILE SECONDS THREADS      → {"load_ms": ..., "peak_mb": ...}
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from sottovoce.audio.talker import talker
from sottovoce.lab.peers import Peer, open_peer

SOURCE = Path(__file__).parents[2]  # so that the other process imports this very package


def measured(peer: Peer, seconds: float, threads: int) -> dict[str, float]:
    """Milliseconds until a peer is loaded, its engine imported, and peak resident megabytes of loading and one run."""
    command = [sys.executable, "-m", __name__, peer.engine, str(peer.path), str(seconds), str(threads)]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=found)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def main(engine: str, path: str, seconds: str, threads: str) -> None:
    """Load and run once; print what it took."""
    peer = Peer("", engine, Path(path), 0)
    if "openvino" in engine:
        import openvino  # noqa: F401 (not part of loading a file)
    elif engine == "torch":
        import torch  # noqa: F401
    else:
        import onnxruntime  # noqa: F401
    wave = talker(float(seconds), seed=1)
    began = time.process_time()
    run = open_peer(peer, int(threads))
    load_ms = 1e3 * (time.process_time() - began)
    if run is None:
        raise SystemExit(1)
    run(wave)
    print(json.dumps({"load_ms": load_ms, "peak_mb": _peak_mb()}))


def _peak_mb() -> float:
    """Peak resident megabytes of this process. On Linux ru_maxrss would also hold that of the process it came from."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10
    except (OSError, IndexError):
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, else kilobytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    main(*sys.argv[1:])
