"""The settings of a merge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

import torch

from .errors import ConfigError

Method = Literal[
    "iteris",
    "average",
    "sum",
    "weighted",
    "svd",
    "task_arithmetic",
    "hyper_linear",
    "ties",
    "dare_linear",
    "dare_ties",
    "magnitude_prune",
    "knots",
    "core_space_ties",
    "tsv_m",
    "iso_c",
    "np_lora",
    "regmean",
    "regmean_pp",
    "ssr",
    "mix_of_show",
    "custom_diffusion",
]
Engine = Literal["sweep", "iterate"]
Ridge = Literal["consistent", "paper"]
Balance = Literal["delta", "full", "uniform"]
Target = Literal["full_output", "delta"]


@dataclass(frozen=True)
class BaselineOptions:
    """What the rival methods can be told; each says in its own file which of these it uses, and
    how.

    Args:
        scale: What the merged delta is multiplied with; ``search``: what gives the smallest error
            of the network's output on the calibration samples; None: ``search`` for
            task_arithmetic, 1 for all others.
        density: Share of the entries that TIES, KnOTS, Core Space, DARE and magnitude pruning keep,
            above 0, up to 1.
        sign: How TIES elects a sign: ``total`` by the sum of the values, ``frequency`` by their
            number.
        seed: Of DARE's random choice.
        off_diagonal: RegMean's factor on all but the diagonal of its Gram matrices, 0 to 1.
        projection: NP-LoRA's mu: 0 is the sum, None takes the style's directions out of the other
            adapters altogether.
        solver: Of Mix-of-Show: ``closed_form``, or ``lbfgs`` as published.
    """

    scale: float | Literal["search"] | None = None
    density: float = 0.5
    sign: Literal["total", "frequency"] = "total"
    seed: int = 0
    off_diagonal: float = 0.9
    projection: float | None = 0.5
    solver: Literal["closed_form", "lbfgs"] = "closed_form"

    def __post_init__(self) -> None:
        _check_choices(self)
        if not (
            self.scale in (None, "search")
            or (not isinstance(self.scale, str) and math.isfinite(self.scale))
        ):
            raise ConfigError(
                f"scale is {self.scale!r}; it must be a finite number, 'search', or None"
            )
        if not 0 < self.density <= 1:
            raise ConfigError(f"density is {self.density}; it must be above 0, and 1 at most")
        if not 0 <= self.off_diagonal <= 1:
            raise ConfigError(f"off_diagonal is {self.off_diagonal}; it must be from 0 to 1")
        if self.projection is not None and not (
            math.isfinite(self.projection) and self.projection >= 0
        ):
            raise ConfigError(
                f"projection is {self.projection}; it must be a finite number, 0 or more, or None"
            )


def _check_choices(settings: Any) -> None:
    """Refuse a setting that is none of the strings that its type names."""
    hints = get_type_hints(type(settings))
    for item in fields(settings):
        allowed = get_args(hints[item.name])
        value = getattr(settings, item.name)
        if allowed and all(isinstance(choice, str) for choice in allowed) and value not in allowed:
            raise ConfigError(
                f"{item.name} is {value!r}; it can be {' or '.join(map(repr, allowed))}"
            )


@dataclass(frozen=True)
class MergeConfig:
    """How a merge is solved.

    Where a default was measured, the rows are named in which to see it: of "Ablations, LoRAs
    trained for too long" in ``benchmarks/RESULTS.md``, or of "One setting of the sweep changed" of
    its T5 and BLIP.

    Args:
        method: ``iteris``, or a rival of it, see `baselines.METHODS`. Rivals take the ranks and the
            settings of memory from here, `balance` and `alpha` for the metric in which a cut is
            made, and `target` for the residuals of the report; the other settings are IterIS's own.
        baseline: What only the rivals can be told.
        engine: ``sweep`` solves every layer in one forward pass; ``iterate`` is the paper's
            Algorithm 1 (rows "iterations").
        max_iter: Solves of ``iterate``; the first uses ``X~ = X``.
        tolerance: ``iterate`` stops when no layer's delta changed by more than this, relative to
            its norm.
        alpha: Ridge, relative to the Frobenius norm of each task's Gram matrix (official
            ``alpha_2``; rows "alpha").
        alpha_cross: Ridge on the cross term, relative in the same way (official ``alpha_1``); None:
            the same as alpha.
        ridge: ``consistent`` scales both ridges by ``||X~^T X~||``, so that the answer minimises
            one objective; ``paper`` scales the cross ridge by ``||X~^T X||`` (the published code;
            row "ridge paper": no difference).
        balance: Weight of a task: ``delta`` is the paper's ``||dW||^2 / ||X dW^T||^2`` (equation
            8), ``full`` the published code's, which has the base weight in it, ``uniform`` is 1
            (rows "balance").
        target: ``delta`` fits what the adapters add, ``X dW_g^T``; ``full_output`` the whole
            output, ``X (W0 + dW_g)^T - X~ W0^T``, which also makes up for the drift of the inputs
            (official ``with_pretrain_matrix``). Its answer has full rank and is cut back to `rank`.
            It is the default since at strength 1 it is as good on usual pairs, and better on more
            or stronger LoRAs (rows "target, equal rank").
        input_mix: ``X~ <- (1 - input_mix) X~ + input_mix X`` (official ``reg_ceof``), 0 or more,
            below 1.
        rank: ``sum`` of the adapters' ranks, ``full`` (nothing is cut), a number for all layers, or
            one per module path. What is cut is chosen by its effect on the measured inputs, see
            `truncate` (row "rank of one LoRA": costs little).
        kept_energy: Cut every layer to the smallest rank that keeps this share of the effect, 0 to
            1, but never to more than the sum of the ranks; None: do not.
        size: Number of weights in all factors together; ranks are shared out over layers by what
            they gain. Needs two sweeps. None: no limit.
        output_dtype: Precision in which the merged adapter will be saved. The sweep rounds each
            layer to it before going on, so that later layers make up for the rounding.
        samples_per_chunk: Samples in one forward call; each of them is a teacher row and a student
            row.
        park_on_host: Let the tensors of waiting chunks wait in host memory. For devices on which
            all rows do not fit at once; costs a copy out and back at every layer.
        tokens_per_row: At most this many tokens of a row, at random places, count in the
            statistics; None: all (rows "tokens per row").
        patches: At most this many patches of all rows together count at a k x k convolution, whose
            inputs are so wide (up to 23040 in SD1.5) that their Gram matrix would not fit into
            memory.
        statistics_bytes: ``iterate`` measures as many layers at once as have statistics of this
            many bytes.
    """

    method: Method = "iteris"
    baseline: BaselineOptions = BaselineOptions()
    engine: Engine = "sweep"
    max_iter: int = 20
    tolerance: float = 1e-6
    alpha: float = 1e-4
    alpha_cross: float | None = None
    ridge: Ridge = "consistent"
    balance: Balance = "delta"
    target: Target = "full_output"
    input_mix: float = 0.0
    rank: int | str | Mapping[str, int] = "sum"
    kept_energy: float | None = None
    size: int | None = None
    output_dtype: torch.dtype = torch.float32
    samples_per_chunk: int = 8
    park_on_host: bool = False
    tokens_per_row: int | None = None
    patches: int = 4096
    statistics_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        _check_choices(self)
        for name in ("alpha", "alpha_cross", "tolerance"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} is {value}; it must be a finite number, 0 or more")
        if not 0 <= self.input_mix < 1:
            raise ConfigError(
                f"input_mix is {self.input_mix}; it must be 0 or more and less than 1"
            )
        for name in (
            "samples_per_chunk",
            "max_iter",
            "size",
            "tokens_per_row",
            "patches",
            "statistics_bytes",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be 1 or more")
        self._check_rank()

    def _check_rank(self) -> None:
        ranks = self.rank.values() if isinstance(self.rank, Mapping) else [self.rank]
        if any(
            rank not in ("sum", "full") and not (isinstance(rank, int) and rank >= 1)
            for rank in ranks
        ):
            raise ConfigError(
                f"rank is {self.rank!r}; it can be 'sum', 'full', a number from 1, or a number per "
                "module path"
            )
        if self.kept_energy is not None and not 0 < self.kept_energy <= 1:
            raise ConfigError(
                f"kept_energy is {self.kept_energy}; it must be above 0, and 1 at most"
            )
        if sum([self.rank != "sum", self.kept_energy is not None, self.size is not None]) > 1:
            raise ConfigError(
                "rank, kept_energy and size each decide the ranks; give only one of them"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {**asdict(self), "output_dtype": str(self.output_dtype).removeprefix("torch.")}

    def rank_at(self, path: str) -> int | str:
        """Return the rank that is asked for at one layer: a number, ``sum`` or ``full``."""
        return self.rank.get(path, "sum") if isinstance(self.rank, Mapping) else self.rank

    @property
    def needs_base_weight(self) -> bool:
        """Whether the two ridges differ on the base weight, so that it enters the full-output
        target.
        """
        return self.target == "full_output" and (
            self.ridge == "paper" or self.alpha_cross is not None
        )
