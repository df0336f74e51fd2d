"""What network a foreign checkpoint holds and its front end: by names and shapes, before torch is loaded.

What is known is the table in layouts.py; the tensors that a known network has are those of tensors.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sottovoce.audio.features import preset
from sottovoce.errors import BadInput, UnknownCheckpoint
from sottovoce.lab import toolkits
from sottovoce.lab.layouts import LAYOUTS, Layout
from sottovoce.lab.pickles import Stored, listing
from sottovoce.lab.shapes import Settings, Shapes, Usual
from sottovoce.lab.tensors import shapes_of

COUNTER = "num_batches_tracked"  # float after averaging, absent in old files; training alone reads it
SHOWN = 5  # tensors of an error


@dataclass(frozen=True)
class Recognised:
    """A checkpoint whose network is known."""

    layout: Layout
    settings: Settings
    tensors: dict[str, Stored]  # by our names
    dropped: list[str]  # names of theirs: classifiers, front ends


def examine(source: str | Path, front_end: str | None = None) -> tuple[Path, Recognised, str]:
    """A checkpoint, a file or the folder it was published as: the file, the network it holds, and its front end.

    front_end: a preset, as for `choose_front_end`.   Raises UnsafeCheckpoint, UnknownCheckpoint, BadCheckpoint,
    BadInput.
    """
    path, told = toolkits.find(source)
    found = recognise(path, listing(path))
    toolkits.check_values(path, found.tensors)
    chosen = choose_front_end(path, found, told, front_end)
    return path, settled(found, chosen), chosen


def recognise(path: Path, stored: Mapping[str, Stored]) -> Recognised:
    """Find the network that a checkpoint's names and shapes are those of, whatever the file is called.

    Raises UnknownCheckpoint with the nearest known kind and the first tensors that differ.
    """
    inner = toolkits.inner(stored)
    shapes = {name: _squeezed(tensor.shape) for name, tensor in inner.items()}
    nearest: tuple[int, Layout, list[str]] | None = None
    read = [(layout, _read(layout, shapes)) for layout in LAYOUTS]
    for layout, known in sorted(read, key=lambda one: one[1] is None):  # what cannot be it is for the error alone
        settings, ours = known or _usual(layout)
        wanted = {layout.theirs(name): name for name in ours}
        dropped = dict.fromkeys(name for name in inner if name.startswith(toolkits.HEADS) and name not in wanted)
        differences = _differences(wanted, ours, {n: s for n, s in shapes.items() if n not in dropped})
        if not differences:
            tensors = {name: inner[theirs] for theirs, name in wanted.items() if theirs in inner}
            return Recognised(layout, settings, tensors, list(dropped))
        if nearest is None or len(differences) < nearest[0]:
            nearest = len(differences), layout, differences
    assert nearest is not None
    count, layout, differences = nearest
    shown = "; ".join(differences[:SHOWN])
    raise UnknownCheckpoint(
        f"{path}: of no known network ({len(inner)} tensors). The nearest is {layout.name}, of which {count} tensors "
        f"differ: {shown}{'; ...' if count > SHOWN else ''}"
    )


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without ones at the end: a linear layer is a convolution of kernel 1."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _read(layout: Layout, shapes: Shapes) -> tuple[Settings, Shapes] | None:
    """The network that shapes ask for, if it is of the layout, and its shapes; None where they are of another one."""
    own = {name.removeprefix(layout.prefix): shape for name, shape in shapes.items() if name.startswith(layout.prefix)}
    try:
        settings = layout.settings(own)
        return settings, shapes_of(**settings)
    except (KeyError, IndexError, ZeroDivisionError, ValueError):
        return None


def _usual(layout: Layout) -> tuple[Settings, Shapes]:
    settings = layout.settings(Usual())
    return settings, shapes_of(**settings)


def _differences(wanted: Mapping[str, str], ours: Shapes, shapes: Shapes) -> list[str]:
    """What their tensors lack, have too much or have in another shape, a phrase each; wanted: their names → ours."""
    found = []
    for theirs, name in wanted.items():
        shape = _squeezed(ours[name])
        if theirs not in shapes and not theirs.endswith(COUNTER):
            found.append(f"{theirs} {list(shape)} is missing")
        elif theirs in shapes and shapes[theirs] != shape:
            found.append(f"{theirs} is {list(shapes[theirs])}, not {list(shape)}")
    return found + [f"{name} {list(shape)} is not of it" for name, shape in shapes.items() if name not in wanted]


def choose_front_end(path: Path, found: Recognised, told: toolkits.Told | None, asked: str | None) -> str:
    """The front end a network was trained with: asked for, told by a configuration, or the only one that fits.

    Raises BadInput with the choices where it is none of these, or where its rows are not those the network reads.
    """
    choices = fitting(found)
    if asked is not None:
        preset(asked)
        if told is not None and told.front_end in choices and told.front_end != asked:
            raise BadInput(f"{told.path}: says {told.front_end}, --front-end {asked}; leave one out")
        chosen = asked
    elif len(choices) == 1:
        chosen = choices[0]
    elif not choices:
        raise BadInput(
            f"{path}: {found.layout.name} is used with {', '.join(found.layout.front_ends)}, none of which fits: "
            f"{'; '.join(_clues(found))}. Give --front-end if another does"
        )
    elif told is not None and told.front_end in choices:
        chosen = told.front_end
    else:
        raise BadInput(
            f"{path}: {found.layout.name} is used with several front ends, and nothing beside the file says which one; "
            f"give --front-end: {' or '.join(choices)}"
        )
    rows, reads = preset(chosen).rows, _reads(found)
    if reads is not None and rows != reads:
        raise BadInput(f"{path}: the network reads {reads} rows, the front end {chosen} makes {rows}")
    if told is not None:
        told.check(chosen)
    return chosen


def _reads(found: Recognised) -> int | None:
    """Rows of features that the network reads; None where no tensor tells."""
    return found.settings.get("mels")


def fitting(found: Recognised) -> list[str]:
    """Front ends of the layout that make the rows the network reads and that the tensors left out are part of."""
    reads = _reads(found)
    fitting = [name for name in found.layout.front_ends if reads is None or preset(name).rows == reads]
    for sign, names in found.layout.signs.items():
        if sign in found.dropped:
            fitting = [name for name in fitting if name in names]
    return fitting


def _clues(found: Recognised) -> list[str]:
    """What a checkpoint tells of its front end, a phrase each."""
    signs = [name for name in found.layout.signs if name in found.dropped]
    return [f"the network reads {_reads(found)} rows", *(f"{name} is stored with it" for name in signs)]


def settled(found: Recognised, front_end: str) -> Recognised:
    """With the settings that only the front end tells."""
    told = {"mels": preset(front_end).rows, **found.settings, **found.layout.follows.get(front_end, {})}
    return replace(found, settings=told)
