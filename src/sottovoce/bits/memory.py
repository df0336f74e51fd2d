"""The memory model of arXiv 2606.08078, decoded: packed indices, 16-bit codebooks of output channels, the rest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sottovoce.bits.formats import packed_size

MIB = 2**20
LEVEL_BYTES = 2  # a codebook entry, the channel's scale folded in


@dataclass(frozen=True)
class Memory:
    """What a network of one width takes, in bytes."""

    bits: int
    index: int
    codebook: int
    other: int  # batch norms and biases
    classifier: int  # of training, in float32; counted by the paper, never part of a file

    @property
    def network(self) -> int:
        """Everything but the classifier."""
        return self.index + self.codebook + self.other

    @property
    def total(self) -> int:
        """Everything, as the paper counts."""
        return self.network + self.classifier

    def mib(self) -> dict[str, float]:
        """The columns of the paper's table, in MiB."""
        columns = ("index", "codebook", "other", "network", "total")
        return {name: getattr(self, name) / MIB for name in columns}


def memory_table(
    shapes: Mapping[str, tuple[int, ...]],
    widths: Iterable[int] = (4, 3, 2),
    *,
    norm_values: int = 0,
    biases: int = 0,
    classifier: tuple[int, int] = (0, 0),
) -> list[Memory]:
    """A row for each width, all layers alike.

    shapes: layer name → weight shape   norm_values: weights, biases and running statistics of batch norms, float32
    biases: of layers, 16 bits each   classifier: (speakers, dimension), float32. Raises BadInput for unknown widths.
    """
    count = sum(map(math.prod, shapes.values()))
    channels = sum(shape[0] for shape in shapes.values())
    other = 4 * norm_values + 2 * biases
    return [
        Memory(bits, packed_size(count, bits), channels * 2**bits * LEVEL_BYTES, other, 4 * math.prod(classifier))
        for bits in widths
    ]
