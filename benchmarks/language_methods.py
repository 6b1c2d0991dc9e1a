"""The compared methods: IterIS in its variants, and every rival of `iteris_core.rivals`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from iteris_core import MergeConfig
from iteris_core.config import ITERIS_ONLY, BaselineOptions
from iteris_core.language.job import DEFAULT as DEFAULT_CONFIG
from iteris_core.rivals import METHODS

DEFAULT = "IterIS"
PAPER = "IterIS, the paper's objective"
ITERATIONS = 15
BALANCES = ("delta", "full", "uniform")
GAINS = (1.0, 1.5, 2.0, 4.0)
TARGETS = ("full_output", "delta")
PRESERVE = (0.0, 0.1, 1.0)
# (balance, unit gain): each scale as it is, each bound with the paper's scale, and both together
SCALES = (
    *((balance, 1.0) for balance in BALANCES),
    *(("delta", gain) for gain in GAINS[1:]),
    *((balance, 2.0) for balance in BALANCES[1:-1]),
)
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

    def settings(self) -> dict[str, Any]:
        """Return what the merge depends on as JSON values; of a rival what it looks at."""
        config = self.config.to_dict()
        unused = () if self.config.method == "iteris" else ITERIS_ONLY
        return {
            "config": {name: value for name, value in config.items() if name not in unused},
            "preserve": self.preserve,
            "padding": self.padding,
            "samples": self.samples,
        }


# the defaults for language: nothing may be set here but how many rows one forward call has
_DEFAULT = Way(replace(DEFAULT_CONFIG, samples_per_chunk=_CHUNK))
_SEARCHING = replace(
    _DEFAULT, samples=20
)  # of rules without statistics: the samples serve the search alone


def _way(way: Way = _DEFAULT, **settings: object) -> Way:
    return replace(way, config=replace(way.config, **settings))


# what the paper minimises; the ridge is the library's
_PAPER = _way(target="delta", balance="delta", unit_gain=1.0)


def main_ways() -> dict[str, Way]:
    """Return the rows of the main table: IterIS, and every rival at its defaults."""
    ways = {
        DEFAULT: _DEFAULT,
        PAPER: _PAPER,
        "IterIS, unit gain 2": _way(unit_gain=2.0),
    }
    ways |= {f"{name} + preserve": replace(way, preserve=1.0) for name, way in ways.items()}
    ways["regmean_pp + preserve"] = replace(_way(method="regmean_pp"), preserve=1.0)
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


# with equal weights `weighted` is `average`;
# `custom_diffusion` has a rule for cross-attention to texts only, which neither model has
_THE_SAME = {"weighted", "custom_diffusion"}
# least squares on the inputs, nothing shrunk, decides the scale; the sum at its best scale is
# `task_arithmetic`
_FIT_THEIR_SCALE = {"regmean_pp", "ssr", "mix_of_show", "average", "sum"}


def ablations() -> dict[str, Way]:
    """Return variants of the library's defaults, each with one setting changed."""
    return {
        "target full_output": _way(target="full_output"),
        "target delta": _way(target="delta"),
        "alpha 0.1": _way(alpha=0.1),
        "alpha 1e-2": _way(alpha=1e-2),
        "alpha 1e-3": _way(alpha=1e-3),
        "alpha 1e-4": _way(alpha=1e-4),
        "alpha 1e-6": _way(alpha=1e-6),
        "alpha 1e-8": _way(alpha=1e-8),
        **{f"balance {balance}": _way(balance=balance) for balance in BALANCES},
        "ridge paper": _way(ridge="paper"),
        **{f"unit gain {gain:g}": _way(unit_gain=gain) for gain in GAINS},
        "padding counted": replace(_DEFAULT, padding="count"),
        "rank of one LoRA": _way(rank=8),
        "5 samples per task": replace(_DEFAULT, samples=5),
        "15 samples per task": replace(_DEFAULT, samples=15),
        "50 samples per task": replace(_DEFAULT, samples=50),
        "100 samples per task": replace(_DEFAULT, samples=100),
        "preserve, weight 0.01": replace(_DEFAULT, preserve=0.01),
        "preserve, weight 0.1": replace(_DEFAULT, preserve=0.1),
        "preserve, weight 1": replace(_DEFAULT, preserve=1.0),
    }


def scale_way(target: str, balance: str, gain: float, preserve: float) -> Way:
    """Return a way with this scale of the tasks, this bound of unit gain and this weight of the
    preserve task.
    """
    return replace(_way(target=target, balance=balance, unit_gain=gain), preserve=preserve)


def scale_name(target: str, balance: str, gain: float, preserve: float) -> str:
    """Return the name of `scale_way`'s way in the records."""
    return f"{target}, balance {balance}, unit gain {gain:g}, preserve {preserve:g}"


def scale_ways() -> dict[str, Way]:
    """Return every scale and bound of `SCALES` with every target and weight of the preserve
    task.
    """
    chosen = [
        (target, *scale, preserve)
        for target in TARGETS
        for scale in SCALES
        for preserve in PRESERVE
    ]
    return {scale_name(*settings): scale_way(*settings) for settings in chosen}


def iterating(solves: int) -> Way:
    """Return the paper's Algorithm 1 after a number of solves."""
    return _way(_PAPER, engine="iterate", max_iter=solves)


def title(name: str, ways: Mapping[str, Way]) -> str:
    """Return a way's name in a table, the library's defaults marked."""
    return f"{name} (default)" if ways[name] == _DEFAULT else name
