"""What merges of PEFT adapters have in common, whatever the model: a task per adapter, one that
keeps the base, a report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ..adapters import Adapter
from ..config import MergeConfig
from ..errors import CalibrationError, ConfigError
from ..files import peft
from ..files.model_keys import layer_kernels
from ..merging import MergeResult, merge
from ..network import Network
from ..report.records import Note
from ..tasks import Sample, Task

# (name of the stage, steps done, steps in all); may raise to cancel.
StageProgress = Callable[[str, int, int], None]
SOLVE_STAGE = "Layers"
# Of a task that keeps the base model as it is: with 1 a merge loses more of what its adapters do,
# and BLIP keeps no more of the base model ("preserve, weight ..." in benchmarks/RESULTS.md; T5 was
# measured with 1 alone, which costs it much).
PRESERVE_WEIGHT = 0.1
PRESERVE = "base model (preserve)"


@dataclass(frozen=True)
class PeftMergeResult(MergeResult):
    """A merge of PEFT adapters, which can be saved as one.

    Args:
        base: Folder or hub name of the base model.
        task_type: PEFT's name of the model's task; None: a plain `PeftModel`.
        kernels: Module path -> (height, width) of the model's convolutions.
    """

    base: str = ""
    task_type: str | None = None
    kernels: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def save(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write the merged adapter's folder; see `peft.save`.

        Raises:
            AdapterError, FileExistsError: See `peft.save`.
        """
        peft.save(
            self.adapter,
            folder,
            self.base,
            self.task_type,
            overwrite=overwrite,
            kernels=self.kernels,
        )


@dataclass(frozen=True)
class MergeJob:
    """Which adapters are merged, and on what; made by `merge_job`.

    Args:
        base: Folder or hub name of the base model; empty if a model without a name was given.
        folders: Of the adapters.
        samples: Per task; the adapters' first, then the preserve task's, if there is one.
        mixes: Per task, what its teacher wears.
        weights: Per task.
        task_type: See `PeftMergeResult`.
    """

    base: str
    folders: tuple[Path, ...]
    samples: tuple[Sequence[Any], ...]
    mixes: tuple[Mapping[int, float], ...]
    weights: tuple[float, ...]
    task_type: str | None = None

    def run(
        self,
        network: Network,
        adapters: Sequence[Adapter],
        rows: Sequence[Sequence[Sample]],
        config: MergeConfig,
        options: Mapping[str, Any],
        notes: Sequence[Note] = (),
        progress: StageProgress | None = None,
    ) -> PeftMergeResult:
        """Merge, and put into the report what is needed to do it again.

        Args:
            network: The base model.
            adapters: Read from the folders.
            rows: Per task its samples, as the network reads them.
            config: How layers are solved.
            options: How samples were read, for the report.
            notes: For the report.
            progress: See `StageProgress`.
        """
        names = [*(adapter.name for adapter in adapters), PRESERVE]
        tasks = [Task(names[g], rows[g], mix, self.weights[g]) for g, mix in enumerate(self.mixes)]
        result = merge(
            network, adapters, tasks, config, progress=progress and partial(progress, SOLVE_STAGE)
        )
        settings = {
            "base": self.base,
            "adapters": [str(folder) for folder in self.folders],
            "samples": [len(task) for task in self.samples],
            "weights": list(self.weights),
            "options": dict(options),
            "config": config.to_dict(),
        }
        report = replace(result.report, notes=(*result.report.notes, *notes), settings=settings)
        kernels = layer_kernels(network.modules)
        return PeftMergeResult(
            result.adapter, report, result.outputs, self.base, self.task_type, kernels
        )


def merge_job(
    base: str | nn.Module,
    folders: Sequence[Path],
    samples: Sequence[Sequence[Any]],
    weights: Sequence[float] | None = None,
    preserve: Sequence[Any] = (),
    preserve_weight: float = PRESERVE_WEIGHT,
    task_type: str | None = None,
) -> MergeJob:
    """Return the tasks of a merge, checked before anything is loaded.

    Args:
        base: Folder or hub name, or a loaded model.
        folders: One or more adapters.
        samples: Per adapter.
        weights: Per adapter; None: all the same.
        preserve: Ordinary samples, on which the base model is to be kept as it is; none: no such
            task.
        preserve_weight: Of that task; 0 leaves it out.
        task_type: See `PeftMergeResult`.

    Raises:
        CalibrationError, ConfigError: An adapter without samples or a weight of its own; a weight
            that is none.
    """
    weights = [1.0] * len(folders) if weights is None else list(weights)
    if len(samples) != len(folders):
        raise CalibrationError(
            f"there are {len(folders)} adapters and samples for {len(samples)} tasks; give each its "
            "own"
        )
    if len(weights) != len(folders):
        raise ConfigError(
            f"there are {len(folders)} adapters and {len(weights)} weights; give each its own"
        )
    empty = [str(folder) for folder, task in zip(folders, samples, strict=True) if not task]
    if empty:
        raise CalibrationError(f"there are no samples for {empty[0]}; give it at least one input")
    if not (math.isfinite(preserve_weight) and preserve_weight >= 0):
        raise ConfigError(
            f"the preserve task has weight {preserve_weight}; it must be a finite number, 0 or more"
        )
    mixes: list[dict[int, float]] = [{k: 1.0} for k in range(len(folders))]
    kept = [preserve] if preserve and preserve_weight else []
    return MergeJob(
        base=base if isinstance(base, str) else getattr(base, "name_or_path", ""),
        folders=tuple(Path(folder) for folder in folders),
        samples=(*samples, *kept),
        mixes=(*mixes, *({} for _ in kept)),
        weights=(*weights, *(preserve_weight for _ in kept)),
        task_type=task_type,
    )
