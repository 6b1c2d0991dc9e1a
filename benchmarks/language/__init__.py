"""Merges of small language models that are trained here: `python -m benchmarks.language`."""
