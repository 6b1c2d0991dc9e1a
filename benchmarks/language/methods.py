"""The compared methods: IterIS in its variants, and every rival of `iteris_core.rivals`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

from iteris_core import MergeConfig
from iteris_core.config import ITERIS_ONLY
from iteris_core.language.job import DEFAULT as DEFAULT_CONFIG
from iteris_core.rivals.methods import METHODS


@dataclass(frozen=True)
class Way:
    """One way to merge.

    Args:
        config: Settings of the library.
        preserve: Weight of a preserve task, samples of the base model's own tasks with the base as
            teacher; 0: none.
        samples: Number of samples per task.
    """

    config: MergeConfig
    preserve: float = 0.0
    samples: int = 50

    def settings(self) -> dict[str, Any]:
        """Return what the merge depends on as JSON values; of a rival what it looks at."""
        config = self.config.to_dict()
        unused = () if self.config.method == "iteris" else ITERIS_ONLY
        return {
            "config": {name: value for name, value in config.items() if name not in unused},
            "preserve": self.preserve,
            "samples": self.samples,
        }

    @property
    def key(self) -> str:
        """The name of its scores in the records."""
        text = json.dumps(self.settings(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def but(self, **settings: object) -> Way:
        """Return the same way with other settings of the library."""
        return replace(self, config=replace(self.config, **settings))


# the defaults for language: nothing may be set here
DEFAULT = Way(DEFAULT_CONFIG)
# what the paper minimises; the ridge is the library's
PAPER = DEFAULT.but(target="delta", balance="delta", unit_gain=1.0)
# the paper's Algorithm 1 after so many solves; the first has X~ = X
ITERATIONS = {
    solves: PAPER.but(engine="iterate", max_iter=solves) for solves in (1, 2, 3, 4, 5, 10, 15)
}
# with equal weights `weighted` is `average`;
# `custom_diffusion` has a rule for cross-attention to texts only, which neither model has
_THE_SAME = {"weighted", "custom_diffusion"}
RIVALS = {
    # of rules without statistics the samples serve the search alone
    name: replace(DEFAULT, samples=20 if method.searches else 50).but(method=name)
    for name, method in METHODS.items()
    if name not in _THE_SAME
}
_OURS = {
    "IterIS (default)": DEFAULT,
    "IterIS, the paper's objective": PAPER,
    "IterIS, unit gain 2": DEFAULT.but(unit_gain=2.0),
}
MAIN = {
    **_OURS,
    **{f"{name} + preserve": replace(way, preserve=1.0) for name, way in _OURS.items()},
    "regmean_pp + preserve": replace(RIVALS["regmean_pp"], preserve=1.0),
    **RIVALS,
}
# the defaults, each with one setting changed
ABLATIONS = {
    **{f"target {target}": DEFAULT.but(target=target) for target in ("full_output", "delta")},
    **{
        f"alpha {text}": DEFAULT.but(alpha=float(text))
        for text in ("0.1", "1e-2", "1e-3", "1e-4", "1e-6", "1e-8")
    },
    **{f"balance {way}": DEFAULT.but(balance=way) for way in ("delta", "full", "uniform")},
    "ridge paper": DEFAULT.but(ridge="paper"),
    **{f"unit gain {gain:g}": DEFAULT.but(unit_gain=gain) for gain in (1.0, 1.5, 2.0, 4.0)},
    "rank of one LoRA": DEFAULT.but(rank=8),
    **{f"{count} samples per task": replace(DEFAULT, samples=count) for count in (5, 15, 50, 100)},
    **{
        f"preserve, weight {weight:g}": replace(DEFAULT, preserve=weight)
        for weight in (0.01, 0.1, 1.0)
    },
}
