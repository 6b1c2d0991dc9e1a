"""Axes of the pictures of a report: one value per layer, blocks below, names as labels."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from ..files.blocks import block_of
from .records import LayerReport

# Okabe and Ito's colours, which are told apart with every kind of colour blindness; markers tell
# them apart in print, too.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_MARKERS = "os^Dv<>"
_GREY = "#888888"
_MOST_TICKS = 24


def draw_line(
    axes: Any,
    layers: Sequence[LayerReport],
    values: Sequence[float | None],
    i: int,
    label: str,
    *,
    dashed: bool = False,
) -> None:
    """Draw one value per layer as dots, and the median of each block as a line."""
    color = color_of(i)
    marker = marker_of(i)
    known = [(x, value) for x, value in enumerate(values) if value is not None]
    axes.plot(
        *zip(*known, strict=True), linestyle="", marker=".", markersize=4, alpha=0.35, color=color
    )
    middles = []
    for start, stop in block_spans(layers):
        inside = [value for value in values[start:stop] if value is not None]
        if inside:
            middles.append(((start + stop - 1) / 2, statistics.median(inside)))
    style = {
        "linestyle": "--" if dashed else "-",
        "marker": marker,
        "markersize": 6,
        "linewidth": 2,
    }
    axes.plot(*zip(*middles, strict=True), color=color, label=label_of(label), **style)


def block_spans(layers: Sequence[LayerReport]) -> list[tuple[int, int]]:
    """Return the start and the end of each block in the order of the layers."""
    sizes = [
        len(list(group))
        for _, group in itertools.groupby(layers, key=lambda layer: block_of(layer.path))
    ]
    stops = list(itertools.accumulate(sizes))
    return list(zip([0, *stops], stops, strict=False))


def finish(axes: Any, layers: Sequence[LayerReport]) -> None:
    axes.legend(fontsize=12)
    axes.grid(axis="y", alpha=0.3)
    name_blocks(axes, layers)


def name_blocks(axes: Any, layers: Sequence[LayerReport]) -> None:
    """Name the blocks below the picture, and shade every other one."""
    spans = block_spans(layers)
    for start, stop in spans[::2]:
        axes.axvspan(start - 0.5, stop - 0.5, color=_GREY, alpha=0.1, linewidth=0)
    shown = spans[:: -(-len(spans) // _MOST_TICKS)]
    names = [block_of(layers[start].path) for start, _ in shown]
    axes.set_xticks(
        [(start + stop - 1) / 2 for start, stop in shown], names, rotation=90, fontsize=10
    )
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_xlabel("block, in the order in which the model is run", fontsize=12)


def color_of(i: int) -> str:
    return PALETTE[i % len(PALETTE)]


def marker_of(i: int) -> str:
    """Return another marker where colours begin again."""
    return _MARKERS[(i + i // len(PALETTE)) % len(_MARKERS)]


def label_of(name: str, most: int = 44) -> str:
    """Return a name that matplotlib shows as it is: never as a formula, and in the legend although
    it begins with an underscore.
    """
    name = name if len(name) <= most else f"...{name[-most + 3 :]}"
    return f"{' ' * name.startswith('_')}{name}".replace("$", r"\$")
