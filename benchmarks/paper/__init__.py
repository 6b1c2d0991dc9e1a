"""Adapters on the paper's tasks and pictures: `python -m benchmarks.paper`."""
