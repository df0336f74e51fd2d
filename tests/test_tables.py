"""The tool that makes tables from results: fills marked blocks, notices stale ones, refuses unknown ones."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PAGE = "before\n<!-- table: two -->\nold\n<!-- end -->\nafter\n"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "scripts" / "tables.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fills_only_what_is_between_the_marks(tables: ModuleType) -> None:
    filled = tables.fill(PAGE, "page", {"two": lambda: "| 2 |\n"})
    assert filled == "before\n<!-- table: two -->\n| 2 |\n<!-- end -->\nafter\n"
    assert tables.fill(filled, "page", {"two": lambda: "| 2 |\n"}) == filled


def test_an_unknown_table_is_refused(tables: ModuleType) -> None:
    with pytest.raises(SystemExit, match="two"):
        tables.fill(PAGE, "page", {"three": lambda: ""})


def test_markdown(tables: ModuleType) -> None:
    assert tables.markdown(["a", "b"], [["x", 1]]) == "| a | b |\n| --- | ---: |\n| x | 1 |\n"


def test_interval_is_in_per_cent(tables: ModuleType) -> None:
    assert tables.with_interval({"eer": 0.0512, "eer_interval": [0.04, 0.0625]}) == "5.12 % (4.00 to 6.25)"
    assert tables.with_interval({"eer": 0.0512, "eer_interval": None}) == "5.12 %"


def test_what_a_width_costs(tables: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(eer: float) -> dict[str, object]:
        return {"list": "a.txt", "eer": eer, "eer_interval": [0.01, 0.2], "min_dcf": {"0.01": 0.5}}

    models = [
        {"name": "float", "bytes": 8000, "mean_eer": 0.10, "lists": [measured(0.08), measured(0.12)]},
        {"name": "4 bit", "bytes": 1000, "mean_eer": 0.11, "lists": [measured(0.09), measured(0.13)]},
    ]
    models[1] |= {"relative_eer": 0.1, "relative_eer_interval": [-0.05, 0.25]}
    monkeypatch.setattr(tables, "results", lambda name: {"models": models})
    assert tables.real().splitlines()[-1] == "| 4 bit | 1,000 | 8.0 | 11.00 % | +10.0 % (-5.0 to +25.0) | 0.500 |"
    assert tables.real_lists().splitlines()[-1] == "| a | 12.00 % (1.00 to 20.00) | 13.00 % (1.00 to 20.00) |"


def test_methods_stand_in_rows_and_widths_in_columns(tables: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def cell(method: str, bits: int, seed: int, relative: float) -> dict[str, object]:
        return {
            "method": method,
            "bits": bits,
            "seed": seed,
            "mean_eer": 0.1 * (1 + relative),
            "relative_eer": relative,
        }

    models = [{"mean_eer": 0.1}, cell("a", 4, 1, 0.1), cell("a", 2, 1, 0.5), cell("b", 2, 1, 0.2), cell("b", 2, 2, 9.0)]
    monkeypatch.setattr(tables, "results", lambda name: {"models": models})
    assert tables.quantizers().splitlines() == [
        "| float: 10.00 % | 4 bits | 2 bits |",
        "| --- | ---: | ---: |",
        "| a | 11.00 %, +10.0 % | 15.00 %, +50.0 % |",
        "| b |  | 12.00 %, +20.0 % |",
    ]


def test_ratios_are_to_the_fastest_peer(tables: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = [
        {"name": "this file", "ratio": 1.0},
        {"name": "onnxruntime static int8, Conv Add Relu", "ratio": 1.25},
        {"name": "onnxruntime static int8, all operators", "ratio": 2.0},
        {"name": "torch float", "ratio": 3.5},
    ]
    row = {"network": "N", "bits": 4, "bytes": 1000, "limit_bytes": 1200, "speed": speed, "front_end": {"share": 0.04}}
    row["engines"] = [{"identical_to_twin": True}, {"identical_to_twin": True}]
    untimed = {
        **{k: v for k, v in row.items() if k not in ("speed", "front_end")},
        "engines": [{"identical_to_twin": False}],
    }
    monkeypatch.setattr(tables, "results", lambda name: {"rows": [row, untimed]})
    assert tables.file_contract().splitlines()[2:] == [
        "| N | 4 | 1,000 | 1,200 | yes | 0.80 | 3.50 | 4.0 % |",
        "| N | 4 | 1,000 | 1,200 | no |  |  |  |",
    ]


def test_check_tells_a_stale_table(tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text(PAGE, encoding="utf-8")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "TABLES", {"two": lambda: "| 2 |\n"})
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    with pytest.raises(SystemExit, match=r"README\.md"):
        tables.main()
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == PAGE
    monkeypatch.setattr(sys, "argv", ["tables.py"])
    tables.main()
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    tables.main()


def test_the_tables_of_this_project_are_as_the_results_say() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "tables.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
