"""The rivals: other ways to merge adapters, one file each, all on exact deltas and selectable as `MergeConfig.method`.

Methods that use no statistics, and RegMean++, go through the sweep; those that regress on each adapter's own inputs take one
pass in which X~ = X. An answer that is not low rank is cut to the rank that was asked for, by its effect on measured inputs.
"""

from collections.abc import Mapping

from .layer import layers_that_read_text
from .linear import equal_shares, linear, ones, searched, user_weights
from .methods import Method
from .regmean import regmean
from .search import best_scale
from .ties import ties

METHODS: Mapping[str, Method] = {
    "average": Method(linear, coefficients=equal_shares),
    "sum": Method(linear, coefficients=ones),
    "weighted": Method(linear, coefficients=user_weights),
    "svd": Method(linear, coefficients=ones, plain_cut=True),
    "task_arithmetic": Method(linear, coefficients=ones, searches_scale=True),
    "hyper_linear": Method(linear, coefficients=searched, searches_coefficients=True),
    "ties": Method(ties),
    "regmean": Method(regmean, inputs="teacher"),
    "regmean_pp": Method(regmean),
}

__all__ = ["METHODS", "Method", "best_scale", "layers_that_read_text"]
