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
EDGE = 127  # outermost level of a grid that has both signs
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Format:
    """Code `i` stands for `levels[i]`, in units of the scale; `levels` None: 2**bits levels, found from the weights."""

    name: str
    bits: int  # per code, as stored
    levels: tuple[int, ...] | None  # ascending integers in -128..127
    family: str  # which quantizer makes the codes

    @property
    def size(self) -> int:
        """Number of levels."""
        return 2**self.bits if self.levels is None else len(self.levels)


def _mirrored(magnitudes: set[int]) -> tuple[int, ...]:
    """Both signs of the magnitudes, ascending."""
    return tuple(sorted(magnitudes | {-magnitude for magnitude in magnitudes}))


def _uniform(bits: int) -> tuple[int, ...]:
    """Equation 2 of arXiv 2210.17326 in units of its smallest step."""
    return _mirrored(set(range(2 ** (bits - 1))))


def _powers(bits: int) -> tuple[int, ...]:
    """Equation 3 of arXiv 2210.17326: 0 and ±2^-k for k up to 2^(bits-1) - 2, in units of the smallest kept.

    Of 8 bits only the levels down to 2^-6, those of 4 bits, lie on the int8 grid; weights that belong to a smaller
    one go to 0 or ±2^-6, whichever is nearer.
    """
    last = min(2 ** (bits - 1) - 2, 6)
    return _mirrored({0, *(2**k for k in range(last + 1))})


def _sums_of_powers(bits: int) -> tuple[int, ...]:
    """Additive powers of two (arXiv 1909.13144, section 2.2), two bits a term, a last term of one bit if one is over.

    A magnitude is a sum with one element of each term's set: 0 and powers that the terms take in turn, as in the
    authors' code. Below 8 bits the sums are integers; the 128 sums of 8 bits are rounded to a grid that ends at 127.
    """
    full, single = divmod(bits - 1, 2)
    turns = [*range(full)] * 2 + [full] * single + [*range(full)]  # which term takes 2^-1, 2^-2, ...
    sums = {0}
    for term in range(full + single):
        taken = {2 ** (len(turns) - 1 - place) for place, owner in enumerate(turns) if owner == term}
        sums = {total + power for total in sums for power in {0, *taken}}
    factor = min(1.0, EDGE / max(sums))
    return _mirrored({round(total * factor) for total in sums})


def _whole(bits: int) -> tuple[int, ...]:
    """All codes of a signed integer: -2^(bits-1) … 2^(bits-1) - 1 (LSQ, arXiv 1902.08153)."""
    return tuple(range(-(2 ** (bits - 1)), 2 ** (bits - 1)))


LADDERS = {"uniform": _uniform, "pot": _powers, "apot": _sums_of_powers, "lsq": _whole}
SIGNS = (-1, 1)  # levels of every format of one bit: a zero would leave one value

FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in [
        *(
            Format(f"{family}{bits}", bits, ladder(bits) if bits > 1 else SIGNS, family)
            for family, ladder in LADDERS.items()
            for bits in WIDTHS
        ),
        *(Format(f"kmeans{bits}", bits, None, "kmeans") for bits in WIDTHS),
        Format("binary", 1, SIGNS, "binary"),
        Format("ternary", 2, (-1, 0, 1), "ternary"),
    ]
}


@dataclass(frozen=True, eq=False)
class Coded:
    """One weight tensor as stored: the treaty between training and the file.

    codes: uint8 (rows, ...)   levels: int8 (levels,), or (rows, levels) with a codebook for each row; ascending
    scale: float32 (1,) for a layer or (rows,), above 0.
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
        if self.levels.dtype != np.int8 or np.any(self.levels[..., 1:] < self.levels[..., :-1]):
            raise BadInput("levels must be int8, ascending")
        if self.levels.shape[:-1] not in ((), tuple(self.shape[:1])):
            raise BadInput(f"levels are {self.levels.shape}; expected (levels,) or a row of levels for each output")
        if self.codes.size and int(self.codes.max()) >= self.levels.shape[-1]:
            raise BadInput(f"code {int(self.codes.max())} has no level; there are {self.levels.shape[-1]}")
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

    def integers(self) -> npt.NDArray[np.int8]:
        """The level of every code, in the weight's shape."""
        if self.levels.ndim == 1:
            return self.levels[self.codes]
        found = np.take_along_axis(self.levels, self.codes.reshape(len(self.codes), -1).astype(np.intp), axis=1)
        return found.reshape(self.shape)

    def decode(self) -> npt.NDArray[np.float32]:
        """The weight: the level of every code times the scale, one float32 product per element."""
        return self.integers().astype(np.float32) * self.scale.reshape(-1, *[1] * (len(self.shape) - 1))


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
