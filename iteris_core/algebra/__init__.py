"""The algebra of one layer, in pure functions: sums, linear system, closed form, cut to a rank.

`reference` has the whole method on one page.
"""
