"""Adapters on the tasks and pictures of the paper, next to the paper's figures:
`python -m benchmarks.paper`.
"""
