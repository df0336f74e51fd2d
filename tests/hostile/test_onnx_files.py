"""Files that lie, or want what a network needs not, are refused by a named error, with little work and memory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.cli import main
from sottovoce.errors import SottoError
from sottovoce.export.source import read_source
from sottovoce.lab import onnx_read

sys.path.insert(0, str(Path(__file__).parent))
import onnx_files

SOURCE = Path(__file__).parents[2] / "src"
CHILD = """
import json, sys, time
from sottovoce.errors import BadModel
from sottovoce.export.source import read_source
found = {}
for path in sys.argv[1:]:
    began = time.process_time()
    try:
        read_source(path)
        told = "taken"
    except BadModel as error:
        told = str(error)
    peak = next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    found[path] = [told, time.process_time() - began, peak]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> list[Path]:
    return onnx_files.make(tmp_path_factory.mktemp("hostile"))


def test_each_is_refused_with_little_work_and_memory(hostile: list[Path]) -> None:
    command = [sys.executable, "-c", CHILD, *map(str, hostile)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = json.loads(done.stdout)
    assert len(found) == len(hostile) > 20
    for path, (told, seconds, peak_mb) in found.items():
        assert told.startswith(path), f"{Path(path).name}: {told}"
        assert seconds < 2, f"{Path(path).name}: {seconds:.1f} s of processor time"
        assert peak_mb < 200, f"{Path(path).name}: {peak_mb:.0f} MB"


def test_the_command_tells_in_one_line(hostile: list[Path], tmp_path: Path) -> None:
    path = next(one for one in hostile if one.stem == "external_data")
    done = CliRunner().invoke(main, ["compress", str(path), "--bits", "4", "--out", str(tmp_path / "m.onnx")])
    assert done.exit_code == 2
    assert "external data" in done.output
    assert not (tmp_path / "m.onnx").exists()


def test_an_honest_file_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "honest.onnx"
    path.write_bytes(onnx_files.honest().SerializeToString())
    assert [node.op_type for node in read_source(path).graph.node] == ["ReduceMean", "MatMul"]


WHOLE = onnx_files.honest().SerializeToString()


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255), cut=st.integers(0, len(WHOLE)))
def test_damage_is_an_error_of_ours_or_none(tmp_path_factory, place: int, value: int, cut: int) -> None:
    damaged = bytearray(WHOLE[: len(WHOLE) - cut % 7])
    damaged[min(place, len(damaged) - 1)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(bytes(damaged))
    with contextlib.suppress(SottoError):
        read_source(path)


@settings(max_examples=40, deadline=None)
@given(place=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255))
def test_a_damaged_graph_is_an_error_of_ours_or_a_network(tmp_path_factory, place: int, value: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[place] = value
    path = tmp_path_factory.getbasetemp() / "graph.onnx"
    path.write_bytes(bytes(damaged))
    with contextlib.suppress(SottoError):
        assert onnx_read.read(path, "wespeaker").dim > 0
