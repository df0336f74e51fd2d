"""What a pickle would have Python do, counted before it is let do it. Imports no torch and runs nothing."""

from __future__ import annotations

import pickle
import pickletools
from pathlib import Path

from sottovoce.errors import UnsafeCheckpoint

MOST_STEPS = 400_000  # each of which can take a few hundred bytes; a tensor takes about 50
LARGEST_TUPLE = 10_000  # with all that is in it, as often as it is in it; hashing one looks at each
PUTS, GETS = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")
TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")

MARK = 0  # on a stack of sizes


def check_pickle(path: Path, content: bytes) -> None:
    """Refuse a pickle of too many steps, of a memo far beyond its length, or of tuples that hold one another.

    Thirty tuples, each of twice the one before, are a few bytes, and a billion to whoever hashes the last.
    Raises UnsafeCheckpoint; UnpicklingError for one that takes more from its stack than is there.
    """
    sizes = _Sizes()
    for step, (code, argument, _) in enumerate(pickletools.genops(content)):  # to the end of the first pickle
        if step > MOST_STEPS:
            raise UnsafeCheckpoint(f"{path}: a pickle of more than {MOST_STEPS:,} steps; no network needs so many")
        if code.name in PUTS and isinstance(argument, int) and argument > len(content):
            raise UnsafeCheckpoint(f"{path}: its pickle asks for a memo of {argument:,} places")
        try:
            largest = sizes.step(code, argument)
        except (IndexError, KeyError):
            raise pickle.UnpicklingError(f"{code.name} takes what is not there") from None
        if largest > LARGEST_TUPLE:
            raise UnsafeCheckpoint(f"{path}: its pickle builds tuples of more than {LARGEST_TUPLE:,} parts")


class _Sizes:
    """The stack and memo of an unpickler, with sizes in the place of objects; all but tuples count as one."""

    def __init__(self) -> None:
        self.stack: list[int] = []
        self.memo: dict[object, int] = {}

    def step(self, code: pickletools.OpcodeInfo, argument: object) -> int:
        """Do as an operation does; returns the size of what it leaves on top, 0 for nothing."""
        if code.name in PUTS:
            self.memo[argument] = self.stack[-1]
        elif code.name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif code.name in GETS:
            self.stack.append(self.memo[argument])
        elif code.name == "DUP":
            self.stack.append(self.stack[-1])
        elif code.name == "MARK":
            self.stack.append(MARK)
        else:
            taken = self._take(code)
            made = 1 + sum(taken) if code.name in TUPLES else 1
            self.stack += [made] * len(code.stack_after)
        return self.stack[-1] if self.stack else 0

    def _take(self, code: pickletools.OpcodeInfo) -> list[int]:
        taken: list[int] = []
        count = len(code.stack_before)
        if pickletools.markobject in code.stack_before:
            count = code.stack_before.index(pickletools.markobject)
            while (top := self.stack.pop()) != MARK:
                taken.append(top)
        return taken + [self.stack.pop() for _ in range(count)]
