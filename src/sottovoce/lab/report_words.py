"""Values as a report writes them: rates in per cent, intervals, bytes; an empty cell where something is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from sottovoce.lab.sources import Found, Json

FEW = "*"


def percent(value: Any, digits: int = 2, sign: bool = False) -> str:
    """A fraction as per cent, with its sign where it is a change."""
    return "" if value is None else f"{100 * float(value):{'+' if sign else ''}.{digits}f}"


def between(bounds: Any, digits: int = 2, sign: bool = False) -> str:
    """A 95 % interval of fractions, in per cent."""
    return f"{percent(bounds[0], digits, sign)} to {percent(bounds[1], digits, sign)}" if bounds else ""


def with_interval(value: Any, bounds: Any, digits: int = 2, sign: bool = False) -> str:
    """A fraction in per cent, its interval behind it."""
    return (
        f"{percent(value, digits, sign)} ({between(bounds, digits, sign)})" if bounds else percent(value, digits, sign)
    )


def count(value: Any) -> str:
    """A whole number in groups of three digits."""
    return "" if value is None else f"{int(value):,}"


def decimal(value: Any, digits: int = 3) -> str:
    """A number with so many digits behind the point."""
    return "" if value is None else f"{float(value):.{digits}f}"


def marked(text: str, few: Any) -> str:
    """A rate, with a mark where fewer than 30 errors stand behind it."""
    return f"{text}{FEW}" if few and text else text


def filled(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns that are empty in every row."""
    kept = [index for index in range(len(heads)) if any(row[index] for row in rows)]
    return [heads[index] for index in kept], [[row[index] for index in kept] for row in rows]


def model_name(model: Json) -> str:
    """The name that a comparison gives a model, or that of its file."""
    return str(model.get("name") or model.get("model") or "model")


def file_name(model: Json) -> str:
    """The name of a model's file, without the folder it was in."""
    return PurePath(model_name(model)).name


def list_name(one: Json) -> str:
    """A trial list by its name, the size and the beginning of its hash, which tell lists of one name apart."""
    digest = str(one.get("list_sha256") or "")[:8]
    return f"{one.get('list', 'list')} {digest}".rstrip()


def whisker(values: Sequence[float], bounds: Sequence[Any]) -> list[list[float]] | None:
    """Distances from values down and up to their intervals, as matplotlib wants them; 0 where one is not known."""
    if not any(bounds):
        return None
    pairs = [(max(v - b[0], 0.0), max(b[1] - v, 0.0)) if b else (0.0, 0.0) for v, b in zip(values, bounds, strict=True)]
    return [list(side) for side in zip(*pairs, strict=True)]


def models_of(found: Found) -> list[tuple[str, list[Json]]]:
    """Measured models: for each comparison its name and models; those of evaluations together, largest first."""
    groups: list[tuple[str, list[Json]]] = [(one.name, list(one.content["models"])) for one in found.of("comparison")]
    sizes = sizes_of(found)
    alone: list[Json] = []
    for source in found.of("evaluation"):
        content = source.content
        lists = [content] if "eer" in content else list(content["lists"])
        who = content if "model" in content else lists[0]
        name = who.get("model") or source.name
        rates = [one["eer"] for one in lists if one.get("eer") is not None]
        known = {
            "mean_eer": sum(rates) / len(rates) if rates else None,
            "bytes": sizes.get(str(who.get("model_sha256"))),
        }
        alone.append(
            {**{key: who.get(key) for key in ("model_sha256", "model_id")}, "name": name, "lists": lists, **known}
        )
    alone.sort(key=lambda one: -(one["bytes"] or 0))
    return [*groups, ("sotto evaluate", alone)] if alone else groups


def sizes_of(found: Found) -> dict[str, int]:
    """Bytes of model files by hash, from whatever says so."""
    named = [(one.content.get("sha256"), one.content.get("bytes")) for one in found.of("inspection", "timing")]
    rows = [row for one in found.of("comparison", "drift", "probe") for row in one.content["models"]]
    named += [(row.get("model_sha256"), row.get("bytes")) for row in rows]
    return {str(digest): int(size) for digest, size in named if digest and size is not None}


def plain(value: Any) -> Any:
    """A value as JSON has it, numbers that are none left out."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value
