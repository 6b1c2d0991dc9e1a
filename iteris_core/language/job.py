"""The common part of all merges of PEFT adapters: their tasks, the merge and the saved result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..adapters import Adapter
from ..config import MergeConfig
from ..errors import CalibrationError, ConfigError
from ..files import peft
from ..files.kohya import layer_kernels
from ..files.pretrained import DeviceMap
from ..merging import MergeResult, merge
from ..network import Network
from ..progress import Stage, StageProgress, nobody
from ..report.records import Note
from ..tasks import Sample, Task
from .samples import ReadingOptions
from .teachers import Teachers

STAGE = Stage("Layers")
# On the scale of the adapters' own tasks. T5 keeps 0.83 of its base tasks with it and 0.46 without,
# and its adapters' tasks lose 0.04 (docs/why.md).
PRESERVE_WEIGHT = 1.0
PRESERVE = "base model (preserve)"


# Without unit gain, unless it is asked for: it makes up for what a preserve task shrinks, and there
# is none by default. T5's tasks lose nothing without it, and its base tasks fall with it
# (docs/why.md).
DEFAULT = MergeConfig(unit_gain=1.0)


@dataclass(frozen=True)
class Base:
    """A base model, loaded or yet to be loaded.

    Args:
        model: Folder, name on the hub, or a loaded model.
        reader: Tokenizer or processor of the model; None: the one beside the model, if samples need
            it.
        dtype: Precision in which a model runs that is loaded here.
        device: Device on which a model runs that is loaded here.
        device_map: How a model is spread that is loaded here; see `pretrained.placed`.
    """

    model: str | nn.Module
    reader: Any = None
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    device_map: DeviceMap = "none"

    @property
    def name(self) -> str:
        """Folder or name on the hub; empty for a model that was loaded from nowhere."""
        return (
            self.model if isinstance(self.model, str) else getattr(self.model, "name_or_path", "")
        )


@dataclass(frozen=True)
class AdapterTask:
    """An adapter, and the samples on which it is measured.

    Args:
        folder: Folder of the adapter.
        samples: Samples of the task; at least one.
        weight: Weight of the task, relative to those of the other adapters.

    Raises:
        CalibrationError: There are no samples.
    """

    folder: Path
    samples: Sequence[Any]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.samples:
            raise CalibrationError(
                f"there are no samples for {self.folder}; give it at least one input"
            )


@dataclass(frozen=True)
class Preserve:
    """Ordinary samples, on which the merged model is to answer as the base model does.

    Args:
        samples: Samples of the task; None: no such task.
        weight: Weight of the task; 0: no such task.

    Raises:
        ConfigError: The weight is not a finite number from 0 on.
    """

    samples: Sequence[Any] = ()
    weight: float = PRESERVE_WEIGHT

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ConfigError(
                f"the preserve task has weight {self.weight}; it must be a finite number, 0 or more"
            )


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
            AdapterError, NameTakenError, SaveError: See `peft.save`.
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
    """The base model, the adapters and the settings of a merge.

    Args:
        base: The base model.
        adapters: Adapters with their samples.
        preserve: Samples on which the base model is kept.
        config: Settings of the merge.
        progress: Listener for (stage, steps done, steps in all); may raise to cancel.
    """

    base: Base
    adapters: Sequence[AdapterTask]
    preserve: Preserve = Preserve()
    config: MergeConfig = DEFAULT
    progress: StageProgress = nobody

    def __post_init__(self) -> None:
        if self.config.unit_gain is None:
            settled = replace(self.config, unit_gain=DEFAULT.unit_gain)
            object.__setattr__(self, "config", settled)

    @property
    def keeps_base(self) -> bool:
        """Whether the last task is one that keeps the base model."""
        return bool(self.preserve.samples) and self.preserve.weight > 0

    @property
    def samples(self) -> list[Sequence[Any]]:
        """Samples of each task."""
        own = [task.samples for task in self.adapters]
        return [*own, self.preserve.samples] if self.keeps_base else own

    @property
    def mixes(self) -> list[dict[int, float]]:
        """Mix of adapters that the teacher of each task wears."""
        own = [{number: 1.0} for number in range(len(self.adapters))]
        return [*own, {}] if self.keeps_base else own

    @property
    def weights(self) -> list[float]:
        """Weight of each task."""
        own = [task.weight for task in self.adapters]
        return [*own, self.preserve.weight] if self.keeps_base else own

    def teachers(self, model: nn.Module, adapters: Sequence[Adapter]) -> Teachers:
        """Return the tasks' teachers.

        Args:
            model: The loaded base model.
            adapters: Adapters that were read from the folders.
        """
        return Teachers(model, adapters, self.mixes, self.config.samples_per_chunk, self.progress)

    def run(
        self,
        network: Network,
        adapters: Sequence[Adapter],
        rows: Sequence[Sequence[Sample]],
        options: ReadingOptions,
        notes: Sequence[Note] = (),
    ) -> PeftMergeResult:
        """Merge, and write into the report the settings with which the merge can be repeated.

        Args:
            network: The base model.
            adapters: Adapters that were read from the folders.
            rows: Samples of each task, as the network reads them.
            options: Settings with which samples were read, for the report.
            notes: Notes for the report.

        Raises:
            IterisError: See `merge`.
        """
        names = [adapter.name for adapter in adapters] + [PRESERVE] * self.keeps_base
        tasks = [Task(*task) for task in zip(names, rows, self.mixes, self.weights, strict=True)]
        result = merge(
            network, adapters, tasks, self.config, progress=partial(self.progress, STAGE)
        )
        settings = {
            "base": self.base.name,
            "adapters": [str(task.folder) for task in self.adapters],
            "samples": [len(task) for task in self.samples],
            "weights": self.weights,
            "options": asdict(options),
            "config": self.config.to_dict(),
        }
        report = replace(result.report, notes=(*result.report.notes, *notes), settings=settings)
        kernels = layer_kernels(network.modules)
        return PeftMergeResult(
            result.adapter, report, result.outputs, base=self.base.name, kernels=kernels
        )
