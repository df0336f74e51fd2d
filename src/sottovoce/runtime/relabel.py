"""Write metadata into an .onnx without the onnx package: entries are replaced, every other byte stays as it is.

An .onnx is a protobuf message (ModelProto): fields one after another, each a tag (number and wire type) and a value.
Metadata are its field 14, repeated: a message of key (1) and value (2). Entries of the given names are dropped, new
ones appended; the graph with its weights is copied, never parsed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sottovoce.errors import BadModel
from sottovoce.runtime.engine import PREFIX

_METADATA, _KEY, _VALUE = 14, 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def relabel(path: str | Path, out: str | Path, entries: Mapping[str, Any]) -> None:
    """Write the model in `path` to `out`, which may be the same, with these metadata entries (JSON values) set.

    The file appears only whole: under a temporary name first. Raises BadModel when `path` is not an .onnx.
    """
    path, out = Path(path), Path(out)
    content = replaced(path.read_bytes(), entries, str(path))
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)


def replaced(content: bytes, entries: Mapping[str, Any], where: str = "model") -> bytes:
    """The bytes of a model with metadata entries set: names without prefix → JSON values. Raises BadModel."""
    dropped = {(PREFIX + name).encode() for name in entries}
    kept = []
    try:
        for number, start, body, end in _fields(content):
            if number != _METADATA or _key(content[body:end]) not in dropped:
                kept.append(content[start:end])
    except (IndexError, ValueError) as error:
        raise BadModel(f"{where}: not an .onnx, or cut short ({error}); get the file again") from None
    added = [_entry(PREFIX + name, json.dumps(value, allow_nan=False)) for name, value in entries.items()]
    return b"".join(kept + added)


def _fields(content: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Number, start, start of the value and end of each field of a message. Raises ValueError, IndexError."""
    at = 0
    while at < len(content):
        tag, body = _varint(content, at)
        if tag & 7 == _VARINT:
            end = _varint(content, body)[1]
        elif tag & 7 == _BYTES:
            size, body = _varint(content, body)
            end = body + size
        elif tag & 7 in (_FIXED64, _FIXED32):
            end = body + (8 if tag & 7 == _FIXED64 else 4)
        else:
            raise ValueError(f"wire type {tag & 7} at byte {at}")
        if not tag >> 3 or end > len(content):
            raise ValueError(f"a field at byte {at} ends behind the file" if tag >> 3 else f"field 0 at byte {at}")
        yield tag >> 3, at, body, end
        at = end


def _key(message: bytes) -> bytes:
    """The key of a metadata entry, empty where there is none; of several the last counts, as in protobuf."""
    found = b""
    for number, _, body, end in _fields(message):
        found = message[body:end] if number == _KEY else found
    return found


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """An integer in groups of seven bits, lowest first, and where it ends. Raises IndexError, ValueError."""
    value = 0
    for group in range(10):
        byte = content[at + group]
        value |= (byte & 0x7F) << (7 * group)
        if byte < 0x80:
            return value, at + group + 1
    raise ValueError(f"a number of more than ten bytes at byte {at}")


def _entry(key: str, value: str) -> bytes:
    return _field(_METADATA, _field(_KEY, key.encode()) + _field(_VALUE, value.encode()))


def _field(number: int, body: bytes) -> bytes:
    return _written(number << 3 | _BYTES) + _written(len(body)) + body


def _written(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
