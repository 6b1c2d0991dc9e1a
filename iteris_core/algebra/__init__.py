"""From statistics of a layer to its solution: sums, linear system, closed form, cut to a rank. Pure
functions.
"""
