"""What a merge tells about itself."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class TaskAtLayerReport:
    """How one task fares at one layer.

    Args:
        task: The task's name.
        residual: ``||X dW_g^T - X~ dW^T|| / ||X dW_g^T||``, 0 is perfect. Where the teacher wears nothing: what the merged
            adapter adds on the task's inputs, relative to what all adapters stacked would add.
        weight: lambda, the weight of the task in the solve.
        tokens: Tokens that were counted.
    """

    task: str
    residual: float
    weight: float
    tokens: int


@dataclass(frozen=True)
class LayerReport:
    """One target layer, in the order in which the network reached it.

    Args:
        path: Of the module.
        rank: Of the merged delta.
        tasks: How each of them fares.
        cut: What the cut to a lower rank costs: the part of the uncut answer's effect that is lost, 0 to 1.
        plain_cut: What a plain SVD of the same rank would cost; None where no rank was asked for.
    """

    path: str
    rank: int
    tasks: tuple[TaskAtLayerReport, ...]
    cut: float = 0.0
    plain_cut: float | None = None


@dataclass(frozen=True)
class MergeReport:
    """The whole merge.

    Args:
        layers: In the order in which the network reached them.
        unmatched: Adapter name -> keys of its file that belong to no module of the model.
        notes: Sentences for the user.
        changes: Largest relative change of a layer per iteration; only of the iterating engine.
        settings: What is needed to repeat the merge; JSON values.
    """

    layers: tuple[LayerReport, ...]
    unmatched: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    changes: tuple[float, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)

    def task_residuals(self) -> dict[str, float]:
        """Return each task's median residual over the layers."""
        by_task: dict[str, list[float]] = {}
        for layer in self.layers:
            for entry in layer.tasks:
                by_task.setdefault(entry.task, []).append(entry.residual)
        return {task: statistics.median(residuals) for task, residuals in by_task.items()}

    def __str__(self) -> str:
        ranks = [layer.rank for layer in self.layers]
        lines = [f"{len(self.layers)} layers merged, rank {min(ranks, default=0)} to {max(ranks, default=0)}"]
        for task, residual in self.task_residuals().items():
            worst = max((e.residual, layer.path) for layer in self.layers for e in layer.tasks if e.task == task)
            lines.append(f"  {task}: median residual {residual:.3f}, worst {worst[0]:.3f} at {worst[1]}")
        cuts = [layer.cut for layer in self.layers if layer.cut > 0]
        if cuts:
            plain = [layer.plain_cut for layer in self.layers if layer.plain_cut is not None]
            beside = f" (plain SVD of the same rank: {statistics.median(plain):.3f})" if plain else ""
            lines.append(f"  cut to a lower rank: median loss {statistics.median(cuts):.3f}{beside}")
        for adapter, keys in self.unmatched.items():
            shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
            lines.append(f"  {adapter}: {len(keys)} keys belong to no module of this model: {shown}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def joined(*reports: MergeReport) -> MergeReport:
    """Return one report of the parts of a model that were swept one after the other."""
    unmatched: dict[str, tuple[str, ...]] = {}
    settings: dict[str, Any] = {}
    for report in reports:
        unmatched.update(report.unmatched)
        settings.update(report.settings)
    return MergeReport(
        layers=tuple(layer for report in reports for layer in report.layers),
        unmatched=unmatched,
        notes=tuple(dict.fromkeys(note for report in reports for note in report.notes)),
        settings=settings,
    )
