"""Rules that look at nothing but the deltas.

    average, sum      dW = sum_k w_k dW_k with w_k = 1 / N, or 1
    weighted          w_k = the user's weights over their sum
    task_arithmetic   one w for all (Ilharco et al., arXiv:2212.04089)
    hyper_linear      one w_k per adapter (PEM arithmetic, Zhang et al., arXiv:2306.14870)
    ties              trim, elect a sign, average what agrees (Yadav et al., arXiv:2306.01708), or
                      DARE in place of the trim (Yu et al., arXiv:2311.03099)
    tsv_m             task singular vectors (Gargiulo et al., arXiv:2412.00081)
    np_lora           the style's directions kept free of the others (Chen et al., arXiv:2511.11051)
    ace               inputs read off the deltas (Xu et al., CVPR 2026, arXiv:2603.02945)

A sum loses nothing at rank sum r_k: factors are stacked, never added, since ``(sum_k up_k)(sum_k
down_k)`` has products of one adapter's up with another's down. All answers but TIES are exactly low
rank.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import LowRankDelta, stack
from ..config import Sign, Thinning
from ..errors import ConfigError
from ..svd import svd
from ..tasks import Task
from .layer import Layer, singular_triplets

STYLE = 0  # NP-LoRA's style is the first adapter

ACE_EPS = 1e-2
ACE_DIFFERENT = 0.3
ACE_LEADING = 0.3
ACE_TINY = 1e-12  # the authors' guard of logarithms and quotients


def average(layer: Layer) -> LowRankDelta:
    """Return ``1 / N sum_k dW_k``; an adapter that does not change this layer counts as zero."""
    return stack(layer.deltas, dict.fromkeys(layer.deltas, 1 / layer.adapters)).delta


def stacked_sum(layer: Layer) -> LowRankDelta:
    """Return ``sum_k dW_k``, as when LoRAs are stacked."""
    return layer.together.delta


def linear(layer: Layer, *, coefficients: Sequence[float]) -> LowRankDelta:
    """Return ``sum_k w_k dW_k``.

    Args:
        coefficients: w_k of every adapter of the merge.
    """
    return stack(layer.deltas, {k: coefficients[k] for k in layer.deltas}).delta


def user_weights(tasks: Sequence[Task], adapters: int) -> list[float]:
    """Return each adapter's share of the weights; its weight is the largest among the tasks whose
    teacher wears it alone.

    Raises:
        ConfigError: No adapter has a task of its own with a weight above 0.
    """
    weights = [0.0] * adapters
    for task in tasks:
        worn = [k for k, share in task.mix.items() if share]
        if len(worn) == 1:
            weights[worn[0]] = max(weights[worn[0]], task.weight)
    if not sum(weights):
        raise ConfigError(
            "method 'weighted' needs a task with a weight above 0 whose teacher wears one adapter "
            "alone"
        )
    return [weight / sum(weights) for weight in weights]


def ties(
    layer: Layer,
    *,
    density: float = 0.5,
    sign: Sign = "total",
    thinning: Thinning = "magnitude",
    seed: int = 0,
) -> Tensor:
    """Return the (d_out, d_in) delta of TIES, or of TIES after DARE.

        T_k = the largest entries of dW_k by magnitude, the rest 0  (``magnitude``),
              or  M_k o dW_k / p,  M_k ~ Bernoulli(p)  (``random``, DARE)
        s = sign(sum_k T_k)  (``total``),  or  sign(sum_k sign(T_k))  (``frequency``),  sign(0) = 1
        dW = sum_k T_k [sign(T_k) = s] / max(1, number of k with sign(T_k) = s)

    On the dense delta of each layer, as in PEFT's ``ties_svd`` and ``dare_ties_svd``; PEFT's
    ``ties`` works on the factors, which is another method.

    Args:
        density: p, the share of the entries that is kept, above 0, up to 1.
    """
    if thinning == "random":
        return elect_and_average(dropped_and_rescaled(layer, density, seed), sign)
    return elect_and_average(trimmed(layer.dense(), density), sign)


def trimmed(stacked: Tensor, density: float) -> Tensor:
    """Return (N, ...) tensors that each keep their ``int(density * size)`` largest entries by
    magnitude, at least one.
    """
    flat = stacked.flatten(1)
    kept = flat.abs().topk(max(1, int(density * flat.shape[1])), dim=1).indices
    return torch.zeros_like(flat).scatter(1, kept, flat.gather(1, kept)).reshape(stacked.shape)


def dropped_and_rescaled(layer: Layer, density: float, seed: int) -> Tensor:
    """Return the deltas, each entry kept with probability p and divided by p, (adapters at this
    layer, d_out, d_in).

    The choice depends on the seed, the layer and the adapter's number, never on the device.
    """
    deltas = layer.dense()
    masks = []
    for k in layer.deltas:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {layer.path} {k}".encode()))
        masks.append(torch.rand(deltas.shape[1:], generator=generator) < density)
    return deltas * torch.stack(masks).to(deltas) / density


def elect_and_average(stacked: Tensor, sign: Sign) -> Tensor:
    """Return the mean of those entries of (N, ...) tensors that have the elected sign."""
    votes = (stacked if sign == "total" else stacked.sign()).sum(0)
    agrees = stacked.sign() == torch.where(votes >= 0, 1.0, -1.0)
    return (stacked * agrees).sum(0) / agrees.sum(0).clamp_min(1)


def tsv_m(layer: Layer) -> LowRankDelta:
    """Return TSV-M: task singular vectors, made orthogonal to one another.

        U_k S_k V_k^T = SVD of dW_k,   U = polar([U_1 | ... | U_N]),   V = polar([V_1 | ... | V_N])
        dW = U diag(S_1, ..., S_N) V^T

    where polar(M) is the nearest matrix with orthonormal columns. The paper keeps 1/N of each
    task's singular vectors, since it merges weights of full rank. A LoRA has r_k of them, and all
    are kept, unless they are more than the weight has dimensions; then 1/N of that number each.
    """
    spectra = [singular_triplets(delta) for delta in layer.deltas.values()]
    most = min(layer.together.delta.shape)
    if sum(len(spectrum.values) for spectrum in spectra) > most:
        most = max(1, most // len(spectra))
    up = _polar(torch.cat([spectrum.right[:, :most] for spectrum in spectra], dim=1))
    down = _polar(torch.cat([spectrum.left[:, :most] for spectrum in spectra], dim=1))
    return LowRankDelta(up * torch.cat([spectrum.values[:most] for spectrum in spectra]), down.T)


def _polar(columns: Tensor) -> Tensor:
    """Return the orthonormal factor of a matrix's polar decomposition, the same shape."""
    u, _, vh = svd(columns)
    return u @ vh


