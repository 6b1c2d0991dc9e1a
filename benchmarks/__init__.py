"""What was measured, and how: each benchmark is run by `python -m benchmarks.NAME`."""

import os

# before torch is imported: threads that wait by spinning make everything several times slower where
# another job runs
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
