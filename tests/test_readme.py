"""What the pages promise: commands with these options exist, every command is documented, links lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from sottovoce import cli
from sottovoce.bits.plan import Plan

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "demo/corpus/README.md",
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(sotto [^`]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> Iterator[str]:
    yield from (body for kind, body in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language)


def shell_lines(page: Path) -> Iterator[str]:
    """Commands in the page's shell blocks, continued lines joined, and those inside its sentences."""
    for body in blocks(page, "sh"):
        yield from (line for line in body.replace("\\\n", " ").splitlines() if line.strip())
    yield from INLINE.findall(page.read_text(encoding="utf-8").replace("\n", " "))


def words(line: str) -> list[str]:
    """The words of a command; brackets, ellipses and comments of the notation left out."""
    return [word.strip("[]").rstrip("…") for word in shlex.split(line, comments=True) if word.strip("[].…")]


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every `sotto` call in the documentation."""
    found = [(page.name, words(line)) for page in PAGES for line in shell_lines(page)]
    return [(page, call) for page, call in found if call[0] == "sotto" and len(call) > 1]


@pytest.mark.parametrize("call", [pytest.param(call, id=" ".join([page, *call])[:90]) for page, call in commands()])
def test_documented_commands_exist(call: list[str]) -> None:
    if call[1].startswith("--"):
        known = {option for parameter in cli.main.params for option in parameter.opts} | {"--help"}
        assert call[1] in known
        return
    assert call[1] in cli.main.commands
    known = {option for parameter in cli.main.commands[call[1]].params for option in parameter.opts} | {"--help"}
    assert {word for word in call[2:] if word.startswith("--")} <= known


def complete() -> list[list[str]]:
    """Calls of the README that can be parsed as they stand."""
    page = ROOT / "README.md"
    calls = [words(line) for body in blocks(page, "sh") for line in body.replace("\\\n", " ").splitlines()]
    return [call for call in calls if call[:1] == ["sotto"]]


@pytest.mark.parametrize("call", complete(), ids=" ".join)
def test_commands_of_the_readme_parse(call: list[str]) -> None:
    command = cli.main.commands[call[1]]
    with click.Context(cli.main) as root:
        root.obj = {}
        assert command.make_context(call[1], call[2:], parent=root).params


def test_files_the_readme_uses_exist() -> None:
    named = [word for call in complete() for word in call if word.startswith(("demo/", "models/", "recipes/"))]
    assert named
    assert [word for word in named if not (ROOT / word).exists()] == []


def test_plans_in_the_pages_can_be_read() -> None:
    plans = [call[call.index("--plan") + 1] for call in complete() if "--plan" in call]
    plans += [plan for page in PAGES for plan in re.findall(r"`'([^'`]+=[^'`]+)'`", page.read_text(encoding="utf-8"))]
    assert len(plans) >= 2
    for plan in plans:
        assert Plan.parse(str(Plan.parse(plan))) == Plan.parse(plan)


@pytest.mark.parametrize("name", sorted(cli.main.commands))
def test_every_command_is_documented(name: str) -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/commands.md has no section {name!r}"
    general = {"--json", "--traceback", "--help"}
    options = {
        option for parameter in cli.main.commands[name].params for option in parameter.opts if option[:2] == "--"
    }
    assert {option for option in options - general if option not in section[1]} == set()
    assert f"sotto {name}" in section[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = [link.split("#")[0] for link in LINK.findall(page.read_text(encoding="utf-8"))]
    local = [target for target in targets if target and not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_make_targets_exist() -> None:
    lines = [line for page in PAGES for line in shell_lines(page)]
    text = " ".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = {words(line)[1] for line in lines if line.startswith("make ")} | set(re.findall(r"`make (\w+)", text))
    assert {"demo", "test"} <= named
    assert {name for name in named if not re.search(rf"^{name}:", MAKEFILE, re.MULTILINE)} == set()


def test_python_in_the_readme_uses_public_names() -> None:
    import sottovoce

    code = "\n".join(blocks(ROOT / "README.md", "python"))
    used = {
        node.attr
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sottovoce"
    }
    assert used
    assert used <= set(sottovoce.__all__)


def test_versions_agree() -> None:
    import sottovoce

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == sottovoce.__version__
    assert f"## {sottovoce.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