def np_lora(layer: Layer, *, projection: float | None = 0.5) -> LowRankDelta:
    """Return NP-LoRA, which takes the style's directions out of all other adapters; where the style
    changes nothing, the sum of the others.

        V = right singular vectors of dW_style,  (d_in, r)
        dW = dW_style + sum_(k != style) dW_k (I - mu / (1 + mu) V V^T)

    Each term of the sum is the minimum of ``||W - dW_k||^2 + mu ||W V||^2`` over W. The first
    adapter is the style; the paper has one other, here there may be more.

    Args:
        projection: mu, 0 or more: 0 is the plain sum. None: its limit, the hard projection.
    """
    if STYLE not in layer.deltas:
        return layer.together.delta
    share = 1.0 if projection is None else projection / (1 + projection)
    directions = singular_triplets(layer.deltas[STYLE]).left
    projected = {
        k: delta
        if k == STYLE
        else LowRankDelta(delta.up, delta.down - share * (delta.down @ directions) @ directions.T)
        for k, delta in layer.deltas.items()
    }
    return stack(projected).delta


@dataclass(frozen=True)
class _Scales:
    """ACE's s_k and e_k, (N,) each, and the factor of the prior; for deltas that differ in size, if
    they do.
    """

    differ: bool
    covariance: Tensor
    ridge: Tensor
    prior: Tensor


