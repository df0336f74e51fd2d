"""The file → embedding → decision. NumPy and onnxruntime only."""
