"""The compared methods: IterIS in its variants, and every rival of `iteris_core.rivals`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from iteris_core import MergeConfig
from iteris_core.config import BaselineOptions
from iteris_core.rivals import METHODS

SWEEP = "IterIS, sweep"
ITERATIONS = 15
_CHUNK = 64


@dataclass(frozen=True)
class Way:
    """One way to merge.

    Args:
        config: Settings of the library.
        preserve: Weight of a preserve task, samples of the base model's own tasks with the base as
            teacher; 0: none.
        padding: Whether padding counts in the statistics: ``ignore`` or ``count``.
        samples: Number of samples per task.
        follows: Name of the same way with one iteration less; None: there is none.
    """

    config: MergeConfig
    preserve: float = 0.0
    padding: str = "ignore"
    samples: int = 50
    follows: str | None = None


_DEFAULT = Way(MergeConfig(target="delta", samples_per_chunk=_CHUNK))
_SEARCHING = replace(
    _DEFAULT, samples=20
)  # of rules without statistics: the samples serve the search alone


def _way(way: Way = _DEFAULT, **settings: object) -> Way:
    return replace(way, config=replace(way.config, **settings))


def main_ways() -> dict[str, Way]:
    """Return the rows of the main table: IterIS, and every rival at its defaults."""
    preserving = replace(_DEFAULT, preserve=1.0)
    ways = {
        SWEEP: _DEFAULT,
        "IterIS, full_output": _way(target="full_output"),  # the default
        "IterIS + preserve": preserving,
        "IterIS, full_output + preserve": _way(preserving, target="full_output"),
        "regmean_pp + preserve": _way(preserving, method="regmean_pp"),
    }
    for name, method in METHODS.items():
        ways[name] = _way(_SEARCHING if method.searches else _DEFAULT, method=name)
    return {name: way for name, way in ways.items() if name not in _THE_SAME}


def best_scale_ways() -> dict[str, Way]:
    """Return the rivals whose scale is free, at the scale that gives the smallest error on the
    calibration samples.
    """
    ways = {}
    for name, method in METHODS.items():
        if not (method.searches or name in _THE_SAME or name in _FIT_THEIR_SCALE):
            start = _DEFAULT if method.inputs == "teacher" else _SEARCHING
            ways[f"{name}, best scale"] = _way(
                start, method=name, baseline=BaselineOptions(scale="search")
            )
    return ways


# at the rank sum r_k nothing is cut, so `svd` is `sum`; with equal weights `weighted` is `average`;
# `custom_diffusion` has a rule for cross-attention to texts only, which neither model has
_THE_SAME = {"svd", "weighted", "custom_diffusion"}
# least squares on the inputs, nothing shrunk, decides the scale; the sum at its best scale is
# `task_arithmetic`
_FIT_THEIR_SCALE = {"regmean_pp", "ssr", "mix_of_show", "average", "sum"}


def ablations() -> dict[str, Way]:
    """Return variants of the sweep, each with one setting changed."""
    return {
        "alpha 0.1": _way(alpha=0.1),
        "alpha 1e-2": _way(alpha=1e-2),
        "alpha 1e-3": _way(alpha=1e-3),
        "alpha 1e-4 (default)": _DEFAULT,
        "alpha 1e-6": _way(alpha=1e-6),
        "alpha 1e-8": _way(alpha=1e-8),
        "balance delta (default)": _DEFAULT,
        "balance full": _way(balance="full"),
        "balance uniform": _way(balance="uniform"),
        "ridge paper": _way(ridge="paper"),
        "padding counted": replace(_DEFAULT, padding="count"),
        "rank of one LoRA": _way(rank=8),
        "5 samples per task": replace(_DEFAULT, samples=5),
        "15 samples per task": replace(_DEFAULT, samples=15),
        "100 samples per task": replace(_DEFAULT, samples=100),
        "preserve, weight 0.01": replace(_DEFAULT, preserve=0.01),
        "preserve, weight 0.1": replace(_DEFAULT, preserve=0.1),
        "preserve, weight 1": replace(_DEFAULT, preserve=1.0),
    }


def iterating(solves: int) -> Way:
    """Return the paper's Algorithm 1 after a number of solves."""
    return _way(engine="iterate", max_iter=solves)


def title(name: str, ways: Mapping[str, Way]) -> str:
    """Return a method's name in a table: IterIS in bold."""
    return f"**{name}**" if ways[name].config.method == "iteris" else name
