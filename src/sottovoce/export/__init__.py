"""Network + codes → the one .onnx that ships, and what can be read back from it."""

from sottovoce.export.assemble import build, save
from sottovoce.export.forms import Form
from sottovoce.export.inspect import describe, read_weights, turn
from sottovoce.export.twin import plain

__all__ = ["Form", "build", "describe", "plain", "read_weights", "save", "turn"]
