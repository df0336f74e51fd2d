"""Speaker-verification networks in 8, 4, 3, 2 or 1 bits, in one .onnx that runs at int8 speed in stock onnxruntime.

    import sottovoce
    model = sottovoce.load()                       # the shipped model, or a path
    decision = sottovoce.verify(model, "a.wav", "b.wav")

The names below are loaded when they are first used, so `import sottovoce` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sottovoce.runtime.engine import Model, load
    from sottovoce.runtime.verify import Decision, verify

__version__ = "0.1.0"
__all__ = ["Decision", "Model", "__version__", "load", "verify"]

_HOMES = {"Decision": "runtime.verify", "Model": "runtime.engine", "load": "runtime.engine", "verify": "runtime.verify"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
