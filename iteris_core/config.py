"""The settings of a merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from .errors import ConfigError
from .settings import Precision, label, settings

Method = Literal[
    "iteris",
    "average",
    "sum",
    "weighted",
    "task_arithmetic",
    "hyper_linear",
    "ties",
    "np_lora",
    "regmean",
    "regmean_pp",
    "mix_of_show",
    "custom_diffusion",
]
# Settings that no rival looks at.
ITERIS_ONLY = ("engine", "max_iter", "alpha_cross", "ridge", "input_mix", "unit_gain")
# Methods that look at the deltas alone, and whose answers are of low rank as they are.
DATA_FREE = ("average", "sum", "np_lora")
Engine = Literal["sweep", "iterate"]
Ridge = Literal["consistent", "paper"]
Balance = Literal["delta", "full", "uniform"]
Target = Literal["full_output", "delta"]
# Upper bounds, far above what is useful, so that no recipe can ask for endless work.
MOST_RANK = 1 << 16  # no layer of a known model is wider
Rank = Annotated[int, Field(ge=1, le=MOST_RANK)]
_MOST_RIDGE = 10**9  # relative to the inputs; from 1 on, the answer is the average
_MOST_SOLVES = 1000  # of the paper's loop, which stops changing after 20
_MOST_TOKENS = 1 << 24  # of a row: 64 times as many as a 4096-pixel picture has
_MOST_SCALE = 10**6  # of a rival's own factor; the largest that papers use is 10


# `MergeConfig.unit_gain` where none is given; merges of T5 and BLIP have their own, `language.job`.
UNIT_GAIN = 2.0


@settings
class BaselineOptions:
    """Settings that only rivals have; the file of a rival explains those that it uses."""

    scale: Annotated[
        Annotated[float, Field(ge=-_MOST_SCALE, le=_MOST_SCALE)] | Literal["search"] | None,
        Field(
            description="Factor of the merged delta. search: the scale with the smallest error of "
            "the network's output on the calibration samples. If left out: search for "
            "task_arithmetic, 1 for all others."
        ),
    ] = None
    density: Annotated[
        float,
        Field(gt=0, le=1, description="Share of the entries that TIES keeps."),
    ] = 0.5
    off_diagonal: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="RegMean's factor on all but the diagonal of its Gram matrices.",
        ),
    ] = 0.9
    projection: Annotated[
        float | None,
        Field(
            ge=0,
            le=_MOST_SCALE,
            description="NP-LoRA's mu, how softly the style's directions are taken out of the "
            "others. 0: not at all, which is the sum. none: altogether.",
        ),
    ] = 0.5


@settings
class MergeConfig:
    """How layers are solved.

    Rivals, see `rivals`, take the ranks from here, `balance` and `alpha` for the metric of a cut,
    and `target` for the residuals of the report. The other settings are IterIS's own. In formulas,
    with a task's inputs ``X`` and the student's ``X~``:

    * `alpha` is relative to the Frobenius norm of each task's Gram matrix (official ``alpha_2``),
      and so is `alpha_cross` (official ``alpha_1``).
    * `ridge`: ``consistent`` scales both ridges by ``||X~^T X~||``, so that the answer minimises
      one objective; ``paper`` scales the cross ridge by ``||X~^T X||``, as the published code does.
    * `balance`: ``delta`` is the paper's ``||dW||^2 / ||X dW^T||^2`` (equation 8), ``full`` the
      published code's, which has the base weight in it, ``uniform`` is 1.
    * `target`: ``delta`` fits what the adapters add, ``X dW_g^T``; ``full_output`` the whole
      output, ``X (W0 + dW_g)^T - X~ W0^T``, which also makes up for the drift of the inputs
      (official ``with_pretrain_matrix``). Its answer has full rank and is cut back to `rank`, by
      the effect on the measured inputs, see `algebra.truncate`.
    * `input_mix`: ``X~ <- (1 - input_mix) X~ + input_mix X`` (official ``reg_ceof``).
    * `unit_gain`: see `algebra.gain`. None: what the family of models needs, `UNIT_GAIN` or
      `language.job.DEFAULT`.

    Raises:
        ConfigError: A setting outside its range, or several that decide the ranks.
    """

    method: Annotated[
        Method, Field(description="iteris, or another way to merge, for comparison.")
    ] = "iteris"
    measured: Annotated[
        bool,
        Field(
            description="Whether the LoRAs are measured in the model. Without it the files alone "
            "are merged, in seconds, by a method that needs no more."
        ),
    ] = True
    baseline: Annotated[
        BaselineOptions,
        Field(description="Settings that only rivals have."),
    ] = BaselineOptions()
    engine: Annotated[
        Engine,
        Field(
            description="sweep: solve every layer in one pass. iterate: the paper's loop, which "
            "takes many passes and converges to the same result."
        ),
    ] = "sweep"
    max_iter: Annotated[
        int,
        Field(
            ge=1,
            le=_MOST_SOLVES,
            description="Most solves of a layer with the engine iterate; the first uses "
            "the teachers' inputs.",
        ),
    ] = 20
    alpha: Annotated[
        float,
        Field(
            ge=0,
            le=_MOST_RIDGE,
            title="smoothing",
            description="A larger value keeps the merged LoRA nearer to the average of the LoRAs "
            "(the ridge, alpha). 1e-4 suits most merges.",
        ),
    ] = 1e-4
    alpha_cross: Annotated[
        float | None,
        Field(
            ge=0,
            le=_MOST_RIDGE,
            description="Ridge on the cross term; if left out, the same as smoothing.",
        ),
    ] = None
    ridge: Annotated[
        Ridge,
        Field(
            description="How the smoothing is scaled. consistent: one objective is minimised. "
            "paper: as in the published code."
        ),
    ] = "consistent"
    balance: Annotated[
        Balance,
        Field(
            description="How LoRAs of different size are balanced. delta: the paper's formula. "
            "full: the published code's. uniform: not at all."
        ),
    ] = "delta"
    target: Annotated[
        Target,
        Field(
            title="reproduce",
            description="What is reproduced at each layer (the target). Whole output: it also "
            "corrects the drift of the layer's inputs; 'together' needs it. What the LoRA adds: as "
            "in the paper.",
        ),
    ] = "full_output"
    input_mix: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="Share of the single LoRA's inputs that is mixed into the inputs of the "
            "merged model. 0: off.",
        ),
    ] = 0.0
    unit_gain: Annotated[
        float | None,
        Field(
            ge=1,
            le=10,
            title="layer_gain",
            description="What a merge loses of a LoRA at a layer is given back, up to this factor, "
            "so that the merged LoRA is as strong as its LoRAs (unit gain). 1: off.",
        ),
    ] = None
    rank: Annotated[
        Rank | Literal["sum", "full"] | Mapping[str, Rank],
        Field(
            description="Rank of the result: a number for all layers, the sum of the ranks, or "
            "full, which cuts nothing."
        ),
    ] = "sum"
    kept_energy: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            title="quality_kept",
            description="The share of its effect that every layer keeps, with the smallest rank "
            "that does it (kept energy).",
        ),
    ] = None
    output_dtype: Annotated[
        Precision,
        Field(
            title="precision",
            description="Number format of the merged LoRA. Later layers make up for the rounding "
            "of earlier ones.",
        ),
    ] = torch.float32
    # Rows of up to 512 tokens are read whole.
    tokens_per_dimension: Annotated[
        int | None,
        Field(
            ge=1,
            le=_MOST_TOKENS,
            description="Most tokens of a task that count in the statistics, per dimension of a "
            "layer's input, evenly from all rows; more only take time.",
        ),
    ] = 16

    def __post_init__(self) -> None:
        if self.rank != "sum" and self.kept_energy is not None:
            raise ConfigError(
                f"{label('rank')} and {label('kept_energy')} each decide the ranks; give one of "
                "them"
            )
        if not self.measured:
            self._check_unmeasured()

    def _check_unmeasured(self) -> None:
        if self.method not in DATA_FREE or self.baseline.scale == "search":
            raise ConfigError(
                f"{label('measured')} is off, and {label('method')} is {self.method!r}, which "
                f"measures the model here. Choose one of {', '.join(DATA_FREE)} without a search, "
                f"or switch {label('measured')} on"
            )
        if self.rank != "sum" or self.kept_energy is not None:
            raise ConfigError(
                f"{label('measured')} is off, so nothing tells what a cut to a lower rank would "
                f"cost; leave {label('rank')} and {label('kept_energy')} out"
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
        """Name of the setting that needs every layer's own weight; None: none does."""
        if self.balance == "full":
            return "balance"
        if not self.needs_base_weight:
            return None
        return "ridge" if self.ridge == "paper" else "alpha_cross"
