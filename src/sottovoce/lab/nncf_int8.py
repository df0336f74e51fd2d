"""NNCF's post-training int8 of a float .onnx, for an interpreter that has the package; it needs nothing of ours.

    python nncf_int8.py FLOAT.onnx SIGNALS.npy OUT.xml

SIGNALS: (signals, samples) float32. Products of matrices, which the front end consists of, stay in float.
"""

from __future__ import annotations

import sys


def main(source: str, signals: str, target: str) -> None:
    """Quantize and save as OpenVINO's own format."""
    import nncf
    import numpy as np
    import openvino

    data = nncf.Dataset([wave[None] for wave in np.load(signals)])
    scope = nncf.IgnoredScope(types=["MatMul"])
    model = nncf.quantize(
        openvino.Core().read_model(source), data, ignored_scope=scope, subset_size=len(np.load(signals))
    )
    openvino.save_model(model, target, compress_to_fp16=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
