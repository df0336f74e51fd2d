"""Network + codes → the one .onnx that ships, and what can be read back from it."""

from sottovoce.export.assemble import build, save
from sottovoce.export.inspect import describe, read_weights
from sottovoce.export.twin import plain

__all__ = ["build", "describe", "plain", "read_weights", "save"]
