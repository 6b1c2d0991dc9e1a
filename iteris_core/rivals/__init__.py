"""The rivals: other methods of merging, all selectable as `MergeConfig.method`.

All of them work on exact deltas. Methods that use no statistics, and RegMean++, go through the
sweep. Those that regress on each adapter's inputs take one pass with X~ = X. An answer that is
not low rank is cut to the requested rank, by its effect on measured inputs.
"""
