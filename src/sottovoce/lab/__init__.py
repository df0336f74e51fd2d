"""Experiments: training, compression, evaluation. This package imports nothing, so that parts work without torch."""
