"""The records of a merge's report: notes, layers, tasks and fidelity."""

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
from .layers import Alarm, Interference, LayerReport, alarms_of, warnings_of
from .runs import TaskFidelity
from .sentences import line_of, lines_of
from .verdict import Effort, Made, Verdict, verdict_of

# What a note is about: what the method chose by itself; what was left out; LoRAs that their user
# left out, by a strength or priority of 0, and settings that a preview does not need; biases and
# norms; scenes; what of the prompts does not count; what prompts were made of; LoRAs that were
# given several times; sampling runs of an earlier merge; what the host's model carries; a device
# that is too small for all of it. Six are warnings: a LoRA of the merge that the model carries,
# too, or a merge beside it; a class of models on which merging was never tested; a polish or a
# check that could not be made; a host that may draw otherwise than was measured; and settings of a
# recipe that did not count.
_WarningKind = Literal["twice", "untested", "unpolished", "unchecked", "unproved", "uncounted"]
NoteKind = Literal[
    _WarningKind,
    "method",
    "left_out",
    "idle",
    "vectors",
    "scenes",
    "prompts",
    "made",
    "repeated",
    "reused",
    "host",
    "memory",
]
_WARNINGS: tuple[NoteKind, ...] = get_args(_WarningKind)


@dataclass(frozen=True)
class Note:
    """A sentence about a merge for its user."""

    kind: NoteKind
    text: str


