"""What the pages promise: commands with these options exist, every command is documented, links lead somewhere."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from sottovoce import cli, networks
from sottovoce.bits.formats import FORMATS
from sottovoce.bits.plan import CODEBOOKS, RULES, Plan, Spec
from sottovoce.lab import recipe

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


def flat(group: click.Group, before: str = "") -> dict[str, click.Command]:
    """Every command by its words, those of groups too: `cascade` and `cascade tune`."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found[f"{before}{name}"] = command
        if isinstance(command, click.Group):
            found |= flat(command, f"{before}{name} ")
    return found


ALL = flat(cli.main)


def called(call: list[str]) -> str:
    """The name of the command that a call begins with, after `sotto`: two words in a group, else one."""
    return next((name for name in (" ".join(call[1:3]), call[1]) if name in ALL), call[1])


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
    assert called(call) in ALL
    known = {option for parameter in ALL[called(call)].params for option in parameter.opts} | {"--help"}
    assert {word for word in call[2:] if word.startswith("--")} <= known


def complete() -> list[list[str]]:
    """Calls of the README that can be parsed as they stand."""
    page = ROOT / "README.md"
    calls = [words(line) for body in blocks(page, "sh") for line in body.replace("\\\n", " ").splitlines()]
    return [call for call in calls if call[:1] == ["sotto"]]


@pytest.mark.parametrize("call", complete(), ids=" ".join)
def test_commands_of_the_readme_parse(call: list[str]) -> None:
    name = called(call)
    with click.Context(cli.main) as root:
        root.obj = {}
        assert ALL[name].make_context(name, call[1 + len(name.split()) :], parent=root).params


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


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_command_is_documented(name: str) -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/commands.md has no section {name!r}"
    general = {"--json", "--traceback", "--help"}
    options = {option for parameter in ALL[name].params for option in parameter.opts if option[:2] == "--"}
    assert {option for option in options - general if option not in section[1]} == set()
    assert f"sotto {name}" in section[1]


def choices(name: str) -> Iterator[click.Option]:
    """The options of a command, its own ones, whose value is one of a few words."""
    for option in ALL[name].params:
        if (
            isinstance(option, click.Option)
            and isinstance(option.type, click.Choice)
            and isinstance(option.default, str)
        ):
            yield option


@pytest.mark.parametrize("name", sorted(ALL))
def test_words_that_an_option_takes_are_documented(name: str) -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for option in choices(name):
        assert {word for word in option.type.choices if f"`{word}`" not in text} == set()
        assert option.name == "engine" or f"`{option.default}` (default)" in text


def section(page: str, name: str) -> str:
    """The text below a heading of a page in docs/."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"docs/{page} has no section {name!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in a text, heads left out."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line] for line in lines]


def plain(value: object) -> object:
    """A default as TOML gives it."""
    return list(map(plain, value)) if isinstance(value, tuple) else value


@pytest.mark.parametrize("table", ["data", "augment", "loss", "optim", "quant"])
def test_every_key_of_a_recipe_is_documented_with_its_default(table: str) -> None:
    kind = {entry.name: entry for entry in dataclasses.fields(recipe.Recipe)}[table].type
    wanted = {
        entry.name: plain(entry.default)
        for entry in dataclasses.fields(getattr(recipe, str(kind)))
        if entry.default is not dataclasses.MISSING
    }
    told = {cells[0].strip("`"): cells[1].strip("`") for cells in rows(section("recipes.md", f"[{table}]"))}
    read = {key: tomllib.loads(f"value = {text}")["value"] for key, text in told.items() if text}
    assert read == wanted
    assert set(told) - set(wanted) == ({"manifest"} if table == "data" else set())


def test_every_preset_of_a_network_is_documented() -> None:
    told = {name for cells in rows(section("recipes.md", "[network]")) for name in re.findall(r"`([\w-]+)`", cells[0])}
    assert told == set(networks.PRESETS)


def test_every_family_of_formats_is_documented() -> None:
    told = {cells[0].strip("`"): cells for cells in rows(section("methods.md", "Specs")) if len(cells) == 4}
    assert {name: tuple(re.findall(r"`(\w+)`", cells[3])) for name, cells in told.items()} == RULES
    widths = {family: {entry.bits for entry in FORMATS.values() if entry.family == family} for family in RULES}
    assert {name: set(map(int, cells[1].split())) for name, cells in told.items()} == widths


def test_names_in_the_methods_exist() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    specs = re.findall(r"`(\w+/(?:layer|channel|codebook)/\w+)`", text)
    assert len(specs) >= 10
    assert [str(Spec.parse(spec)) for spec in specs] == specs
    assert all((ROOT / folder).is_dir() for folder in re.findall(r"`(recipes/[\w-]+)`", text))
    keys = {
        entry.name for kind in ("Data", "Loss", "Optim", "Quant") for entry in dataclasses.fields(getattr(recipe, kind))
    }
    assert set(re.findall(r"`(?:\[\w+\] )?(\w+) = ", text)) <= keys
    assert set(re.findall(r"`\[\w+\] (\w+)`", text)) <= keys
    assert set(CODEBOOKS) == {"kmeans", "binary"}, "docs/methods.md names the families that have codebooks a channel"


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
