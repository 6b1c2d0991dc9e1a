"""How layers are measured and solved: in one sweep, or by the iteration of the paper."""
