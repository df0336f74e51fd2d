"""Who may import whom. Imports are read from the source, lazy ones inside functions too."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "sottovoce"

ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "bits": set(),
    "audio": set(),
    "scores": set(),
    "networks": {"audio"},
    "quant": {"bits"},
    "export": {"bits", "audio"},
    "runtime": {"audio", "scores"},
    "lab": {"bits", "audio", "scores", "networks", "quant", "export", "runtime"},
    "cli": {"runtime", "lab", "export"},
    "__init__": {"runtime"},
    "__main__": {"cli"},
}
BASE = {"click", "numpy", "onnxruntime", "openvino", "soundfile", "soxr"}
OUTSIDE: dict[str, set[str]] = {
    "errors": set(),
    "bits": {"numpy"},
    "audio": {"numpy", "soundfile", "soxr"},
    "scores": {"numpy"},
    "networks": {"torch"},
    "quant": {"torch", "numpy", "scipy"},
    "export": {"google", "onnx", "onnxruntime", "numpy", "torch"},
    "runtime": {"numpy", "onnxruntime", "openvino"},
    "lab": BASE | {"matplotlib", "nncf", "torch", "onnx", "safetensors", "tomli"},
    "cli": {"click", "numpy"},
    "__init__": set(),
    "__main__": set(),
}
WITHOUT_TORCH = [
    "lab/__init__.py",
    "lab/calibrate.py",
    "lab/bank.py",
    "lab/cascade.py",
    "lab/cascade_tuning.py",
    "lab/compare.py",
    "lab/corpora.py",
    "lab/embedding.py",
    "lab/drift.py",
    "lab/evaluate.py",
    "lab/labels.py",
    "lab/lists.py",
    "lab/papers.py",
    "lab/pool.py",
    "lab/report.py",
    "lab/scored.py",
    "lab/scoring.py",
    "lab/sources.py",
    "lab/subgroups.py",
    "lab/layouts.py",
    "lab/pickle_steps.py",
    "lab/pickles.py",
    "lab/recognise.py",
    "lab/shapes.py",
    "lab/tensors.py",
    "lab/toolkits.py",
    "lab/trials.py",
]


def room(path: Path) -> str:
    """The folder of the package that a module belongs to, or its own name on the top level."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a module imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = ("sottovoce", *path.relative_to(PACKAGE).parts)[: -node.level] if node.level else ()
            base = ".".join([*inside, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_room_is_in_the_table() -> None:
    assert {room(path) for path in modules()} <= set(ARROWS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows(path: Path) -> None:
    here, wrong = room(path), []
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] == "sottovoce":
            there = parts[1] if len(parts) > 1 else "__init__"
            allowed = there in ARROWS[here] | {here, "errors", "__version__"}
        else:
            allowed = parts[0] in sys.stdlib_module_names or parts[0] in OUTSIDE[here]
        if not allowed:
            wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {name}")
    assert not wrong, f"arrows that docs/design.md does not have: {wrong}"


def test_relative_imports_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "bits").mkdir()
    module = tmp_path / "bits" / "plan.py"
    module.write_text("def f():\n    from ..quant import attach\nfrom . import formats\n", encoding="utf-8")
    assert sorted(imports(module)) == [(2, "sottovoce.quant.attach"), (3, "sottovoce.bits.formats")]


def loaded_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys, json\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("statement", ["import sottovoce", "import sottovoce.cli"])
def test_starts_light(statement: str) -> None:
    assert not loaded_after(statement) & {"torch", "onnx", "onnxruntime", "numpy", "soundfile", "openvino"}


@pytest.mark.parametrize("path", WITHOUT_TORCH)
def test_parts_of_the_lab_need_no_torch(path: str) -> None:
    name = "sottovoce." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert not loaded_after(f"import {name}") & {"torch", "onnx", "safetensors"}
