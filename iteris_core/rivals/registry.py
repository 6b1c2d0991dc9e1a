"""The table of rivals: the rule of each method, its source, and its needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

from torch import Tensor

from ..adapters import LowRankDelta
from ..config import ITERATE_ONLY, ITERIS_ONLY, BaselineOptions, MergeConfig
from ..errors import ConfigError
from ..settings import called
from ..tasks import Task
from .ace import ace
from .compress_then_merge import compress_then_merge
from .core_space import core_space_ties
from .custom_diffusion import custom_diffusion
from .dare import dare_linear, dare_ties, magnitude_prune
from .iso_c import iso_c
from .knots import knots
from .layer import Layer
from .linear import average, linear, total, user_weights
from .mix_of_show import mix_of_show
from .np_lora import np_lora
from .regmean import regmean
from .ssr import ssr
from .ties import ties
from .tsv_m import tsv_m

_FOR_ALL = "scale"


class Rule(Protocol):
    """Merges one layer: a delta, dense where it is not low rank. The user's options of a method are
    its rule's keyword arguments with a default.
    """

    def __call__(self, layer: Layer, /, *args: Any, **options: Any) -> LowRankDelta | Tensor: ...


@dataclass(frozen=True)
class Method:
    """A rival.

    Args:
        rule: Rule that merges one layer. A dense answer is cut to the sum of the adapters' ranks,
            or to the requested rank.
        title: Title of the paper, or a description of the method.
        arxiv: Number of the paper on arXiv.
        inputs: Rows whose inputs are measured: those of the ``teacher`` (X~ = X), or of the
            ``student``, which wears the layers merged so far. For rules without statistics it
            decides which inputs the residuals of the report are measured on.
        searches: Value that is searched on the error of the network's output, unless the user names
            it: one ``scale``, or the rule's ``coefficients``.
        coefficients: Function that returns the rule's ``coefficients`` from the tasks and the
            number of adapters.
        only_text: Whether the rule is for layers that read text, and averages at others.
        plain_cut: Whether a cut to a lower rank is a plain SVD, and not made by its effect on the
            measured inputs.
    """

    rule: Rule
    title: str
    arxiv: str | None = None
    inputs: Literal["teacher", "student"] = "student"
    searches: Literal["scale", "coefficients"] | None = None
    coefficients: Callable[[Sequence[Task], int], Sequence[float]] | None = None
    only_text: bool = False
    plain_cut: bool = False

    @property
    def options(self) -> list[str]:
        """Names of the `BaselineOptions` that the method takes."""
        parameters = inspect.signature(self.rule).parameters.values()
        return [_FOR_ALL, *(p.name for p in parameters if p.default is not p.empty)]


_DARE = "Language Models are Super Mario"
METHODS: Mapping[str, Method] = {
    "average": Method(average, "mean of the deltas"),
    "sum": Method(total, "sum of the deltas, as when LoRAs are stacked"),
    "weighted": Method(linear, "mean by the user's weights", coefficients=user_weights),
    "svd": Method(total, "sum of the deltas, cut by a plain SVD", plain_cut=True),
    "task_arithmetic": Method(
        total, "Editing Models with Task Arithmetic", "2212.04089", searches="scale"
    ),
    "hyper_linear": Method(
        linear,
        "Composing Parameter-Efficient Modules with Arithmetic Operations",
        "2306.14870",
        searches="coefficients",
    ),
    "ties": Method(ties, "TIES-Merging", "2306.01708"),
    "dare_linear": Method(dare_linear, _DARE, "2311.03099"),
    "dare_ties": Method(dare_ties, _DARE, "2311.03099"),
    "magnitude_prune": Method(magnitude_prune, "mean of the largest entries, as in PEFT"),
    "knots": Method(knots, "Model Merging with SVD to Tie the Knots", "2410.19735"),
    "core_space_ties": Method(
        core_space_ties, "Accurate and Efficient Low-Rank Model Merging in Core Space", "2509.17786"
    ),
    "compress_then_merge": Method(
        compress_then_merge,
        "Compress then Merge: From Multiple LoRAs into One Low-Rank Adapter",
        "2606.03723",
    ),
    "tsv_m": Method(tsv_m, "Task Singular Vectors", "2412.00081"),
    "iso_c": Method(iso_c, "No Task Left Behind", "2502.04959"),
    "np_lora": Method(np_lora, "NP-LoRA", "2511.11051"),
    "ace": Method(ace, "ACE-Merging", "2603.02945"),
    "regmean": Method(
        regmean,
        "Dataless Knowledge Fusion by Merging Weights of Language Models",
        "2212.09849",
        inputs="teacher",
    ),
    "regmean_pp": Method(regmean, "RegMean++", "2508.03121"),
    "ssr": Method(ssr, "SSR-Merge", "2606.10617", inputs="teacher"),
    "mix_of_show": Method(mix_of_show, "Mix-of-Show", "2305.18292", inputs="teacher"),
    "custom_diffusion": Method(
        custom_diffusion,
        "Multi-Concept Customization of Text-to-Image Diffusion",
        "2212.04488",
        inputs="teacher",
        only_text=True,
    ),
}


def rule_options(config: MergeConfig) -> dict[str, Any]:
    """Return the keyword arguments of the rule of a configured rival."""
    options = METHODS[config.method].options
    return {name: getattr(config.baseline, name) for name in options if name != _FOR_ALL}


# settings that are IterIS's own, at values with which they do nothing
_OFF = {"unit_gain": 1.0}


def check_used(config: MergeConfig) -> None:
    """Refuse settings that a user has changed and that the method or the engine would not look at.

    Raises:
        ConfigError: Names the setting, and says what it is for.
    """
    check_options(config)
    unchanged = MergeConfig().to_dict()
    changed = [
        name
        for name, value in config.to_dict().items()
        if value not in (unchanged[name], _OFF.get(name))
    ]
    for name in changed:
        if config.method != "iteris" and name in ITERIS_ONLY:
            raise ConfigError(
                f"{called(name)} is for the method iteris; {config.method} does not use it. Leave "
                "it out"
            )
        if config.engine == "sweep" and name in ITERATE_ONLY:
            raise ConfigError(
                f"{called(name)} is for the engine iterate; the sweep solves every layer once. "
                "Leave it out"
            )


def check_options(config: MergeConfig) -> None:
    """Refuse an option of rivals that the method would not look at.

    Raises:
        ConfigError: Names the options that the method takes.
    """
    taken = [] if config.method == "iteris" else METHODS[config.method].options
    for item in fields(BaselineOptions):
        if item.name in taken or getattr(config.baseline, item.name) == item.default:
            continue
        takes = f"takes {_listed(taken)}" if taken else "takes none of the rivals' options"
        raise ConfigError(
            f"{called(item.name)} is no option of {config.method}; {config.method} {takes}"
        )


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
