"""The rivals: other ways to merge adapters, one file each, all on exact deltas and selectable as
`MergeConfig.method`.

Methods that use no statistics, and RegMean++, go through the sweep; those that regress on each
adapter's own inputs take one pass in which X~ = X. An answer that is not low rank is cut to the
rank that was asked for, by its effect on measured inputs.
"""

from collections.abc import Mapping

from .core_space import core_space_ties
from .custom_diffusion import custom_diffusion
from .dare import dare_linear, dare_ties, magnitude_prune
from .iso_c import iso_c
from .knots import knots
from .layer import layers_that_read_text
from .linear import equal_shares, linear, ones, searched, user_weights
from .methods import Method
from .mix_of_show import mix_of_show
from .np_lora import np_lora
from .regmean import regmean
from .search import best_scale
from .ssr import ssr
from .ties import ties
from .tsv_m import tsv_m

METHODS: Mapping[str, Method] = {
    "average": Method(linear, coefficients=equal_shares),
    "sum": Method(linear, coefficients=ones),
    "weighted": Method(linear, coefficients=user_weights),
    "svd": Method(linear, coefficients=ones, plain_cut=True),
    "task_arithmetic": Method(linear, coefficients=ones, searches_scale=True),
    "hyper_linear": Method(linear, coefficients=searched, searches_coefficients=True),
    "ties": Method(ties),
    "dare_linear": Method(dare_linear),
    "dare_ties": Method(dare_ties),
    "magnitude_prune": Method(magnitude_prune),
    "knots": Method(knots),
    "core_space_ties": Method(core_space_ties),
    "tsv_m": Method(tsv_m),
    "iso_c": Method(iso_c),
    "np_lora": Method(np_lora),
    "regmean": Method(regmean, inputs="teacher"),
    "regmean_pp": Method(regmean),
    "ssr": Method(ssr, inputs="teacher"),
    "mix_of_show": Method(mix_of_show, inputs="teacher"),
    "custom_diffusion": Method(custom_diffusion, inputs="teacher", only_text=True),
}

__all__ = ["METHODS", "Method", "best_scale", "layers_that_read_text"]