@dataclass(frozen=True)
class MergeReport:
    """The whole merge.

    Args:
        layers: Layers in the order that the network reached them.
        unmatched: Adapter name -> keys of its file that belong to no module of the model.
        changes: Largest relative change of a layer per iteration; only of the iterating engine.
        settings: Settings to repeat the merge with, as JSON values for its file.
        fidelity: Fidelity of each task on samples that the solve did not see; empty if not
            measured.
        max_iter: Number of solves that the iterating engine was allowed; None for all others.
        unread: Adapter name -> share of its file's keys that are unmatched, where that is much.
        can_check: Whether it could have been checked on unseen samples, and was not.
        is_measured: Whether layers were measured; otherwise their figures are estimates, see
            `rivals.unmeasured`.
        kinds: Name of a LoRA -> "subject" or "style", where `fidelity` was measured.
        on_transformer: Whether the diffusion model is a transformer.
    """

    layers: tuple[LayerReport, ...]
    unmatched: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    changes: tuple[float, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    fidelity: tuple[TaskFidelity, ...] = ()
    method: str = "iteris"
    max_iter: int | None = None
    unread: Mapping[str, float] = field(default_factory=dict)
    can_check: bool = False
    is_measured: bool = True
    kinds: Mapping[str, str] = field(default_factory=dict)
    on_transformer: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, with its verdict, its alarms and what they say, and a
        digest that tells it from other reports. JSON has no NaN and no infinity: they are None.
        """
        made: dict[str, Any] = finite(
            {
                **asdict(self),
                "verdict": asdict(self.verdict),
                "alarms": [asdict(alarm) for alarm in self.alarms],
                "warnings": self.warnings,
            }
        )
        text = json.dumps(made, sort_keys=True)
        return {**made, "digest": hashlib.sha256(text.encode()).hexdigest()[:16]}

    @property
    def verdict(self) -> Verdict:
        """What the merge kept of each LoRA on its own prompts, see `verdict`."""
        asked = [layer.cut for layer in self.layers if layer.is_asked]
        calibration = self.settings.get("calibration", {})
        is_polished = calibration.get("polish") and all(n.kind != "unpolished" for n in self.notes)
        measured: Effort = "polished" if is_polished else "measured"
        return verdict_of(
            self.fidelity,
            self.interference(),
            Made(
                self.method,
                measured if self.is_measured else "estimated",
                cut=statistics.median(asked) if asked else 0.0,
                has_scenes=bool(calibration.get("scene_weight")),
                on_transformer=self.on_transformer,
            ),
            can_check=self.can_check,
            unread=self.unread,
            kinds=self.kinds,
        )

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """The tasks that something simpler does better than this merge by its layers' residuals,
        see `layers`; none where it was checked on unseen samples, which say more: the verdict
        judges those; and none where nothing was measured.
        """
        return () if self.fidelity or not self.is_measured else alarms_of(self.layers)

    @property
    def warnings(self) -> list[str]:
        """The alarms in sentences for the user, files that were hardly read, and notes that are
        warnings, to be shown right after the verdict; empty for a merge without faults.
        """
        unread = [self._unread_line(name) for name in self.unread]
        noted = [note.text for note in self.notes if note.kind in _WARNINGS]
        return [*warnings_of(self.alarms), *unread, *noted]

    def _unread_line(self, name: str) -> str:
        keys = self.unmatched[name]
        return (
            f"{name}: {100 * self.unread[name]:.0f} % of its file was not read, since {len(keys)} "
            f"keys belong to no module of this model, such as {keys[0]}. The merge is without that "
            "part of it: use a LoRA made for this model, or one in the names of another trainer"
        )

    @property
    def alerts(self) -> list[str]:
        """What must not be overlooked, for logs: the LoRAs that are lost, and the warnings."""
        lost = [line_of(kept) for kept in self.verdict.loras if kept.level == "lost"]
        return [*lost, *self.warnings]

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

    def interference(self) -> dict[tuple[str, str], tuple[float, float]]:
        """Return (task, adapter) -> the medians over layers of ``stacked`` and of the absolute
        value of ``merged``.
        """
        by_pair: dict[tuple[str, str], list[Interference]] = {}
        for layer in self.layers:
            for entry in layer.tasks:
                for other in entry.interference:
                    by_pair.setdefault((entry.task, other.adapter), []).append(other)
        return {
            pair: (
                statistics.median(o.stacked for o in others),
                statistics.median(abs(o.merged) for o in others),
            )
            for pair, others in by_pair.items()
        }

    @property
    def summary(self) -> list[str]:
        """The verdict, what fails, and the size of the merge in sentences for the user."""
        ranks = [layer.rank for layer in self.layers]
        size = (
            f"{len(self.layers)} layers merged, rank {min(ranks, default=0)} to "
            f"{max(ranks, default=0)}"
        )
        return [*lines_of(self.verdict), *self.warnings, size]

    def __str__(self) -> str:
        notes = (note.text for note in self.notes if note.kind not in _WARNINGS)
        details = (*self._figures(), *self._unread_keys(), *self._measured(), *notes)
        return "\n".join(map(plain, (*self.summary, *(f"  {line}" for line in details))))

    def _figures(self) -> Iterator[str]:
        for wears, what in ((True, "residual"), (False, "change")):
            for task, by_layer in self.residuals(wears=wears).items():
                median = statistics.median(value for value, _ in by_layer)
                worst, path = max(by_layer)
                yield f"{task}: median {what} {median:.3f}, worst {worst:.3f} at {path}"
        cuts = [layer.cut for layer in self.layers if layer.cut > 0]
        if cuts:
            yield f"cut to a lower rank: median loss {statistics.median(cuts):.3f}"

    def _unread_keys(self) -> Iterator[str]:
        for adapter, keys in self.unmatched.items():
            if adapter not in self.unread:  # else it is among the warnings
                shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
                yield f"{adapter}: {len(keys)} keys belong to no module of this model: {shown}"

    def _measured(self) -> Iterator[str]:
        for entry in self.fidelity:
            error = f"{entry.output_error:.3f}"
            if entry.strength is None:
                yield f"{entry.task}, unseen samples: change of the output {error}"
            else:
                strength = f"{entry.strength:.2f}"
                yield f"{entry.task}, unseen samples: output error {error}, strength {strength}"
        if self.changes:
            # the solve that settles the last layers may change them a lot
            solves = len(self.changes)
            is_settled = self.max_iter is not None and solves < self.max_iter
            allowed = ", as many as max_iter allows" if solves == self.max_iter else ""
            yield (
                f"{'settled' if is_settled else 'stopped'} after {solves} "
                f"solve{'s' * (solves > 1)}{allowed}, last change {self.changes[-1]:.1e}"
            )


def finite(value: Any) -> Any:
    """Return JSON values with None for each number that is not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def joined(*reports: MergeReport) -> MergeReport:
    """Return one report of the parts of a model that were merged one after the other by the same
    settings, and not checked yet.
    """
    changes = zip_longest(*(report.changes for report in reports), fillvalue=0.0)
    return replace(
        reports[0] if reports else MergeReport(()),
        layers=tuple(layer for report in reports for layer in report.layers),
        notes=tuple(dict.fromkeys(note for report in reports for note in report.notes)),
        changes=tuple(map(max, changes)),
    )
