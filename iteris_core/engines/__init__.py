"""Layers measured and solved in order: the single sweep, and the paper's iteration."""
