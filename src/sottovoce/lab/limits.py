"""Budgets as a command names them: bytes of the file, bits a weight, or a loss of EER."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass

from sottovoce.errors import BadInput

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Loss:
    """How much the mean EER may rise: `amount` as a share of the float network's, or in fractions of one."""

    amount: float
    relative: bool

    def allows(self, eer: float, float_eer: float) -> bool:
        """Whether an EER stays within; both are fractions."""
        return eer <= float_eer + self.amount * (float_eer if self.relative else 1.0) + 1e-12


@dataclass(frozen=True)
class Budget:
    """One of three: bytes of the whole .onnx, average bits a weight (codes alone), or a loss of EER."""

    size_bytes: int | None = None
    bits_per_weight: float | None = None
    eer_loss: Loss | None = None

    @classmethod
    def parse(cls, size: str | None, bits_per_weight: float | None, max_eer_loss: str | None) -> Budget:
        """Read the texts of a command. Raises BadInput when they are not exactly one, or not readable."""
        if sum(value is not None for value in (size, bits_per_weight, max_eer_loss)) != 1:
            raise BadInput("give one budget: a size, bits per weight, or the largest loss of EER")
        return cls(
            parse_size(size) if size is not None else None,
            bits_per_weight,
            parse_loss(max_eer_loss) if max_eer_loss is not None else None,
        )


def parse_size(text: str) -> int:
    """Bytes of `500kB`, `3MB`, `1.5 MiB`, `2000`; upper or lower case. Raises BadInput."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not found:
        raise BadInput(f"size {text!r} cannot be read; write a number and a unit, as in 500kB, 3MB or 1.5MiB")
    number, unit = found.groups()
    known = {name.lower(): factor for name, factor in UNITS.items()}
    if (unit or "b").lower() not in known:
        near = difflib.get_close_matches(unit.lower(), known, 1, cutoff=0.0)[0]
        name = next(name for name in UNITS if name.lower() == near)
        raise BadInput(f"size {text!r}: unit {unit!r} is unknown; did you mean {name!r}? known: {', '.join(UNITS)}")
    return math.floor(float(number) * known[(unit or "b").lower()])


def parse_loss(text: str) -> Loss:
    """`2%`: relative to the float network's EER; `0.1`: absolute, in per cent as EERs are written. Raises BadInput."""
    found = re.fullmatch(r"\s*\+?(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    if not found:
        raise BadInput(f"loss of EER {text!r} cannot be read; write 2% (relative) or 0.1 (absolute, in per cent)")
    return Loss(float(found[1]) / 100, bool(found[2]))
