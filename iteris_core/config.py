"""The settings of a merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from .errors import ConfigError
from .settings import MOST_AT_ONCE, MOST_SEEDS, called, check, setting

Method = Literal[
    "iteris",
    "average",
    "sum",
    "weighted",
    "task_arithmetic",
    "hyper_linear",
    "ties",
    "tsv_m",
    "np_lora",
    "ace",
    "regmean",
    "regmean_pp",
    "ssr",
    "mix_of_show",
    "custom_diffusion",
]
# Settings that no rival looks at, and settings of the iterating engine alone.
ITERIS_ONLY = ("engine", "max_iter", "tolerance", "alpha_cross", "ridge", "input_mix", "unit_gain")
ITERATE_ONLY = ("max_iter", "tolerance")
Engine = Literal["sweep", "iterate"]
Ridge = Literal["consistent", "paper"]
Balance = Literal["delta", "full", "uniform"]
Target = Literal["full_output", "delta"]
Factorisation = Literal["auto", "float64", "float32"]
# Upper bounds, far above what is of use, so that nobody's recipe can ask for endless work.
MOST_RANK = 1 << 16  # no layer of a known model is wider
_MOST_RIDGE = 10**9  # relative to the inputs; from 1 on, the answer is the average
_MOST_SOLVES = 1000  # of the paper's loop, which stops changing after 20
_MOST_TOKENS = 1 << 24  # of a row, or patches of all: 64 times those of a picture of 4096 pixels
_MOST_BYTES = 1 << 50  # a petabyte
_MOST_SCALE = 10**6  # of a rival's own factor; the largest that papers use is 10


# `MergeConfig.unit_gain` where none is given; merges of T5 and BLIP have their own, `language.job`.
UNIT_GAIN = 2.0


@dataclass(frozen=True)
class BaselineOptions:
    """Settings that only rivals have; the file of a rival explains those that it uses.

    Args:
        scale: Factor of the merged delta; None is ``search`` for task_arithmetic, and 1 for all
            others. ``search`` finds the scale with the smallest error of the network's output on
            the calibration samples.
        density: Share of the entries that TIES keeps.
        sign: ``total`` elects the sign of the sum of the values, ``frequency`` the sign that more
            of them have.
        projection: NP-LoRA's mu: 0 is the sum, None takes the style's directions out of the other
            adapters altogether.
        solver: ``lbfgs`` is Mix-of-Show as published.
    """

    scale: float | Literal["search"] | None = setting(
        None, "Factor of the merged delta, or search.", at_least=-_MOST_SCALE, at_most=_MOST_SCALE
    )
    density: float = setting(0.5, "Share of the entries that TIES keeps.", above=0, at_most=1)
    sign: Literal["total", "frequency"] = setting("total", "How TIES elects a sign.")
    thinning: Literal["magnitude", "random"] = setting(
        "magnitude", "Which entries TIES keeps: the largest, or random ones (DARE)."
    )
    seed: int = setting(0, "Seed of DARE's random choice.", at_least=0, at_most=MOST_SEEDS - 1)
    off_diagonal: float = setting(
        0.9,
        "RegMean's factor on all but the diagonal of its Gram matrices.",
        at_least=0,
        at_most=1,
    )
    projection: float | None = setting(
        0.5,
        "How softly NP-LoRA takes the style's directions out of the others.",
        at_least=0,
        at_most=_MOST_SCALE,
    )
    solver: Literal["closed_form", "lbfgs"] = setting("closed_form", "Solver of Mix-of-Show.")

    def __post_init__(self) -> None:
        check(self)
        if self.seed and self.thinning == "magnitude":
            raise ConfigError(
                f"{called('seed')} is {self.seed}, and nothing is random where TIES keeps the "
                f"largest entries; leave it out, or set {called('thinning')} to 'random'"
            )


@dataclass(frozen=True)
class MergeConfig:
    """How layers are solved.

    The help of each field below states its meaning, and this list adds details. Where a default was
    measured, the rows that show it are named: those of "Ablations, LoRAs trained for too long" in
    ``benchmarks/RESULTS.md``, or those of "One setting of the sweep changed" of its T5 and BLIP.

    Args:
        method: IterIS or a rival, see `rivals.METHODS`. Rivals take the ranks and the settings of
            memory from here, `balance` and `alpha` for the metric in which a cut is made, and
            `target` for the residuals of the report. The other settings are IterIS's own.
        engine: ``sweep`` solves every layer in one forward pass; ``iterate`` is the paper's
            Algorithm 1 (rows "iterations").
        max_iter: Most solves of ``iterate``, of which the first uses ``X~ = X``.
        alpha: Ridge, relative to the Frobenius norm of each task's Gram matrix (official
            ``alpha_2``; rows "alpha").
        alpha_cross: Cross ridge, relative in the same way (official ``alpha_1``); None is the same
            as alpha.
        ridge: ``consistent`` scales both ridges by ``||X~^T X~||``, so that the answer minimises
            one objective; ``paper`` scales the cross ridge by ``||X~^T X||``, as the published code
            does (row "ridge paper": no difference).
        balance: ``delta`` is the paper's ``||dW||^2 / ||X dW^T||^2`` (equation 8), ``full`` the
            published code's, which has the base weight in it, ``uniform`` is 1 (rows "balance").
        target: ``delta`` fits what the adapters add, ``X dW_g^T``; ``full_output`` the whole
            output, ``X (W0 + dW_g)^T - X~ W0^T``, which also makes up for the drift of the inputs
            (official ``with_pretrain_matrix``). Its answer has full rank and is cut back to `rank`.
            It is the default: at strength 1 it is as good on usual pairs, and better on more or
            stronger LoRAs (rows "target, equal rank").
        unit_gain: See `algebra.gain`. Makes up for what ridge, preserve task and conflict shrink,
            layer by layer, so that later layers see it ("What was chosen" in RESULTS.md). None:
            what the family of models needs, `UNIT_GAIN` or `language.job.DEFAULT`.
        input_mix: ``X~ <- (1 - input_mix) X~ + input_mix X`` (official ``reg_ceof``).
        rank: ``sum`` of the adapters' ranks, ``full`` (nothing is cut), a number for all layers, or
            one number per module path. What is cut is chosen by its effect on the measured inputs,
            see `algebra.truncate` (row "rank of one LoRA": costs little).
        kept_energy: Share of a layer's effect that its rank must keep; each layer gets the smallest
            such rank, but never more than the sum of the ranks.
        size: Number of weights in all factors together, shared out over the layers where ranks gain
            most. Needs two sweeps.
        output_dtype: Precision of the merged adapter. The sweep rounds each layer to it before it
            goes on, so that later layers make up for the rounding.
        samples_per_chunk: Samples of one forward call, each of which is a teacher row and a student
            row.
        waiting_bytes: For devices, the host among them, on which not all rows fit at once. What
            waits in host memory, or in a file, costs a copy out and back at every layer.
        tokens_per_row: Most tokens of a row that are measured, at random places (rows "tokens per
            row").
        tokens_per_dimension: As many tokens as suffice for a layer's system; more only take time
            ("Where less is measured" in RESULTS.md: 8 are as good, 4 are not). Rows of up to 512
            tokens are read whole. None: all are.
        factorisation: ``float32`` finds the inputs to which a layer's answer is cut in float32, and
            the answer on them in float64, see `algebra.coarse`; a layer for which float32 is too
            coarse is solved in float64, which the report says. ``auto`` does so on cards whose
            float64 is slow, and at layers on the CPU whose inputs are 1024 wide or more. It is for
            the target ``full_output`` at a rank; others are always solved in float64.
        patches: The inputs of a k x k convolution are so wide (up to 23040 in SD1.5) that its Gram
            matrix would not fit into memory.
    """

    method: Method = setting("iteris", "iteris, or a rival to compare it with.")
    baseline: BaselineOptions = setting(BaselineOptions(), "Settings that only rivals have.")
    engine: Engine = setting("sweep", "One sweep over the layers, or the paper's iteration.")
    max_iter: int = setting(
        20, "Most solves of a layer with the engine iterate.", at_least=1, at_most=_MOST_SOLVES
    )
    tolerance: float = setting(
        1e-6,
        "The engine iterate stops when no layer's delta changed by more than this share.",
        at_least=0,
        at_most=1,
    )
    alpha: float = setting(
        1e-4,
        "Ridge, relative to the size of the inputs' Gram matrix.",
        at_least=0,
        at_most=_MOST_RIDGE,
    )
    alpha_cross: float | None = setting(
        None,
        "Ridge on the cross term; if left out, the same as alpha.",
        at_least=0,
        at_most=_MOST_RIDGE,
    )
    ridge: Ridge = setting("consistent", "The consistent ridge, or the paper's.")
    balance: Balance = setting(
        "delta", "How tasks are weighed against each other; full as in the published code."
    )
    target: Target = setting(
        "full_output", "What is fitted: whole outputs, or what the adapters add."
    )
    input_mix: float = setting(
        0.0,
        "Share of the teacher's inputs in the student's, from 0 to below 1.",
        at_least=0,
        below=1,
    )
    unit_gain: float | None = setting(
        None,
        "Largest factor by which an adapter's part of a layer is made as strong as the adapter "
        "alone; 1: off.",
        at_least=1,
        at_most=10,
    )
    rank: int | Literal["sum", "full"] | Mapping[str, int] = setting(
        "sum",
        "Rank of the merged adapter: a number, the sum of the ranks, or full.",
        at_least=1,
        at_most=MOST_RANK,
    )
    kept_energy: float | None = setting(
        None,
        "Instead of a rank: the share of its effect that every layer keeps, above 0, 1 at most.",
        above=0,
        at_most=1,
    )
    size: int | None = setting(
        None,
        "Instead of a rank: the number of weights in all factors together.",
        at_least=1,
        at_most=_MOST_BYTES,
    )
    output_dtype: torch.dtype = setting(torch.float32, "Precision of the merged adapter.")
    samples_per_chunk: int = setting(
        8, "Samples in one forward call.", at_least=1, at_most=MOST_AT_ONCE
    )
    waiting_bytes: int | None = setting(
        None,
        "Device memory for samples that wait while a layer is solved, in bytes. Others wait in "
        "host memory, or in a file where the model runs there, which is slower. If left out, all "
        "wait on the device.",
        at_least=0,
        at_most=_MOST_BYTES,
    )
    tokens_per_row: int | None = setting(
        None,
        "Most tokens of a row that count in the statistics; all if left out.",
        at_least=1,
        at_most=_MOST_TOKENS,
    )
    tokens_per_dimension: int | None = setting(
        16,
        "Most tokens of a task that count in the statistics, per dimension of a layer's input, "
        "evenly from all rows.",
        at_least=1,
        at_most=_MOST_TOKENS,
    )
    factorisation: Factorisation = setting(
        "auto", "Precision in which layers are factorised; auto: float32 where that is faster."
    )
    patches: int = setting(
        4096,
        "Most patches of all rows that count at a k x k convolution.",
        at_least=1,
        at_most=_MOST_TOKENS,
    )
    statistics_bytes: int = setting(
        4 << 30,
        "Size of the statistics that the engine iterate measures at once, in bytes.",
        at_least=1,
        at_most=_MOST_BYTES,
    )

    def __post_init__(self) -> None:
        check(self)
        if sum([self.rank != "sum", self.kept_energy is not None, self.size is not None]) > 1:
            raise ConfigError(
                f"rank, {called('kept_energy')} and size each decide the ranks; give only one of "
                "them"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {
            **asdict(self),
            "unit_gain": self.largest_gain,
            "output_dtype": str(self.output_dtype).removeprefix("torch."),
        }

    @property
    def largest_gain(self) -> float:
        """The bound of unit gain, which a recipe repeats whatever the default will be."""
        return UNIT_GAIN if self.unit_gain is None else self.unit_gain

    def rank_at(self, path: str) -> int | str:
        """Return the requested rank of one layer: a number, ``sum`` or ``full``."""
        return self.rank.get(path, "sum") if isinstance(self.rank, Mapping) else self.rank

    @property
    def needs_base_weight(self) -> bool:
        """Whether the two ridges differ on the base weight, so that it enters the full-output
        target.
        """
        return self.target == "full_output" and (
            self.ridge == "paper" or self.alpha_cross is not None
        )

    @property
    def base_weight_setting(self) -> str | None:
        """Name of the setting for which every layer's own weight is read; None: none is."""
        if self.balance == "full":
            return "balance"
        if not self.needs_base_weight:
            return None
        return "ridge" if self.ridge == "paper" else "alpha_cross"
