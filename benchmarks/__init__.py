"""What was measured, and how: each benchmark is run by `python -m benchmarks.NAME`."""
