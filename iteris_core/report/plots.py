"""Pictures of a merge report, drawn by matplotlib: dark, and readable in a node 480 pixels wide."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import IterisError, MissingLibraryError
from ..layers import block_of
from .plot_axes import (
    LINES,
    PALETTE,
    TEXT,
    color_of,
    draw_line,
    finish,
    label_of,
    marker_of,
    name_blocks,
)
from .records import MergeReport

# beside matplotlib's own font, for names in Chinese and Japanese: those of Linux, Windows and macOS
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
# ranks; what a lower rank would keep; how the iteration settled.
Question = Literal[
    "stacking", "leaks", "layers", "unseen", "weights", "ranks", "lower_rank", "changes"
]

_DPI = 200
_DARK: dict[Any, Any] = {
    "figure.facecolor": "#202020",
    "axes.facecolor": "#282828",
    "legend.facecolor": "#282828",
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": LINES,
    "legend.edgecolor": LINES,
    "grid.color": LINES,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "font.size": 8,
    "legend.fontsize": 7,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.6,
}


def pictures(
    report: MergeReport,
    others: Sequence[MergeReport] = (),
    *,
    asked: Collection[Question] | None = None,
    width: int = 960,
    height: int = 600,
) -> dict[Question, Tensor]:
    """Return a picture per question that is asked and that the report can answer: question ->
    (height, width, 3), from 0 to 1.

    Args:
        report: Report of a merge.
        others: Reports of other merges of the same LoRAs, to compare with: by another method, or
            with other settings.
        asked: The questions; None: all of them.
        width: Width in pixels; the letters stay readable at half of 960.
        height: Height in pixels.

    Raises:
        IterisError: The report has no layers.
        MissingLibraryError: matplotlib is not installed.
    """
    if not report.layers:
        raise IterisError(
            "the report has no layers, so there is nothing to draw; connect the report of a merge"
        )
    try:
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
    fonts = ["DejaVu Sans", *(name for name in _FONTS if name in installed)]
    drawn: dict[Question, Tensor] = {}
    with rc_context({**_DARK, "font.family": fonts}):
        for question, title, draw in _pages(report, others):
            if asked is not None and question not in asked:
                continue
            size = (width / _DPI, height / _DPI)
            figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
            canvas = FigureCanvasAgg(figure)
            figure.suptitle(title, fontsize=9, fontweight="bold")
            draw(figure)
            canvas.draw()
            pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
            drawn[question] = pixels.reshape(height, width, 4)[..., :3].float() / 255
    return drawn


Page = tuple[Question, str, Callable[[Any], None]]


def _pages(report: MergeReport, others: Sequence[MergeReport]) -> Iterator[Page]:
    reports = [report, *others]
    if others or any(entry.stacked is not None for layer in report.layers for entry in layer.tasks):
        title = "Against stacking: mean error of the LoRAs, 0 is as alone"
        yield "stacking", title, lambda figure: _comparison(figure, reports)
    if report.interference():
        title = "Leak into each other: 1 is as much as the LoRA itself does"
        yield "leaks", title, lambda figure: _interference(figure, report)
    title = "Error of each LoRA, layer by layer: 0 is as alone"
    yield "layers", title, lambda figure: _residuals(figure, report)
    if report.fidelity:
        title = "The whole model, on prompts that the merge has not seen"
        yield "unseen", title, lambda figure: _fidelity(figure, report)
    title = "Weight of each task (lambda), layer by layer"
    yield "weights", title, lambda figure: _balance(figure, report)
    yield "ranks", "Rank of the merged LoRA", lambda figure: _ranks(figure, report)
    if any(layer.kept for layer in report.layers):
        title = "What a lower rank would lose"
        yield "lower_rank", title, lambda figure: _kept(figure, report)
    if report.changes:
        title = "Largest change of any layer per iteration"
        yield "changes", title, lambda figure: _changes(figure, report)


def _task_names(report: MergeReport) -> list[str]:
    return list(dict.fromkeys(entry.task for layer in report.layers for entry in layer.tasks))


def _residuals(figure: Any, report: MergeReport) -> None:
    axes = figure.subplots()
    for i, task in enumerate(_task_names(report)):
        of_layer = [
            next((e for e in layer.tasks if e.task == task), None) for layer in report.layers
        ]
        leaks = all(entry is None or not entry.wears for entry in of_layer)
        label = f"{task}: {'leak' if leaks else 'residual'}"
        draw_line(
            axes,
            report.layers,
            [None if e is None else e.residual for e in of_layer],
            i,
            label,
            dashed=leaks,
        )
    axes.set_ylabel("relative error")
    axes.set_ylim(bottom=0)
    finish(axes, report.layers)


def _comparison(figure: Any, reports: Sequence[MergeReport]) -> None:
    axes = figure.subplots()
    layers = reports[0].layers
    names = [f"{i}. {report.method}" for i, report in enumerate(reports, 1)]
    if len(reports) == 1:
        names = [f"merged ({reports[0].method})"]
    ways = [(report, "residual", name) for report, name in zip(reports, names, strict=True)]
    ways += [
        (reports[0], "stacked", "LoRAs stacked"),
        (reports[0], "averaged", "LoRAs averaged"),
    ]
    for i, (report, figure_of, label) in enumerate(ways):
        of_path = {
            layer.path: [getattr(entry, figure_of) for entry in layer.tasks if entry.wears]
            for layer in report.layers
        }
        of_layer = [
            [value for value in of_path.get(layer.path, ()) if value is not None]
            for layer in layers
        ]
        if any(of_layer):
            draw_line(
                axes,
                layers,
                [statistics.mean(values) if values else None for values in of_layer],
                i,
                label,
                dashed=i > 0,
            )
    axes.set_ylabel("relative error")
    axes.set_ylim(bottom=0)
    finish(axes, layers)


def _balance(figure: Any, report: MergeReport) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True)
    for i, task in enumerate(_task_names(report)):
        entries = [
            next((e for e in layer.tasks if e.task == task and e.weight > 0), None)
            for layer in report.layers
        ]
        weights: list[float | None] = [None if e is None else e.weight for e in entries]
        energies = [None if e is None or not e.energy else e.weight * e.energy for e in entries]
        for axes, values in ((upper, weights), (lower, energies)):
            if any(values):
                draw_line(axes, report.layers, values, i, task)
    for axes, label in ((upper, "lambda"), (lower, r"lambda x $||X\,dW^T||^2$")):
        axes.set_yscale("log")
        axes.set_ylabel(label)
        axes.grid(axis="y")
    upper.legend()
    name_blocks(lower, report.layers)


def _ranks(figure: Any, report: MergeReport) -> None:
    lost = [layer.cut for layer in report.layers]
    upper, *lower = figure.subplots(2 if any(lost) else 1, 1, sharex=True, squeeze=False).flat
    upper.step(
        range(len(report.layers)),
        [layer.rank for layer in report.layers],
        where="mid",
        color=PALETTE[0],
    )
    upper.set_ylabel("rank")
    upper.set_ylim(bottom=0)
    for axes in lower:
        draw_line(axes, report.layers, lost, 1, "this merge")
        if any(layer.plain_cut for layer in report.layers):
            draw_line(
                axes,
                report.layers,
                [layer.plain_cut for layer in report.layers],
                2,
                "plain SVD of the same rank",
                dashed=True,
            )
        axes.set_ylabel("lost by the cut")
        axes.set_ylim(bottom=0)
        axes.legend()
    name_blocks([*lower, upper][0], report.layers)
    upper.grid(axis="y")


def _kept(figure: Any, report: MergeReport) -> None:
    axes = figure.subplots()
    blocks: dict[str, list[tuple[float, ...]]] = {}
    for layer in report.layers:
        if layer.kept:
            blocks.setdefault(block_of(layer.path).rstrip("0123456789"), []).append(layer.kept)
    for i, (block, kept) in enumerate(blocks.items()):
        longest = max(map(len, kept))
        lost = [
            1 - statistics.median(shares[min(r, len(shares) - 1)] for shares in kept)
            for r in range(longest)
        ]
        axes.plot(
            range(1, longest + 1),
            lost,
            color=color_of(i),
            marker=marker_of(i),
            label=f"{block}: median layer",
        )
    axes.set_yscale("log")
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("rank")
    axes.set_ylabel("lost share of the squared effect")
    axes.grid()
    axes.legend()


def _fidelity(figure: Any, report: MergeReport) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    names = [entry.task for entry in report.fidelity]
    colors = [color_of(i) for i in range(len(names))]
    sides = (
        (
            left,
            [entry.output_error for entry in report.fidelity],
            "error: 0 is best",
            0.0,
        ),
        (
            right,
            [entry.strength for entry in report.fidelity],
            "strength: 1 is as asked for",
            1.0,
        ),
    )
    for axes, values, label, best in sides:
        known = [0.0 if value is None else value for value in values]
        axes.barh(range(len(names)), known, color=colors)
        for i, value in enumerate(values):
            text = "adds nothing" if value is None else f"{value:.2f}"
            axes.annotate(
                text,
                (known[i], i),
                (6, 0),
                textcoords="offset points",
                va="center",
            )
        axes.axvline(best, color=TEXT, linewidth=0.8)
        axes.set_xlabel(label)
        axes.set_xlim(min(0.0, *known) if known else 0.0, 1.25 * max(1.0, *known))
    left.set_yticks(range(len(names)), [label_of(name) for name in names])
    left.invert_yaxis()


def _interference(figure: Any, report: MergeReport) -> None:
    found = report.interference()
    tasks, others = (list(dict.fromkeys(names)) for names in zip(*found, strict=True))
    adapters = [name for name in dict.fromkeys([*tasks, *others]) if name in others]
    sides = figure.subplots(1, 2, sharey=True)
    highest = max(1e-6, *(value for both in found.values() for value in both))
    for k, (axes, title) in enumerate(zip(sides, ("LoRAs stacked", "merged"), strict=True)):
        table = [
            [found.get((task, adapter), (math.nan,) * 2)[k] for adapter in adapters]
            for task in tasks
        ]
        image = axes.imshow(table, cmap="cividis", vmin=0, vmax=highest, aspect="auto")
        for row, column in itertools.product(range(len(tasks)), range(len(adapters))):
            value = table[row][column]
            color = "white" if not value > highest / 2 else "black"
            axes.text(
                column,
                row,
                "own" if math.isnan(value) else f"{value:.2f}",
                color=color,
                ha="center",
                va="center",
            )
        axes.set_title(title)
        axes.set_xticks(
            range(len(adapters)), [label_of(name, 24) for name in adapters], rotation=30, ha="right"
        )
        axes.set_yticks(range(len(tasks)), [label_of(name, 30) for name in tasks])
    figure.colorbar(image, ax=list(sides))


def _changes(figure: Any, report: MergeReport) -> None:
    axes = figure.subplots()
    axes.plot(range(1, len(report.changes) + 1), report.changes, marker="o", color=PALETTE[0])
    if all(change > 0 for change in report.changes):
        axes.set_yscale("log")
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("iteration")
    axes.set_ylabel("change relative to the layer's norm")
    axes.grid()