def ace(layer: Layer) -> LowRankDelta:
    """Return ACE-Merging: RegMean with input covariances that are estimated from the deltas.

        C_k = dW_k less its mean over outputs,   t_k = tr(C_k^T C_k)
        S_k = s_k C_k^T C_k,   s_k = 1 and e_k = eps,  or  s_k = 1 / t_k and e_k = eps / t_k
        W = sum_k C_k (S_k + e_k I) (sum_k (S_k + e_k I) + 1 c^T)^-1
        dW = W,  or  W + mean(Z) U V^T

    ``1 c^T`` is the collective prior: c is the mean row of ``sum_k S_k``. The second of each pair
    of formulas is for layers whose deltas differ in size: where the variance of ``log ||dW_k||^2``
    over the square of its mean is above 0.3. There c is divided by the mean of ``||dW_k||^2``, and
    ``U Z V^T`` are the leading 30 % of the singular triplets of

        W + sum_k dW_k (S_k - 1/N sum_j (S_j + e_j I))

    All this, with an absolute eps, is in the authors' code. Ours are four things. 30 % of the
    triplets that are not zero are leading, at least one: most are zero for LoRAs, and their
    directions arbitrary. An adapter that does not change this layer is left out, since its
    covariance would be unknown. A lone adapter is passed through. Convolutions are merged as
    matrices, where the authors average them. With D = [down_1; ...; down_N] all matrices that are
    solved are R x R.
    """
    deltas = [delta for delta in layer.deltas.values() if delta.squared_norm() > 0]
    if len(deltas) < 2:
        return deltas[0] if deltas else layer.together.delta
    centred = [LowRankDelta(delta.up - delta.up.mean(0), delta.down) for delta in deltas]
    scales = _scales(deltas, centred)
    down = torch.cat([delta.down for delta in deltas])
    overlaps = down @ down.T
    # sum_k S_k = D^T M D,  down_k S_k = own_k down_k
    factors = [
        share * delta.up.T @ delta.up
        for share, delta in zip(scales.covariance, centred, strict=True)
    ]
    parts = [delta.down @ delta.down.T @ m for m, delta in zip(factors, deltas, strict=True)]
    gram = _block_diagonal(factors)
    own = _block_diagonal(parts)
    ridges = torch.cat(
        [e.expand(delta.rank) for e, delta in zip(scales.ridge, deltas, strict=True)]
    )
    ridge = scales.ridge.sum() * torch.eye(len(down)).to(down)
    sums = down.sum(1, keepdim=True)
    prior = scales.prior / down.shape[1] * sums @ sums.T
    # D (e I + (I + p/d 1 1^T) D^T M D)^-1 = (e I + (D D^T + prior) M)^-1 D
    core = torch.linalg.solve(ridge + (overlaps + prior) @ gram, own + ridges.diag(), left=False)
    up = torch.cat([delta.up for delta in centred], dim=1) @ core
    if scales.differ:
        rest = own - (overlaps @ gram + ridge) / len(deltas)
        fused = LowRankDelta(up + torch.cat([delta.up for delta in deltas], dim=1) @ rest, down)
        up = up + _refinement(fused)
    return LowRankDelta(up, down)


def _block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    whole: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return whole


def _refinement(fused: LowRankDelta) -> Tensor:
    """Return ``mean(Z) U V^T`` of a delta as the up-projection, (d_out, R), of its ``down``."""
    spectrum = singular_triplets(fused)
    count = max(1, int(ACE_LEADING * len(spectrum.values)))
    left = spectrum.right[:, :count]
    values = spectrum.values[:count]
    return values.mean() * (left / values) @ (left.T @ fused.up)


def _scales(deltas: Sequence[LowRankDelta], centred: Sequence[LowRankDelta]) -> _Scales:
    energies = torch.stack([delta.squared_norm() for delta in deltas])
    logs = (energies + ACE_TINY).log()
    differ = bool(logs.var() / (logs.mean().square() + ACE_TINY) > ACE_DIFFERENT)
    ones = torch.ones_like(energies)
    if not differ:
        return _Scales(differ, ones, ACE_EPS * ones, ones[0])
    shares = 1 / (torch.stack([delta.squared_norm() for delta in centred]) + ACE_TINY)
    return _Scales(differ, shares, ACE_EPS * shares, 1 / (energies.mean() + ACE_TINY))
