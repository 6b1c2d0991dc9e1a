"""Pictures of a merge report, readable at the size of a node. Needs matplotlib, which is imported when a picture is drawn."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import IterisError
from .report import LayerReport, MergeReport

# Okabe and Ito's colours, which are told apart with every kind of colour blindness; markers tell them apart in print, too.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_MARKERS = "os^Dv<>"
_GREY = "#888888"
_BLOCKS = (
    (r"decoder\.(?:\w+\.)*?(?:block|layers?)\.(\d+)\.", "DEC{:02}"),
    (r"(?:^|\.)encoder\.layers\.(\d+)\.", "TE{:02}"),
    (r"(?:^|\.)input_blocks\.(\d+)\.", "IN{:02}"),
    (r"(?:^|\.)middle_block\.", "MID"),
    (r"(?:^|\.)output_blocks\.(\d+)\.", "OUT{:02}"),
    (r"(?:^|\.)down_blocks\.(\d+)\.", "DOWN{}"),
    (r"(?:^|\.)mid_block\.", "MID"),
    (r"(?:^|\.)up_blocks\.(\d+)\.", "UP{}"),
    (r"(?:^|\.)encoder\.(?:block|layer)\.(\d+)\.", "ENC{:02}"),
)
_MOST_TICKS = 24

Page = tuple[str, Callable[[Any], None]]


def pictures(
    report: MergeReport, others: Sequence[MergeReport] = (), *, width: int = 1024, height: int = 640
) -> dict[str, Tensor]:
    """Return a picture per question that the report can answer: title -> (height, width, 3), from 0 to 1.

    Args:
        report: Of any merge.
        others: Of other merges of the same LoRAs, to compare with: by another method, or with other settings.
        width: In pixels; the letters stay readable down to about 700.
        height: In pixels.

    Raises:
        IterisError: matplotlib is not installed, or the report has no layers.
    """
    if not report.layers:
        raise IterisError("the report has no layers, so there is nothing to draw; connect the report of a merge")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise IterisError(
            "pictures of a report are drawn by matplotlib, which is not installed here. Install it into ComfyUI's Python, "
            "python -m pip install matplotlib, and start ComfyUI again; the text of the report does not need it"
        ) from error
    drawn = {}
    for title, draw in _pages(report, others):
        figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=15, fontweight="bold")
        draw(figure)
        canvas.draw()
        drawn[title] = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8).reshape(height, width, 4)
    return {title: pixels[..., :3].float() / 255 for title, pixels in drawn.items()}


def block_of(path: str) -> str:
    """Return in which block of its model a layer is, in the words of block weights.

    >>> block_of("diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q")
    'IN04'
    """
    for pattern, name in _BLOCKS:
        found = re.search(pattern, path)
        if found:
            return name.format(*map(int, found.groups()))
    return "other"


def _pages(report: MergeReport, others: Sequence[MergeReport]) -> Iterator[Page]:
    yield "Residual at every layer: 0 is what each LoRA does alone", lambda figure: _residuals(figure, report)
    if others:
        yield "Mean residual of the LoRAs at every layer, by method", lambda figure: _comparison(figure, [report, *others])
    if report.fidelity:
        yield "The whole model, on samples that the merge has not seen", lambda figure: _fidelity(figure, report)
    if report.interference():
        yield "How much of each LoRA gets into the others' pictures", lambda figure: _interference(figure, report)
    yield "Weight of each task (lambda) at every layer", lambda figure: _balance(figure, report)
    yield "Rank of the merged LoRA at every layer", lambda figure: _ranks(figure, report)
    if report.changes:
        yield "Largest change of any layer per iteration", lambda figure: _changes(figure, report)


def _task_names(report: MergeReport) -> list[str]:
    return list(dict.fromkeys(entry.task for layer in report.layers for entry in layer.tasks))


def _residuals(figure: Any, report: MergeReport) -> None:
    axes = figure.subplots()
    for i, task in enumerate(_task_names(report)):
        of_layer = [next((e for e in layer.tasks if e.task == task), None) for layer in report.layers]
        leaks = all(entry is None or not entry.wears for entry in of_layer)
        label = f"{task}: {'leak' if leaks else 'residual'}"
        _line(axes, report.layers, [None if e is None else e.residual for e in of_layer], i, label, dashed=leaks)
    axes.set_ylabel("relative error", fontsize=12)
    axes.set_ylim(bottom=0)
    _finish(axes, report.layers)


def _comparison(figure: Any, reports: Sequence[MergeReport]) -> None:
    axes, layers = figure.subplots(), reports[0].layers
    for i, report in enumerate(reports):
        of_path = {layer.path: [entry.residual for entry in layer.tasks if entry.wears] for layer in report.layers}
        means = [statistics.mean(of_path[layer.path]) if of_path.get(layer.path) else None for layer in layers]
        method = report.settings.get("config", {}).get("method", "merge")
        if any(mean is not None for mean in means):
            _line(axes, layers, means, i, f"{i + 1}. {method}", dashed=i > 0)
    axes.set_ylabel("relative error", fontsize=12)
    axes.set_ylim(bottom=0)
    _finish(axes, layers)


def _balance(figure: Any, report: MergeReport) -> None:
    axes = figure.subplots()
    for i, task in enumerate(_task_names(report)):
        weights = [next((e.weight for e in layer.tasks if e.task == task and e.weight > 0), None) for layer in report.layers]
        if any(weights):
            _line(axes, report.layers, weights, i, task)
    axes.set_yscale("log")
    axes.set_ylabel("lambda", fontsize=12)
    _finish(axes, report.layers)


def _ranks(figure: Any, report: MergeReport) -> None:
    lost = [layer.cut for layer in report.layers]
    upper, *lower = figure.subplots(2 if any(lost) else 1, 1, sharex=True, squeeze=False).flat
    upper.step(range(len(report.layers)), [layer.rank for layer in report.layers], where="mid", color=PALETTE[0])
    upper.set_ylabel("rank", fontsize=12)
    upper.set_ylim(bottom=0)
    for axes in lower:
        _line(axes, report.layers, lost, 1, "cut by its effect on the measured inputs")
        if any(layer.plain_cut for layer in report.layers):
            _line(
                axes, report.layers, [layer.plain_cut for layer in report.layers], 5, "plain SVD of the same rank", dashed=True
            )
        axes.set_ylabel("lost part of the effect", fontsize=12)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=11)
    _blocks_below([*lower, upper][0], report.layers)
    upper.grid(axis="y", alpha=0.3)


def _fidelity(figure: Any, report: MergeReport) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    names = [entry.task for entry in report.fidelity]
    colors = [PALETTE[i % len(PALETTE)] for i in range(len(names))]
    sides = (
        (left, [entry.output_error for entry in report.fidelity], "error of the output: 0 is best", 0.0),
        (right, [entry.strength for entry in report.fidelity], "measured strength: 1 is what you asked for", 1.0),
    )
    for axes, values, label, best in sides:
        known = [0.0 if value is None else value for value in values]
        axes.barh(range(len(names)), known, color=colors)
        for i, value in enumerate(values):
            text = "the base model: it adds nothing" if value is None else f"{value:.2f}"
            axes.annotate(
                text, (known[i], i), (6, 0), textcoords="offset points", va="center", fontsize=12, backgroundcolor="w"
            )
        axes.axvline(best, color="black", linewidth=1)
        axes.set_xlabel(label, fontsize=12)
        axes.set_xlim(min(0.0, *known) if known else 0.0, 1.25 * max(1.0, *known))
    left.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=12)
    left.invert_yaxis()


def _interference(figure: Any, report: MergeReport) -> None:
    found = report.interference()
    tasks, adapters = (list(dict.fromkeys(names)) for names in zip(*found, strict=True))
    sides = figure.subplots(1, 2, sharey=True)
    highest = max(1e-6, *(value for both in found.values() for value in both))
    for k, (axes, title) in enumerate(zip(sides, ("LoRAs stacked", "merged"), strict=True)):
        table = [[found.get((task, adapter), (math.nan,) * 2)[k] for adapter in adapters] for task in tasks]
        image = axes.imshow(table, cmap="cividis", vmin=0, vmax=highest, aspect="auto")
        for row, column in itertools.product(range(len(tasks)), range(len(adapters))):
            value = table[row][column]
            color = "white" if value < highest / 2 else "black"
            axes.text(column, row, "own" if math.isnan(value) else f"{value:.2f}", color=color, ha="center", va="center")
        axes.set_title(title, fontsize=13)
        axes.set_xticks(range(len(adapters)), [_short(name, 24) for name in adapters], rotation=30, ha="right")
        axes.set_yticks(range(len(tasks)), [_short(name, 30) for name in tasks])
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


def _line(
    axes: Any, layers: Sequence[LayerReport], values: Sequence[float | None], i: int, label: str, *, dashed: bool = False
) -> None:
    """Draw one value per layer as dots, and the median of each block as a line."""
    color, marker = PALETTE[i % len(PALETTE)], _MARKERS[i % len(_MARKERS)]
    known = [(x, value) for x, value in enumerate(values) if value is not None]
    axes.plot(*zip(*known, strict=True), linestyle="", marker=".", markersize=4, alpha=0.35, color=color)
    middles = []
    for start, stop in _spans(layers):
        inside = [value for value in values[start:stop] if value is not None]
        if inside:
            middles.append(((start + stop - 1) / 2, statistics.median(inside)))
    style = {"linestyle": "--" if dashed else "-", "marker": marker, "markersize": 6, "linewidth": 2}
    axes.plot(*zip(*middles, strict=True), color=color, label=_short(label), **style)


def _spans(layers: Sequence[LayerReport]) -> list[tuple[int, int]]:
    """Return where blocks begin and end in the order of the layers."""
    sizes = [len(list(group)) for _, group in itertools.groupby(layers, key=lambda layer: block_of(layer.path))]
    stops = list(itertools.accumulate(sizes))
    return list(zip([0, *stops], stops, strict=False))


def _finish(axes: Any, layers: Sequence[LayerReport]) -> None:
    axes.legend(fontsize=12)
    axes.grid(axis="y", alpha=0.3)
    _blocks_below(axes, layers)


def _blocks_below(axes: Any, layers: Sequence[LayerReport]) -> None:
    """Name the blocks below the picture, and shade every other one."""
    spans = _spans(layers)
    for start, stop in spans[::2]:
        axes.axvspan(start - 0.5, stop - 0.5, color=_GREY, alpha=0.1, linewidth=0)
    shown = spans[:: -(-len(spans) // _MOST_TICKS)]
    names = [block_of(layers[start].path) for start, _ in shown]
    axes.set_xticks([(start + stop - 1) / 2 for start, stop in shown], names, rotation=90, fontsize=10)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_xlabel("block, in the order in which the model is run", fontsize=12)


def _short(name: str, most: int = 44) -> str:
    return name if len(name) <= most else f"...{name[-most + 3 :]}"
