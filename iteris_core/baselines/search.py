"""Searches for scales, on the calibration error: methods that have nothing but a scale must be given their best one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

SMALLEST, LARGEST = 1 / 32, 16.0
_HALVINGS, _ROUNDS, _STEP = 3, 2, 0.1


def best_scale(error: Callable[[float], float]) -> float:
    """Return a scale with the smallest error, to about 6 percent of itself, in 10 to 20 evaluations.

    Doubles or halves from 1 until the error rises on both sides, then halves the distances around the best. Finds a local
    minimum; errors against scale have one in practice, since at 0 and far out nothing of the adapters is left.

    Args:
        error: Of a scale; any number, not NaN.
    """
    known: dict[float, float] = {}

    def at(scale: float) -> float:
        if scale not in known:
            known[scale] = error(scale)
        return known[scale]

    best = 1.0
    for factor in (0.5, 2.0):
        while SMALLEST <= best * factor <= LARGEST and at(best * factor) < at(best):
            best *= factor
    at(best / 2), at(best * 2)
    for _ in range(_HALVINGS):
        below = max((scale for scale in known if scale < best), default=best)
        above = min((scale for scale in known if scale > best), default=best)
        best = min((best, (below + best) / 2, (best + above) / 2), key=at)
    return best


def best_coefficients(error: Callable[[Sequence[float]], float], count: int) -> list[float]:
    """Return one coefficient per adapter with a small error: the best common one, then each in turn by parabolas.

    Args:
        error: Of the coefficients.
        count: How many; each costs 6 evaluations on top of `best_scale`'s.
    """
    common = best_scale(lambda scale: error([scale] * count))
    best, smallest = [common] * count, error([common] * count)
    if count == 1:
        return best
    for _ in range(_ROUNDS):
        for k in range(count):
            step = max(_STEP, _STEP * abs(best[k]))
            sides = [[*best[:k], best[k] + shift, *best[k + 1 :]] for shift in (-step, step)]
            below, above = (error(side) for side in sides)
            candidates = [(below, sides[0]), (above, sides[1])]
            bend = below - 2 * smallest + above
            if bend > 0 and math.isfinite(bend):
                lowest = best[k] + 0.5 * step * (below - above) / bend
                candidate = [*best[:k], lowest, *best[k + 1 :]]
                candidates.append((error(candidate), candidate))
            found, coefficients = min(candidates, key=lambda pair: pair[0])
            if found < smallest:
                best, smallest = coefficients, found
    return best
