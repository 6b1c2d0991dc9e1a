"""The algebra of one layer, in pure functions. `reference` has the whole method on one page.

statistics: sums over the rows
layer: the input of a solve
balance: the weight of each task (lambda)
system, coarse: the linear system, factorised in float64 or in float32
solve, answer, truncate: the closed form, and its cut to a rank
gain: no layer does less of a LoRA than the LoRA alone
"""
