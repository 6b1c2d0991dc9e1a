"""Merges of PEFT adapters of a language model: what is alike in T5, BART and BLIP."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter, target_layers, told_apart
from ..base_models import loaded, placed, whole_model
from ..config import MergeConfig
from ..errors import CalibrationError, ConfigError
from ..files import peft
from ..files.model_keys import layer_kernels
from ..layers import layer_shapes, stored_weight
from ..memory import UNLIMITED, Room
from ..merging import MergeResult, merge
from ..network import Network
from ..progress import Stage, StageProgress, nobody
from ..tasks import PRESERVE_TASK, Sample, Task
from .samples import EncodedSample, Example, ReadingOptions
from .teachers import Teachers

STAGE = Stage("Layers")
# On the scale of the adapters' own tasks: T5 keeps 0.83 of its base tasks with it and 0.46 without,
# and its adapters' tasks lose 0.04.
PRESERVE_WEIGHT = 1.0
# Without unit gain, unless it is asked for: it makes up for what a preserve task shrinks, and there
# is none by default. T5's tasks lose nothing without it, and its base tasks fall with it.
DEFAULT = MergeConfig(unit_gain=1.0)


@dataclass(frozen=True)
class AdapterTask:
    """An adapter, and the examples to measure it on.

    Args:
        folder: Folder of the adapter; None: no adapter, the merged model should answer these
            examples as the base model does.
        weight: Weight of the task, relative to the other tasks.

    Raises:
        CalibrationError: There are no examples.
    """

    folder: Path | None
    examples: Sequence[Example]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.examples:
            name = self.folder or "the base model"
            raise CalibrationError(f"there are no samples for {name}; give it at least one input")


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
    kernels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def save(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write the merged adapter's folder.

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
class LanguageFamily:
    """A family of models whose PEFT adapters can be merged.

    Args:
        kinds: Values of ``model_type``.
        model_class: Name of the class of `transformers` that loads a model.
        load_reader: Function that loads a tokenizer or processor.
        read: Function that reads the examples in a file or folder.
        encoded: (example, tokenizer or processor, model, options) -> the example as tensors.
        write: (model, samples, most tokens) -> the token ids that it answers to each of them.
        network_of: Model, and whether its head runs -> the network to merge in.
        rows: (model, samples of each task, each with a target) -> rows of one length.
        head: How the paths begin of the layers that make words of the decoder's outputs.
        task_type: PEFT's name of the model's task; None: a plain `PeftModel`.
    """

    kinds: tuple[str, ...]
    model_class: str
    load_reader: Callable[[str], Any]
    read: Callable[[Path], list[Example]]
    encoded: Callable[[Example, Any, Any, ReadingOptions], EncodedSample]
    write: Callable[[Any, Sequence[EncodedSample], int], list[Tensor]]
    network_of: Callable[..., Network]
    rows: Callable[[Any, Sequence[Sequence[EncodedSample]]], list[list[Sample]]]
    head: str
    options: ReadingOptions
    task_type: str | None = None

    def load(
        self, source: str, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> nn.Module:
        """Load a model from a folder or by its name on the hub, ready to be measured.

        Raises:
            ConfigError: There is no model, or one of another kind, or some of its weights are
                missing; or the device cannot be used.
        """
        import transformers

        read = transformers.AutoConfig.from_pretrained
        kind = loaded(read, source, "a model", trust_remote_code=False).model_type
        if kind not in self.kinds:
            raise ConfigError(
                f"{source}: is a model of the kind {kind!r}; choose one of the kinds "
                f"{', '.join(self.kinds)}"
            )
        loader = getattr(transformers, self.model_class)
        model = whole_model(loader, source, "a model", dtype=dtype)
        return placed(model, device)

    def prepare(
        self,
        teachers: Teachers,
        tasks: Sequence[Sequence[Example]],
        options: ReadingOptions,
        reader: Any = None,
    ) -> tuple[Network, list[list[Sample]]]:
        """Return the network to merge in, and the examples of each task as its rows.

        Args:
            teachers: The tasks' teachers, who answer examples without a target.
            reader: Tokenizer or processor of the base model; None if no example needs it.

        Raises:
            CalibrationError, ConfigError: An example cannot be used.
        """
        model = teachers.model
        read = [[self.encoded(each, reader, model, options) for each in task] for task in tasks]

        def answer(samples: Sequence[EncodedSample]) -> list[Tensor]:
            return self.write(model, samples, options.max_new_tokens)

        answered = teachers.answered(read, answer)
        paths = target_layers(teachers.adapters)
        head = any(path.startswith(self.head) for path in paths)
        return self.network_of(model, head=head), self.rows(model, answered)


def load_adapter(model: nn.Module, folder: Path) -> Adapter:
    """Read a PEFT adapter for a model; see `peft.load`."""

    def weight_at(path: str) -> Tensor:
        return stored_weight(path, model.get_submodule(path))

    return peft.load(folder, layer_shapes(dict(model.named_modules())), weight_at)


def merge_peft(
    family: LanguageFamily,
    base: str | nn.Module,
    tasks: Sequence[AdapterTask],
    config: MergeConfig | None = None,
    options: ReadingOptions | None = None,
    *,
    room: Room = UNLIMITED,
    progress: StageProgress = nobody,
) -> PeftMergeResult:
    """Merge PEFT adapters of one language model.

    Args:
        family: The model's family, ``t5.FAMILY`` or ``blip.FAMILY``.
        base: Folder, name on the hub, or a model that was loaded from there. Its tokenizer or
            processor is read from the same place, if an example needs it.
        config: Settings of the merge; None: `DEFAULT`.
        room: What the machine allows.

    Raises:
        IterisError: A base, adapter, example or setting cannot be used, or an error of `merge`.
    """
    options = options or family.options
    config = config or DEFAULT
    if config.unit_gain is None:
        config = replace(config, unit_gain=DEFAULT.unit_gain)
    name = base if isinstance(base, str) else str(getattr(base, "name_or_path", ""))
    needs_reader = any(example.needs_reader for task in tasks for example in task.examples)
    reader = family.load_reader(name) if needs_reader else None
    model = family.load(base) if isinstance(base, str) else base
    read = [load_adapter(model, task.folder) if task.folder else None for task in tasks]
    names = told_apart([adapter.name if adapter else PRESERVE_TASK for adapter in read])
    named = zip(read, names, strict=True)
    whole = [replace(adapter, name=name) for adapter, name in named if adapter]
    numbers = itertools.count()
    mixes = [{next(numbers): 1.0} if adapter else {} for adapter in read]
    teachers = Teachers(model, whole, mixes, room.samples_per_chunk, progress)
    network, rows = family.prepare(teachers, [task.examples for task in tasks], options, reader)
    weights = [task.weight for task in tasks]
    measured = [Task(*task) for task in zip(names, rows, mixes, weights, strict=True)]
    result = merge(network, whole, measured, config, room=room, progress=partial(progress, STAGE))
    settings = {
        "base": name,
        "adapters": [str(task.folder) for task in tasks if task.folder is not None],
        "samples": [len(task.examples) for task in tasks],
        "weights": weights,
        "options": asdict(options),
        "config": config.to_dict(),
    }
    return PeftMergeResult(
        result.adapter,
        replace(result.report, settings=settings, saved_bytes=result.adapter.saved_bytes),
        result.outputs,
        base=name,
        task_type=family.task_type,
        kernels=layer_kernels(network.modules),
    )
