"""The records of a merge's report: what it did, its layers, and notes."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from typing import Any, Literal, get_args

from ..errors import plain

# What a note is about: what the method chose by itself; what was left out; keys of a file that
# belong to no module; LoRAs that their user left out, by a strength or priority of 0, and settings
# that a preview does not need; biases and norms; scenes; what of the prompts does not count; what
# prompts were made of; LoRAs that were given several times; what the host's model carries; a device
# that is too small for all of it. Five are warnings: a LoRA of the merge that the model carries,
# too; a class of models on which merging was never tested; a polish that could not be made; a host
# that may draw otherwise than was measured; and a file of which much was not read.
_WarningKind = Literal["twice", "untested", "unpolished", "unproved", "unread"]
NoteKind = Literal[
    _WarningKind,
    "method",
    "left_out",
    "unmatched",
    "idle",
    "vectors",
    "scenes",
    "prompts",
    "made",
    "repeated",
    "host",
    "memory",
]
_WARNINGS: tuple[NoteKind, ...] = get_args(_WarningKind)


@dataclass(frozen=True)
class Note:
    """A sentence about a merge for its user."""

    kind: NoteKind
    text: str

    @property
    def is_warning(self) -> bool:
        """Whether something may be wrong with the merge."""
        return self.kind in _WARNINGS


@dataclass(frozen=True)
class TaskAtLayerReport:
    """The figures of one task at one layer.

    Args:
        residual: ``||X dW_g^T - X~ dW^T|| / ||X dW_g^T||``, 0 is perfect; with the target
            ``full_output``, the drift of the inputs counts, too. It is found from sums of squares
            that cancel, so with a float32 or half-precision network a value below 3e-4 is rounding,
            and below 1e-3 where float64 is slow.
            Where the teacher wears nothing: what the merged adapter adds on the task's inputs,
            relative to what all adapters stacked would add.
        weight: lambda, the weight of the task in the solve.
        tokens: Number of tokens that were counted.
        wears: Whether the teacher wears anything here; it decides what the residual is relative to.
        limited: Whether lambda was limited, see `algebra.balance`: the teacher hardly acts on these
            inputs.
    """

    task: str
    residual: float
    weight: float
    tokens: int
    wears: bool = True
    limited: bool = False


@dataclass(frozen=True)
class LayerReport:
    """One target layer.

    Args:
        tasks: Figures of each task that counts here.
        cut: Cost of the cut to a lower rank: the part of the uncut answer's effect that is lost, 0
            to 1. The rounding to the precision that is saved does not count.
    """

    path: str
    rank: int
    tasks: tuple[TaskAtLayerReport, ...]
    cut: float = 0.0


@dataclass(frozen=True)
class Source:
    """A LoRA as it went into a merge.

    Args:
        are_made: Whether its prompts were made of the trigger words that its file names.
    """

    name: str
    strength_model: float
    strength_clip: float
    prompts: tuple[str, ...]
    are_made: bool = False

    def __str__(self) -> str:
        strengths = f"{self.strength_model:g}"
        if self.strength_clip != self.strength_model:
            strengths += f" (text encoder {self.strength_clip:g})"
        prompts = "made of its trigger words" if self.are_made else "; ".join(self.prompts)
        return f"{self.name} at {strengths}" + (f": {prompts}" if prompts else "")


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Args:
        layers: Layers in the order that the network reached them.
        changes: Largest relative change of a layer per iteration; only of the iterating engine.
        settings: Settings to repeat the merge with, as JSON values for its file.
        is_measured: Whether layers were measured.
        loras: The LoRAs that went in, as far as they are known.
        rows: Rows that ran through the diffusion model; 0: not counted.
        seconds: How long it took; None: not measured.
        saved_bytes: Bytes of the merged weights; 0: not counted.
    """

    layers: tuple[LayerReport, ...]
    notes: tuple[Note, ...] = ()
    changes: tuple[float, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    method: str = "iteris"
    is_measured: bool = True
    loras: tuple[Source, ...] = ()
    rows: int = 0
    seconds: float | None = None
    saved_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, with its facts, its warnings, and a digest that tells
        it from other reports. JSON has no NaN and no infinity: they are None.
        """
        made: dict[str, Any] = finite(
            {**asdict(self), "facts": self.facts, "warnings": self.warnings}
        )
        text = json.dumps(made, sort_keys=True)
        return {**made, "digest": hashlib.sha256(text.encode()).hexdigest()[:16]}

    @property
    def facts(self) -> list[str]:
        """What was measured, how long it took, and the size of the result, in short lines."""
        took = "" if self.seconds is None else f" in {self.seconds:.0f} s"
        ranks = [layer.rank for layer in self.layers]
        rank = f"rank {min(ranks, default=0)} to {max(ranks, default=0)}"
        size = f", {self.saved_bytes / 1e6:.1f} MB" if self.saved_bytes else ""
        lines = [f"{len(self.layers)} layers merged, {rank}{size}"]
        if not self.is_measured:
            lines.insert(0, f"merged by {self.method} from the files alone{took}: nothing measured")
        elif self.rows:
            lines.insert(0, f"{self.rows} rows measured{took}")
        return lines

    @property
    def warnings(self) -> list[str]:
        """The notes that are warnings."""
        return [note.text for note in self.notes if note.is_warning]

    def residuals(self, *, wears: bool) -> dict[str, list[tuple[float, str]]]:
        """Return each task's (residual, layer's path), where its teacher wears something, or where
        it wears nothing.
        """
        by_task: dict[str, list[tuple[float, str]]] = {}
        for layer in self.layers:
            for entry in layer.tasks:
                if entry.wears == wears:
                    by_task.setdefault(entry.task, []).append((entry.residual, layer.path))
        return by_task

    def __str__(self) -> str:
        notes = (note.text for note in self.notes if not note.is_warning)
        details = (*map(str, self.loras), *self._figures(), *notes)
        lines = (*self.warnings, *self.facts, *(f"  {line}" for line in details))
        return "\n".join(map(plain, lines))

    def _figures(self) -> Iterator[str]:
        for wears, what in ((True, "residual"), (False, "change")):
            for task, by_layer in self.residuals(wears=wears).items():
                median = statistics.median(value for value, _ in by_layer)
                worst, path = max(by_layer)
                yield f"{task}: median {what} {median:.3f}, worst {worst:.3f} at {path}"
        cuts = [layer.cut for layer in self.layers if layer.cut > 0]
        if cuts:
            yield f"cut to a lower rank: median loss {statistics.median(cuts):.3f}"
        if self.changes:
            yield f"solves of all layers: {len(self.changes)}, last change {self.changes[-1]:.1e}"


def finite(value: Any) -> Any:
    """Return JSON values with None for each number that is not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def joined(*reports: MergeReport) -> MergeReport:
    """Return one report of the parts of a model that were merged one after the other by the same
    settings.
    """
    changes = zip_longest(*(report.changes for report in reports), fillvalue=0.0)
    return replace(
        reports[0] if reports else MergeReport(()),
        layers=tuple(layer for report in reports for layer in report.layers),
        notes=tuple(dict.fromkeys(note for report in reports for note in report.notes)),
        changes=tuple(map(max, changes)),
    )
