"""Every hostile checkpoint is refused by its error, without torch, with little work and memory."""

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
WORK_S = 2.0  # of processor time; a tenth of it is usual
SMALL = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10)
sys.exit(done.returncode)
"""
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it raises ModuleNotFoundError
from sottovoce.cli import main
main(prog_name="sotto")
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


def test_all_refused_in_200_mb_and_2_s_of_work_without_torch(folder: Path) -> None:
    paths = [str(folder / name) for name in make.FILES]
    done = subprocess.run([sys.executable, "-c", ALONE, *paths], capture_output=True, text=True, check=True, cwd=SOURCE)
    told = json.loads(done.stdout)
    assert set(told["told"]) == set(paths)
    assert told["peak"] < MEMORY
    slow = {Path(path).name: seconds for path, (_, seconds) in told["told"].items() if not seconds < WORK_S}
    assert not slow
    assert not told["torch"]


def imported(path: Path) -> tuple[int, str, int]:
    """Exit code, what is said and largest memory of the command on a file, where there is no torch."""
    arguments = ["import", str(path), "--out", str(path.with_name("net.safetensors"))]
    # through a small process of its own: a child inherits the peak of the process that forks it
    command = [sys.executable, "-c", SMALL, sys.executable, "-c", WITHOUT_TORCH, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SOURCE)
    return done.returncode, done.stderr, int(done.stdout)


def test_the_command_says_it_in_one_line(folder: Path) -> None:
    code, told, peak = imported(folder / "code.pt")
    assert code == 2
    assert re.fullmatch(r"error: .*wants (builtins|__builtin__)\.exec, which could run code.*\n", told)
    assert peak < MEMORY


@pytest.mark.parametrize("name", make.NETWORKS)
def test_networks_are_judged_without_torch(folder: Path, name: str) -> None:
    maker, reason = make.NETWORKS[name]
    maker(folder / name)
    assert len(listing(folder / name)) > 50
    code, told, peak = imported(folder / name)
    assert code == 2
    assert re.fullmatch(rf"error: {re.escape(str(folder / name))}: {reason}\n", told)
    assert peak < MEMORY


def test_the_network_that_they_are_made_of_is_taken(folder: Path) -> None:
    make.known_network(folder / "ones.pt", {})
    code, told, _ = imported(folder / "ones.pt")
    assert (code, "import needs torch" in told) == (2, True), "only what is refused needs none"
