"""Every hostile checkpoint is refused by its error, without torch, in little time and memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sottovoce import errors
from sottovoce.lab.pickles import listing

sys.path.insert(0, str(Path(__file__).parent))
import make

sys.path.pop(0)
MEMORY = 200 << 20  # bytes
SMALL = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10)
sys.exit(done.returncode)
"""
SOURCE = Path(__file__).parents[2] / "src"

ALONE = """
import json, resource, sys, time
from sottovoce.lab.pickles import listing
from sottovoce.errors import BadCheckpoint
told = {}
for path in sys.argv[1:]:
    began = time.process_time()
    try:
        listing(path)
    except BadCheckpoint as error:
        told[path] = [type(error).__name__, time.process_time() - began]
peak = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"told": told, "peak": peak, "torch": "torch" in sys.modules}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    make.make(root)
    return root


@pytest.mark.parametrize("name", make.FILES)
def test_refused_by_name_and_reason(folder: Path, name: str) -> None:
    _, error, reason = make.FILES[name]
    with pytest.raises(getattr(errors, error), match=reason) as raised:
        listing(folder / name)
    assert type(raised.value).__name__ == error
    assert str(folder / name) in str(raised.value)
    assert not list(folder.glob("*.ran"))


def test_all_refused_in_200_mb_without_torch(folder: Path) -> None:
    paths = [str(folder / name) for name in make.FILES]
    done = subprocess.run([sys.executable, "-c", ALONE, *paths], capture_output=True, text=True, check=True, cwd=SOURCE)
    told = json.loads(done.stdout)
    assert set(told["told"]) == set(paths)
    assert told["peak"] < MEMORY
    assert not told["torch"]


def test_the_command_says_it_in_one_line(folder: Path) -> None:
    arguments = ["-m", "sottovoce", "import", str(folder / "code.pt"), "--out", str(folder / "net.safetensors")]
    # through a small process of its own: a child inherits the peak of the process that forks it
    command = [sys.executable, "-c", SMALL, sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SOURCE)
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*wants (builtins|__builtin__)\.exec, which could run code.*\n", done.stderr)
    assert int(done.stdout) < MEMORY
