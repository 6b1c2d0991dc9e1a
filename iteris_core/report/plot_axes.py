"""Axes of the pictures of a report: colours, one value per layer, blocks below, names as labels."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from ..layers import block_of
from .records import LayerReport

# Okabe and Ito's colours, which are told apart with every kind of colour blindness, in the order in
# which the page gives them to LoRAs (web/paint.js); markers tell them apart where they come again.
PALETTE = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#0072b2")
TEXT = "#dddddd"
LINES = "#555555"
_MARKERS = "os^Dv<>"
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
        *zip(*known, strict=True), linestyle="", marker=".", markersize=2, alpha=0.4, color=color
    )
    middles = []
    for start, stop in block_spans(layers):
        inside = [value for value in values[start:stop] if value is not None]
        if inside:
            middles.append(((start + stop - 1) / 2, statistics.median(inside)))
    style = {"linestyle": "--" if dashed else "-", "marker": marker}
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
    axes.legend()
    axes.grid(axis="y")
    name_blocks(axes, layers)


def name_blocks(axes: Any, layers: Sequence[LayerReport]) -> None:
    """Name the blocks below the picture, and shade every other one."""
    spans = block_spans(layers)
    for start, stop in spans[::2]:
        axes.axvspan(start - 0.5, stop - 0.5, color=TEXT, alpha=0.06, linewidth=0)
    shown = spans[:: -(-len(spans) // _MOST_TICKS)]
    names = [block_of(layers[start].path) for start, _ in shown]
    axes.set_xticks(
        [(start + stop - 1) / 2 for start, stop in shown], names, rotation=90, fontsize=6.5
    )
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_xlabel("block, as the model runs")


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
