"""Adapters on the tasks and pictures of the paper, beside the paper's figures:
`python -m benchmarks.paper`.
"""
