"""The settings of a merge."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

import torch

from .errors import ConfigError

Ridge = Literal["consistent", "paper"]
Balance = Literal["delta", "full", "uniform"]


@dataclass(frozen=True)
class MergeConfig:
    """How a merge is solved.

    Args:
        alpha: Ridge, relative to the Frobenius norm of each task's Gram matrix (official ``alpha_2``).
        alpha_cross: Ridge on the cross term, relative in the same way (official ``alpha_1``); None: the same as alpha.
        ridge: ``consistent`` scales both ridges by ``||X~^T X~||``, so that the answer minimises one objective;
            ``paper`` scales the cross ridge by ``||X~^T X||`` (the published code).
        balance: Weight of a task: ``delta`` is the paper's ``||dW||^2 / ||X dW^T||^2`` (equation 8), ``full`` the
            published code's, which has the base weight in it, ``uniform`` is 1.
        input_mix: ``X~ <- (1 - input_mix) X~ + input_mix X`` (official ``reg_ceof``), 0 or more, below 1.
        output_dtype: Precision in which the merged adapter will be saved. The sweep rounds each layer to it before
            going on, so that later layers make up for the rounding.
        samples_per_chunk: Samples in one forward call; each of them is a teacher row and a student row.
    """

    alpha: float = 1e-4
    alpha_cross: float | None = None
    ridge: Ridge = "consistent"
    balance: Balance = "delta"
    input_mix: float = 0.0
    output_dtype: torch.dtype = torch.float32
    samples_per_chunk: int = 8

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for item in fields(self):
            allowed, value = get_args(hints[item.name]), getattr(self, item.name)
            if allowed and all(isinstance(choice, str) for choice in allowed) and value not in allowed:
                raise ConfigError(f"{item.name} is {value!r}; it can be {' or '.join(map(repr, allowed))}")
        for name in ("alpha", "alpha_cross"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} is {value}; it must be a finite number, 0 or more")
        if not 0 <= self.input_mix < 1:
            raise ConfigError(f"input_mix is {self.input_mix}; it must be 0 or more and less than 1")
        if self.samples_per_chunk < 1:
            raise ConfigError(f"samples_per_chunk is {self.samples_per_chunk}; a forward call needs at least one sample")
