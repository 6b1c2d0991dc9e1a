"""Pictures of a merge report, drawn by matplotlib and readable at the size of a node."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import IterisError, MissingLibraryError
from ..files.blocks import block_of
from .plot_axes import (
    PALETTE,
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

Page = tuple[str, Callable[[Any], None]]


def pictures(
    report: MergeReport, others: Sequence[MergeReport] = (), *, width: int = 1024, height: int = 640
) -> dict[str, Tensor]:
    """Return a picture per question that the report can answer: title -> (height, width, 3), from 0
    to 1.

    Args:
        report: Report of a merge.
        others: Reports of other merges of the same LoRAs, to compare with: by another method, or
            with other settings.
        width: Width in pixels; the letters stay readable down to about 700.
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
    drawn = {}
    with rc_context(
        {"font.family": ["DejaVu Sans", *(name for name in _FONTS if name in installed)]}
    ):
        for title, draw in _pages(report, others):
            figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
            canvas = FigureCanvasAgg(figure)
            figure.suptitle(title, fontsize=15, fontweight="bold")
            draw(figure)
            canvas.draw()
            drawn[title] = torch.frombuffer(
                bytearray(canvas.buffer_rgba()), dtype=torch.uint8
            ).reshape(height, width, 4)
    return {title: pixels[..., :3].float() / 255 for title, pixels in drawn.items()}


def _pages(report: MergeReport, others: Sequence[MergeReport]) -> Iterator[Page]:
    yield (
        "Residual at every layer: 0 is what each LoRA does alone",
        lambda figure: _residuals(figure, report),
    )
    reports = [report, *others]
    if others or any(entry.stacked is not None for layer in report.layers for entry in layer.tasks):
        yield (
            "Mean residual of the LoRAs at every layer, by method",
            lambda figure: _comparison(figure, reports),
        )
    if report.fidelity:
        yield (
            "The whole model, on samples that the merge has not seen",
            lambda figure: _fidelity(figure, report),
        )
    if report.interference():
        yield (
            "How much of each LoRA gets into the others' pictures",
            lambda figure: _interference(figure, report),
        )
    yield "Weight of each task (lambda) at every layer", lambda figure: _balance(figure, report)
    yield "Rank of the merged LoRA at every layer", lambda figure: _ranks(figure, report)
    if any(layer.kept for layer in report.layers):
        yield "What a lower rank would keep", lambda figure: _kept(figure, report)
    if report.changes:
        yield "Largest change of any layer per iteration", lambda figure: _changes(figure, report)


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
    axes.set_ylabel("relative error", fontsize=12)
    axes.set_ylim(bottom=0)
    finish(axes, report.layers)


def _comparison(figure: Any, reports: Sequence[MergeReport]) -> None:
    axes = figure.subplots()
    layers = reports[0].layers
    ways = [(report, "residual", f"{i}. {report.method}") for i, report in enumerate(reports, 1)]
    ways += [
        (reports[0], "stacked", "LoRAs stacked, same inputs"),
        (reports[0], "averaged", "LoRAs averaged, same inputs"),
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
    axes.set_ylabel("relative error", fontsize=12)
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
        axes.set_ylabel(label, fontsize=12)
        axes.grid(axis="y", alpha=0.3)
    upper.legend(fontsize=12)
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
    upper.set_ylabel("rank", fontsize=12)
    upper.set_ylim(bottom=0)
    for axes in lower:
        draw_line(axes, report.layers, lost, 1, "cut by its effect on the measured inputs")
        if any(layer.plain_cut for layer in report.layers):
            draw_line(
                axes,
                report.layers,
                [layer.plain_cut for layer in report.layers],
                5,
                "plain SVD of the same rank",
                dashed=True,
            )
        axes.set_ylabel("lost part of the effect", fontsize=12)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=11)
    name_blocks([*lower, upper][0], report.layers)
    upper.grid(axis="y", alpha=0.3)


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
    axes.set_xlabel("rank", fontsize=12)
    axes.set_ylabel("lost share of the squared effect", fontsize=12)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=12)


def _fidelity(figure: Any, report: MergeReport) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    names = [entry.task for entry in report.fidelity]
    colors = [color_of(i) for i in range(len(names))]
    sides = (
        (
            left,
            [entry.output_error for entry in report.fidelity],
            "error of the output: 0 is best",
            0.0,
        ),
        (
            right,
            [entry.strength for entry in report.fidelity],
            "measured strength: 1 is what you asked for",
            1.0,
        ),
    )
    for axes, values, label, best in sides:
        known = [0.0 if value is None else value for value in values]
        axes.barh(range(len(names)), known, color=colors)
        for i, value in enumerate(values):
            text = "the base model: it adds nothing" if value is None else f"{value:.2f}"
            axes.annotate(
                text,
                (known[i], i),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=12,
                backgroundcolor="w",
            )
        axes.axvline(best, color="black", linewidth=1)
        axes.set_xlabel(label, fontsize=12)
        axes.set_xlim(min(0.0, *known) if known else 0.0, 1.25 * max(1.0, *known))
    left.set_yticks(range(len(names)), [label_of(name) for name in names], fontsize=12)
    left.invert_yaxis()


def _interference(figure: Any, report: MergeReport) -> None:
    found = report.interference()
    tasks, adapters = (list(dict.fromkeys(names)) for names in zip(*found, strict=True))
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
            color = "white" if value < highest / 2 else "black"
            axes.text(
                column,
                row,
                "own" if math.isnan(value) else f"{value:.2f}",
                color=color,
                ha="center",
                va="center",
            )
        axes.set_title(title, fontsize=13)
        axes.set_xticks(
            range(len(adapters)), [label_of(name, 24) for name in adapters], rotation=30, ha="right"
        )
        axes.set_yticks(range(len(tasks)), [label_of(name, 30) for name in tasks])
    figure.colorbar(image, ax=list(sides), label="relative to what the task is about")


def _changes(figure: Any, report: MergeReport) -> None:
    axes = figure.subplots()
    axes.plot(range(1, len(report.changes) + 1), report.changes, marker="o", color=PALETTE[0])
    if all(change > 0 for change in report.changes):
        axes.set_yscale("log")
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("iteration", fontsize=12)
    axes.set_ylabel("change relative to the layer's norm", fontsize=12)
    axes.grid(alpha=0.3)
