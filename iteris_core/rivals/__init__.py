"""The rivals: other ways to merge adapters, one file each, all on exact deltas and selectable as
`MergeConfig.method`.

Methods that use no statistics, and RegMean++, go through the sweep; those that regress on each
adapter's own inputs take one pass in which X~ = X. An answer that is not low rank is cut to the
rank that was asked for, by its effect on measured inputs.
"""

from .registry import METHODS, Method

__all__ = ["METHODS", "Method"]
