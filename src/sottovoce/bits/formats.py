"""Number formats as values, coded weights, and how codes sit in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sottovoce.errors import BadInput

if TYPE_CHECKING:
    from sottovoce.bits.plan import Spec

WIDTHS = (1, 2, 3, 4, 8)
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Format:
    """Code `i` stands for `levels[i]`, in units of the scale; `levels` None: 2**bits levels, learned per layer."""

    name: str
    bits: int  # per code, as stored
    levels: tuple[int, ...] | None  # ascending integers in -127..127
    family: str  # which quantizer makes the codes

    @property
    def size(self) -> int:
        """Number of levels."""
        return 2**self.bits if self.levels is None else len(self.levels)


def _uniform(bits: int) -> Format:
    """Equation 2 of arXiv 2210.17326 in units of its smallest step; one bit has no zero."""
    edge = 2 ** (bits - 1) - 1
    levels = tuple(range(-edge, edge + 1)) if bits > 1 else (-1, 1)
    return Format(f"uniform{bits}", bits, levels, "uniform")


FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in [
        *(_uniform(bits) for bits in WIDTHS),
        *(Format(f"kmeans{bits}", bits, None, "kmeans") for bits in WIDTHS),
    ]
}


@dataclass(frozen=True, eq=False)
class Coded:
    """One weight tensor as stored: the treaty between training and the file.

    codes: uint8 (rows, ...)   levels: int8 (levels,), ascending   scale: float32 (1,) for a layer or (rows,), above 0.
    Raises BadInput when the parts do not fit each other.
    """

    spec: Spec
    shape: tuple[int, ...]
    codes: Bytes
    levels: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.codes.dtype != np.uint8 or self.codes.shape != tuple(self.shape):
            raise BadInput(f"codes are {self.codes.dtype} {self.codes.shape}; expected uint8 {tuple(self.shape)}")
        if self.levels.dtype != np.int8 or self.levels.ndim != 1 or np.any(self.levels[1:] < self.levels[:-1]):
            raise BadInput("levels must be int8, one axis, ascending")
        if self.codes.size and int(self.codes.max()) >= len(self.levels):
            raise BadInput(f"code {int(self.codes.max())} has no level; there are {len(self.levels)}")
        if self.scale.dtype != np.float32 or self.scale.shape not in ((1,), tuple(self.shape[:1])):
            raise BadInput(f"scale is {self.scale.dtype} {self.scale.shape}; expected float32 (1,) or one per row")
        if not np.all(self.scale > 0):
            raise BadInput("every scale must be above 0")

    @property
    def bits(self) -> int:
        """Bits a code takes."""
        return FORMATS[self.spec.format].bits

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed codes."""
        return packed_size(self.codes.size, self.bits)

    def decode(self) -> npt.NDArray[np.float32]:
        """The weight: levels[codes] · scale, one float32 product per element."""
        scale = self.scale.reshape(-1, *[1] * (len(self.shape) - 1))
        return self.levels.astype(np.float32)[self.codes] * scale


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take. Raises BadInput for a width that has no packing."""
    codes, size = _group(bits)
    return -(-count // codes) * size


def pack(codes: Bytes, bits: int) -> Bytes:
    """Codes → bytes, in C order, zero padded to whole groups.

    1, 2, 4 bits: 8/bits codes a byte, the first in the low bits. 8 bits: one byte a code. 3 bits: 8 codes in 3 bytes;
    the low six bits of byte j hold codes 2j and 2j+1, the three top fields of two bits (byte 0 lowest) codes 6 and 7.
    codes: uint8, any shape   returns: uint8 (bytes,). Raises BadInput for other types, or codes that do not fit.
    """
    length, _ = _group(bits)
    if codes.dtype != np.uint8:
        raise BadInput(f"codes are {codes.dtype}; pack takes uint8")
    if codes.size and int(codes.max()) >> bits:
        raise BadInput(f"code {int(codes.max())} does not fit in {bits} bits")
    flat = codes.reshape(-1)
    if bits == 8:
        return flat.copy()
    groups = np.pad(flat, (0, -flat.size % length)).reshape(-1, length)
    return _pack3(groups) if bits == 3 else _join(groups, bits)


def unpack(packed: Bytes, bits: int, count: int) -> Bytes:
    """Bytes → the first `count` codes; the inverse of `pack`.

    packed: uint8 (bytes,)   returns: uint8 (count,). Raises BadInput when `count` codes do not take that many bytes.
    """
    size = packed_size(count, bits)
    if packed.dtype != np.uint8 or packed.shape != (size,):
        raise BadInput(f"{count} codes of {bits} bits take {size} bytes, uint8; got {packed.dtype} {packed.shape}")
    if bits == 8:
        return packed.copy()
    groups = _unpack3(packed.reshape(-1, 3)) if bits == 3 else _split(packed, bits, 8 // bits)
    return groups.reshape(-1)[:count]


def _group(bits: int) -> tuple[int, int]:
    """Codes and bytes of the smallest whole group."""
    if bits not in WIDTHS:
        raise BadInput(f"codes of {bits} bits have no packing; known widths: {', '.join(map(str, WIDTHS))}")
    return (8, 3) if bits == 3 else (8 // bits, 1)


def _join(groups: Bytes, bits: int) -> Bytes:
    """(n, fields) → (n,): fields of `bits` bits, the first lowest."""
    shifts = np.arange(groups.shape[1], dtype=np.uint8) * np.uint8(bits)
    joined: Bytes = np.bitwise_or.reduce(groups << shifts, axis=1)
    return joined


def _split(packed: Bytes, bits: int, fields: int) -> Bytes:
    """(n,) → (n, fields): the inverse of `_join`."""
    shifts = np.arange(fields, dtype=np.uint8) * np.uint8(bits)
    return (packed[:, None] >> shifts) & np.uint8(2**bits - 1)


def _pack3(groups: Bytes) -> Bytes:
    """(n, 8) codes → (3n,) bytes."""
    tops = _split(_join(groups[:, 6:], 3), 2, 3)
    fields = np.concatenate([groups[:, :6].reshape(-1, 3, 2), tops[:, :, None]], axis=2)
    return _join(fields.reshape(-1, 3), 3)


def _unpack3(packed: Bytes) -> Bytes:
    """(n, 3) bytes → (n, 8) codes."""
    low = _split(packed.reshape(-1), 3, 2).reshape(-1, 6)
    high = _split(_join(packed >> np.uint8(6), 2), 3, 2)
    return np.concatenate([low, high], axis=1)
