"""Gradient descent that never ends above its start.

Its steps are those of Adam (Kingma and Ba 2015, arXiv:1412.6980). No rate suits all models: what a
transformer needs makes an epsilon UNet diverge. So the error of samples that no gradient sees
decides which factors are kept, and how large the steps are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..progress import Progress, nobody

LOOK = 20  # steps from one look at the error to the next
# Size of the first steps, relative to the factors' own. At 0.05, the error of a small transformer
# rose before it fell.
_RATE = 0.03
_BETAS = (0.9, 0.99)
_WARMUP = 10  # steps, at the start and after a return
_TOLERANCE = 1.15  # how far the error may rise above the lowest one before the factors return
_SLOWER = 0.3  # what the rate is multiplied by then
_PATIENCE = 40  # steps without a lower error, after which the descent ends


@dataclass(frozen=True)
class Lowest:
    """The lowest error of a descent.

    Args:
        level: The error, where that of the start is 1.
        step: After how many steps it was reached; 0: no step lowered it.
    """

    level: float = 1.0
    step: int = 0


def descend(
    factors: Sequence[Tensor],
    steps: int,
    take_gradients: Callable[[], None],
    level: Callable[[], float],
    progress: Progress = nobody,
) -> Lowest:
    """Change factors in place by gradient steps, leave them where the error was lowest, and return
    that. The size of the steps rises over the first of them, and falls along half a cosine to a
    twentieth. Where the error rises too far, the factors return to the best ones, and smaller steps
    begin from there. Where it does not fall any more, no further steps are made.

    Args:
        factors: Leaf tensors, each of whose steps is relative to its root mean square.
        take_gradients: Gives the factors their gradients.
        level: Returns the error of samples that no gradient sees, relative to that of the start.
    """
    sizes = [float(factor.detach().square().mean().sqrt()) for factor in factors]
    best, lowest = _copies(factors), Lowest()
    optimiser, rate, since = _adam(factors), _RATE, 0
    for step in range(1, steps + 1):
        progress(step - 1, steps)
        since += 1
        for group, size in zip(optimiser.param_groups, sizes, strict=True):
            group["lr"] = rate * size * _cosine(step - 1, steps) * min(1.0, since / _WARMUP)
        take_gradients()
        optimiser.step()
        if step % LOOK and step < steps:
            continue
        now = level()
        if now < lowest.level:
            best, lowest = _copies(factors), Lowest(now, step)
        elif not now <= _TOLERANCE * lowest.level:  # or it is not a number
            _restore(factors, best)
            optimiser, rate, since = _adam(factors), _SLOWER * rate, 0
        if min(since, step - lowest.step) >= _PATIENCE:
            break
    _restore(factors, best)
    progress(steps, steps)
    return lowest


def _cosine(step: int, steps: int) -> float:
    """Return the height of half a cosine that falls from 1 to a twentieth."""
    return 0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2


def _adam(factors: Sequence[Tensor]) -> torch.optim.Adam:
    return torch.optim.Adam([{"params": [factor]} for factor in factors], betas=_BETAS)


def _copies(factors: Sequence[Tensor]) -> list[Tensor]:
    return [factor.detach().clone() for factor in factors]


@torch.no_grad()
def _restore(factors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for factor, value in zip(factors, values, strict=True):
        factor.copy_(value)
