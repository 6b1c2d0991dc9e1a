"""Pictures of a merge report, drawn by matplotlib: dark, and readable in a node 480 pixels wide."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..iteris_core.blocks import block_of
from ..iteris_core.errors import IterisError, MissingLibraryError
from ..iteris_core.report.layers import LayerReport, TaskAtLayerReport
from ..iteris_core.report.records import MergeReport

# besides matplotlib's own, fonts of Linux, Windows and macOS for names in Chinese and Japanese
_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "Yu Gothic",
    "PingFang SC",
    "Hiragino Sans",
)

# What a picture answers: whether the merge is better than stacking; how much of each LoRA gets into
# the others' pictures; where it fails; what it does on unseen prompts; how tasks were balanced; the
# ranks; what a lower rank would keep.
Question = Literal["stacking", "leaks", "layers", "unseen", "weights", "ranks", "lower_rank"]

# Okabe and Ito's colours, which are told apart with every kind of colour blindness, in the order in
# which the page gives them to LoRAs (web/paint.js); markers tell them apart where they come again.
_PALETTE = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#0072b2")
_MARKERS = "os^Dv<>"
_TEXT = "#dddddd"
_LINES = "#555555"
_MOST_TICKS = 24
_WIDTH, _HEIGHT = 960, 600  # in pixels
_DPI = 200
_DARK: dict[Any, Any] = {
    "figure.facecolor": "#202020",
    **dict.fromkeys(("axes.facecolor", "legend.facecolor"), "#282828"),
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _TEXT),
    **dict.fromkeys(("axes.edgecolor", "legend.edgecolor", "grid.color"), _LINES),
    **dict.fromkeys(("font.size", "axes.titlesize"), 8),
    **dict.fromkeys(("legend.fontsize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize"), 7),
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.6,
}


def pictures(
    report: MergeReport,
    others: Sequence[MergeReport] = (),  # noqa: ARG001, until this node is gone
    *,
    asked: Collection[Question] | None = None,
) -> dict[Question, Tensor]:
    """Return a picture per question that is asked and that the report can answer: question ->
    (height, width, 3), from 0 to 1.

    Args:
        asked: The questions; None: all of them.

    Raises:
        IterisError: The report has no layers.
        MissingLibraryError: matplotlib is not installed.
    """
    if not report.layers:
        raise IterisError(
            "the report has no layers, so there is nothing to draw; connect the report of a merge"
        )
    try:
        from cycler import cycler  # which matplotlib needs
        from matplotlib import font_manager, rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingLibraryError(
            "pictures of a report are drawn by matplotlib, which is not installed here. Install it "
            "into ComfyUI's Python, python -m pip install matplotlib, and start ComfyUI again; the "
            "text of the report does not need it"
        ) from error
    installed = {font.name for font in font_manager.fontManager.ttflist}
    count = len(_PALETTE) * len(_MARKERS)
    looks = {
        **_DARK,
        "font.family": ["DejaVu Sans", *(name for name in _FONTS if name in installed)],
        "axes.prop_cycle": cycler(color=_PALETTE * len(_MARKERS))
        + cycler(marker=[_MARKERS[(i + i // len(_PALETTE)) % len(_MARKERS)] for i in range(count)]),
    }
    drawn: dict[Question, Tensor] = {}
    with rc_context(looks):
        for question, title, draw in _pages(report):
            if asked is not None and question not in asked:
                continue
            size = (_WIDTH / _DPI, _HEIGHT / _DPI)
            figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
            canvas: Any = FigureCanvasAgg(figure)  # its methods have no types
            figure.suptitle(title, fontsize=9, fontweight="bold")
            draw(figure)
            canvas.draw()
            pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
            drawn[question] = pixels.reshape(_HEIGHT, _WIDTH, 4)[..., :3].float() / 255
    return drawn


Page = tuple[Question, str, Callable[[Any], None]]


def _pages(report: MergeReport) -> Iterator[Page]:
    title = "Error of each LoRA, layer by layer: 0 is as alone"
    yield "layers", title, lambda figure: _residuals(figure, report)
    title = "Weight of each task (lambda), layer by layer"
    yield "weights", title, lambda figure: _balance(figure, report)
    yield "ranks", "Rank of the merged LoRA", lambda figure: _ranks(figure, report)


def _by_task(report: MergeReport) -> dict[str, list[TaskAtLayerReport | None]]:
    """Return task -> its figures at every layer; None where it does not count."""
    names = dict.fromkeys(entry.task for layer in report.layers for entry in layer.tasks)
    return {
        name: [next((e for e in layer.tasks if e.task == name), None) for layer in report.layers]
        for name in names
    }


def _residuals(figure: Any, report: MergeReport) -> None:
    axes = figure.subplots()
    for task, of_layer in _by_task(report).items():
        leaks = all(entry is None or not entry.wears for entry in of_layer)
        values = [None if entry is None else entry.residual for entry in of_layer]
        label = f"{task}: {'leak' if leaks else 'residual'}"
        _draw_line(axes, report.layers, values, label, dashed=leaks)
    _finish(axes, report.layers, "relative error")


def _balance(figure: Any, report: MergeReport) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True)
    for task, entries in _by_task(report).items():
        weights = [e.weight if e and e.weight > 0 else None for e in entries]
        energies = [e.weight * e.energy or None if e else None for e in entries]
        _draw_line(upper, report.layers, weights, task)
        _draw_line(lower, report.layers, energies, task)
    for axes, label in ((upper, "lambda"), (lower, r"lambda x $||X\,dW^T||^2$")):
        axes.set_yscale("log")
        axes.set_ylabel(label)
        axes.grid(axis="y")
    upper.legend()
    _name_blocks(lower, report.layers)


def _ranks(figure: Any, report: MergeReport) -> None:
    lost = [layer.cut for layer in report.layers]
    upper, *lower = figure.subplots(2 if any(lost) else 1, 1, sharex=True, squeeze=False).flat
    ranks = [layer.rank for layer in report.layers]
    upper.step(range(len(ranks)), ranks, where="mid", marker="")
    upper.set_ylabel("rank")
    upper.set_ylim(bottom=0)
    upper.grid(axis="y")
    for axes in lower:
        _draw_line(axes, report.layers, lost, "this merge")
        _finish(axes, report.layers, "lost by the cut")
    if not lower:
        _name_blocks(upper, report.layers)


def _draw_line(
    axes: Any,
    layers: Sequence[LayerReport],
    values: Sequence[float | None],
    label: str,
    *,
    dashed: bool = False,
) -> None:
    """Draw one value per layer as dots, and the median of each block as a line; nothing without a
    value.
    """
    known = [(x, value) for x, value in enumerate(values) if value is not None]
    if not known:
        return
    middles = []
    for start, stop in _block_spans(layers):
        inside = [value for value in values[start:stop] if value is not None]
        if inside:
            middles.append(((start + stop - 1) / 2, statistics.median(inside)))
    style = "--" if dashed else "-"
    (line,) = axes.plot(*zip(*middles, strict=True), label=_label_of(label), linestyle=style)
    axes.scatter(*zip(*known, strict=True), s=4, marker=".", alpha=0.4, color=line.get_color())


def _block_spans(layers: Sequence[LayerReport]) -> list[tuple[int, int]]:
    """Return the start and the end of each block in the order of the layers."""
    blocks = itertools.groupby(range(len(layers)), key=lambda i: block_of(layers[i].path))
    numbers = [list(group) for _, group in blocks]
    return [(group[0], group[-1] + 1) for group in numbers]


def _finish(axes: Any, layers: Sequence[LayerReport], label: str) -> None:
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(axis="y")
    _name_blocks(axes, layers)


def _name_blocks(axes: Any, layers: Sequence[LayerReport]) -> None:
    """Name the blocks below the picture, and shade every other one."""
    spans = _block_spans(layers)
    for start, stop in spans[::2]:
        axes.axvspan(start - 0.5, stop - 0.5, color=_TEXT, alpha=0.06, linewidth=0)
    shown = spans[:: -(-len(spans) // _MOST_TICKS)]
    names = [block_of(layers[start].path) for start, _ in shown]
    axes.set_xticks(
        [(start + stop - 1) / 2 for start, stop in shown], names, rotation=90, fontsize=6.5
    )
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_xlabel("block, as the model runs")


def _label_of(name: str, most: int = 44) -> str:
    """Return a name that matplotlib shows as it is: never as a formula, and in the legend although
    it begins with an underscore.
    """
    name = name if len(name) <= most else f"...{name[-most + 3 :]}"
    return f"{' ' * name.startswith('_')}{name}".replace("$", r"\$")
