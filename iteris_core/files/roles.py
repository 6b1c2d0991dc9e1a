"""Roles of an adapter's tensors at a module; those that are not here have LyCORIS' names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# A weight is (d_out, d_in, height, width) for convolutions.
UP = "up"  # (d_out, rank)
DOWN = "down"  # (rank, d_in, height, width)
MID = "mid"  # the core of LoCon's Tucker form, (rank, rank, height, width)
ALPHA = "alpha"  # one number: the delta is multiplied by alpha / rank
DORA_SCALE = "dora_scale"  # magnitudes of a DoRA by LyCORIS
MAGNITUDE = "magnitude"  # magnitudes of a DoRA by PEFT, (d_out,)
RESHAPE_WEIGHT = "reshape_weight"  # the shape that the weight takes on
DIFF = "diff"  # the delta itself
SET_WEIGHT = "set_weight"  # what takes the place of the weight
DIFF_B = "diff_b"  # what is added to the bias
B_NORM = "b_norm"  # what is added to a norm's bias
W_NORM = "w_norm"  # what is added to a norm's weight

# Role of a vector -> the module's parameter that it is added to.
VECTORS = {DIFF_B: "bias", B_NORM: "bias", W_NORM: "weight"}

Tensors = Mapping[str, Tensor]  # role -> tensor, of one module
Shape = tuple[int, int]  # (d_out, d_in) of a weight, with a convolution's kernel in d_in
