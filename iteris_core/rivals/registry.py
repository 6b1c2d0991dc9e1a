"""The table of rivals: the rule of each method, and its needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import Tensor

from ..adapters import LowRankDelta
from ..config import ITERIS_ONLY, BaselineOptions, MergeConfig
from ..errors import ConfigError
from ..settings import label
from ..tasks import Task
from .data_free import average, linear, np_lora, stacked_sum, ties, user_weights
from .measured import custom_diffusion, mix_of_show, regmean

_FOR_ALL = "scale"


# Merges one `Layer`: a delta, dense where it is not low rank. The user's options of a method are
# its rule's keyword arguments with a default.
Rule = Callable[..., LowRankDelta | Tensor]


@dataclass(frozen=True)
class Method:
    """A rival.

    Args:
        rule: Rule that merges one layer. A dense answer is cut to the sum of the adapters' ranks,
            or to the requested rank.
        inputs: Rows whose inputs are measured: the ``teacher``'s (X~ = X), or the ``student``'s,
            which wears the layers merged so far. For rules without statistics it decides which
            inputs the residuals of the report are measured on.
        searches: Value that is searched on the error of the network's output, unless the user names
            it: one ``scale``, or the rule's ``coefficients``.
        coefficients: Function that returns the rule's ``coefficients`` from the tasks and the
            number of adapters.
        only_text: Whether the rule is for layers that read text, and averages at others.
    """

    rule: Rule
    inputs: Literal["teacher", "student"] = "student"
    searches: Literal["scale", "coefficients"] | None = None
    coefficients: Callable[[Sequence[Task], int], Sequence[float]] | None = None
    only_text: bool = False

    @property
    def options(self) -> list[str]:
        """Names of the `BaselineOptions` that the method takes."""
        parameters = inspect.signature(self.rule).parameters.values()
        return [_FOR_ALL, *(p.name for p in parameters if p.default is not p.empty)]


METHODS: Mapping[str, Method] = {
    "average": Method(average),
    "sum": Method(stacked_sum),
    "weighted": Method(linear, coefficients=user_weights),
    "task_arithmetic": Method(stacked_sum, searches="scale"),
    "hyper_linear": Method(linear, searches="coefficients"),
    "ties": Method(ties),
    "np_lora": Method(np_lora),
    "regmean": Method(regmean, inputs="teacher"),
    "regmean_pp": Method(regmean),
    "mix_of_show": Method(mix_of_show, inputs="teacher"),
    "custom_diffusion": Method(custom_diffusion, inputs="teacher", only_text=True),
}


def rule_options(config: MergeConfig) -> dict[str, Any]:
    """Return the keyword arguments of the rule of a configured rival."""
    options = METHODS[config.method].options
    return {name: getattr(config.baseline, name) for name in options if name != _FOR_ALL}


# settings that are IterIS's own, at values that switch them off
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
                f"{label(name)} is for the method iteris; {config.method} does not use it. Leave "
                "it out"
            )
        if config.engine == "sweep" and name == "max_iter":
            raise ConfigError(
                f"{label(name)} is for the engine iterate; the sweep solves every layer once. "
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
            f"{label(item.name)} is not an option of {config.method}; {config.method} {takes}"
        )


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
