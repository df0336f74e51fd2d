"""Recordings: read, resample, refuse the unusable; what a front end computes. NumPy only."""
