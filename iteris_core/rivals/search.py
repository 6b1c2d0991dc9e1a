"""Searches for the best scale or coefficients of a rival, on the calibration error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..errors import CalibrationError

SMALLEST = 1 / 32
LARGEST = 16.0
_PARABOLAS = 4
_ROUNDS = 4
_STEP = 0.1
_CLOSE = 0.02


def best_scale(error: Callable[[float], float]) -> float:
    """Return the scale with the smallest error, in about 8 evaluations.

    Doubles or halves from 1 until the error rises on both sides, then goes to the lowest point of a
    parabola through the best scale and its neighbours, a few times. Finds a local minimum; in
    practice there is one, since at 0 nothing is left of the adapters, and far out nothing of the
    base model.

    Args:
        error: Error of a scale; may be infinite.

    Raises:
        CalibrationError: Every error is infinite.
    """
    known: dict[float, float] = {}

    def at(scale: float) -> float:
        if scale not in known:
            known[scale] = error(scale)
        return known[scale]

    best = 1.0
    while math.isinf(at(best)):
        if best <= SMALLEST:
            raise CalibrationError(
                f"no scale from {SMALLEST} to 1 gives a finite output of the network; use a wider "
                "precision"
            )
        best /= 2
    for factor in (0.5, 2.0):
        while SMALLEST <= best * factor <= LARGEST and at(best * factor) < at(best):
            best *= factor
    for _ in range(_PARABOLAS):
        below = max((scale for scale in known if scale < best), default=None)
        above = min((scale for scale in known if scale > best), default=None)
        if below is None or above is None:
            break
        lowest = _bottom([below, best, above], [at(below), at(best), at(above)])
        if abs(lowest - best) < _CLOSE * best:
            break
        best = min(best, lowest, key=at)
    return best


def _bottom(places: Sequence[float], values: Sequence[float]) -> float:
    """Return where the parabola through three points is lowest; the middle of the wider gap, if one
    of them is infinite.
    """
    (a, b, c) = places
    (u, v, w) = values
    left = (b - a) * (v - w)
    right = (b - c) * (v - u)
    if math.isfinite(u) and math.isfinite(w) and left != right:
        return b - 0.5 * ((b - a) * left - (b - c) * right) / (left - right)
    return (a + b) / 2 if b - a > c - b else (b + c) / 2


def best_coefficients(error: Callable[[Sequence[float]], float], count: int) -> list[float]:
    """Return one coefficient per adapter with a small error: the best common one, then each in turn
    by parabolas.

    Args:
        error: Error of coefficients; may be infinite.
        count: Number of coefficients; each costs 3 evaluations per round, of which there are 4 at
            most, on top of `best_scale`'s.
    """
    common = best_scale(lambda scale: error([scale] * count))
    best = [common] * count
    if count == 1:
        return best
    smallest = error(best)
    for _ in range(_ROUNDS):
        before = smallest
        for k in range(count):
            step = max(_STEP, _STEP * abs(best[k]))
            places = [best[k] - step, best[k], best[k] + step]
            values = [error(_with(best, k, places[0])), smallest, error(_with(best, k, places[2]))]
            if values[0] + values[2] > 2 * smallest:  # only then has the parabola a lowest point
                places.append(_bottom(places, values))
                values.append(error(_with(best, k, places[-1])))
            smallest, value = min(zip(values, places, strict=True))
            best = _with(best, k, value)
        if smallest > (1 - _CLOSE) * before:
            break
    return best


def _with(values: Sequence[float], k: int, value: float) -> list[float]:
    return [*values[:k], value, *values[k + 1 :]]
