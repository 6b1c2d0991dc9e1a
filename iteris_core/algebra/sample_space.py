"""The closed form of one layer in sample space, for fewer tokens than the layer is wide.

A (tokens, tokens) system then has the same answer as the (d_in, d_in) one.

    down^T = M + Z^T (Z Z^T + rho I)^-1 (Y - Z M)
    Z = [sqrt(lam_g) X~_g],   Y = [sqrt(lam_g) H_g],   rho = sum_g lam_g mu_g
    M = (1 / rho) sum_g lam_g nu_g [m_g1 down_1^T | ... | m_gK down_K^T]

M is the answer of the ridge alone, and the rest is kernel ridge on the residual of M. This form
serves the delta target where no rank is requested, without unit gain. The answer has low rank
already, and needs no cut in the metric of `truncate`, which is as wide as the layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..adapters import LowRankDelta
from .answer import LayerSolution, is_left_whole
from .layer import LayerProblem
from .statistics import JointRows
from .system import factorise


def usable_rows(layer: LayerProblem) -> JointRows | None:
    """Return the kept rows of a layer that can be solved in sample space; None if it cannot."""
    config = layer.config
    fits = config.target == "delta" and config.alpha > 0 and config.largest_gain == 1
    whole = is_left_whole(layer.together.delta, config, layer.rank)
    return layer.joint if fits and whole else None


def solve_in_sample_space(layer: LayerProblem, joint: JointRows, lambdas: Tensor) -> LayerSolution:
    """Return the same solution as `solve.solve_layer`'s, from the tokens' products.

    Args:
        layer: Layer whose tasks kept their rows.
        joint: Rows of all tasks.
        lambdas: lambda per task, (n,).

    Raises:
        SolveError: A system that is not positive definite.
    """
    together = layer.together
    config = layer.config
    alpha_cross = config.alpha if config.alpha_cross is None else config.alpha_cross
    counted = [
        (task, kept, lam, block)
        for task, lam, block in zip(layer.tasks, lambdas, joint.slices, strict=True)
        if task.counts and (kept := task.statistics.kept()) is not None
    ]
    sizes = torch.stack([lam * joint.product[part, part].norm() for _, _, lam, part in counted])
    rho = config.alpha * sizes.sum()
    prior = torch.zeros_like(together.delta.down)
    parts = []
    for (task, kept, lam, _), size in zip(counted, sizes, strict=True):
        codes = kept.codes * lam.sqrt()
        target = codes.new_zeros(len(codes), together.delta.rank)
        for k, share in task.mix.items():
            assert task.worn is not None  # it has a mix
            place = together.slices[k]
            prior[place] += alpha_cross * size * share / rho * together.delta.down[place]
            target[:, place] = share * codes[:, task.worn.slices[k]]
        parts.append(target)
    targets = torch.cat(parts)
    scale = torch.cat([lam.sqrt().expand(len(kept.rows)) for _, kept, lam, _ in counted])
    rows = torch.cat([kept.rows for _, kept, _, _ in counted]).to(scale.dtype) * scale[:, None]
    used = torch.cat([torch.arange(part.start, part.stop) for _, _, _, part in counted])
    used = used.to(rows.device)
    matrix = joint.product[used][:, used] * (scale[:, None] * scale)
    matrix.diagonal().add_(rho)
    system = factorise(matrix, [targets, prior], layer.inputs_by_name(), config.alpha)
    rest = targets - rows @ prior.T
    down = prior + (rows.T @ system.other_half(system.half(rest))).T
    return LayerSolution(LowRankDelta(together.delta.up, down), lambdas)
