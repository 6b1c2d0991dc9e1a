"""A small language model, its LoRAs by seed, calibration samples and scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iteris_core import Adapter, Network, Sample, Task
from iteris_core.files import peft
from iteris_core.layers import layer_shapes

from ..common import in_weights, teller
from .methods import Way

Batch = Mapping[str, Tensor]
IGNORED = -100  # a label that does not count
PRESERVE = "preserve"


@dataclass(frozen=True)
class Size:
    """Amounts of training and measuring."""

    width: int = 128
    layers: int = 3
    base_steps: int = 2500
    lora_steps: int = 300
    batch: int = 32
    samples: int = 100
    examples: int = 60
    base_examples: int = 10
    base_rate: float = 1e-3
    lora_rate: float = 3e-3


class World(ABC):
    """One base model, trained if it is not in the folder, its seed and sizes, and its LoRAs."""

    name: str
    tasks: Sequence[str]  # what LoRAs learn
    size = Size()
    model_class: str  # of transformers
    network_of: Callable[..., Network]
    lora: Mapping[str, Any]  # settings of PEFT

    def __init__(self, folder: Path, seed: int, size: Size | None = None) -> None:
        import transformers

        self.folder = folder
        self.size = size or self.size
        base = folder / "base"
        if not base.exists():
            torch.manual_seed(seed)
            model = self.new_model()
            batches = self.batches(None, seed)
            fit(model, batches, self.size.base_steps, self.size.base_rate, self.name)
            save_whole(model, base)
        load = getattr(transformers, self.model_class).from_pretrained
        self.model = load(base).eval().requires_grad_(False)
        self._written: dict[int, dict[str, list[Any]]] = {}

    @abstractmethod
    def new_model(self) -> nn.Module:
        """Return an untrained model."""

    @abstractmethod
    def batches(self, task: str | None, seed: int) -> Iterator[Batch]:
        """Yield batches of a task without end; None: of what the base model learns."""

    @abstractmethod
    def written(self, task: str, adapter: Adapter, seed: int) -> list[Any]:
        """Return inputs of a task, with what a LoRA writes on them."""

    @abstractmethod
    def ordinary(self, seed: int) -> list[Any]:
        """Return inputs of the base model's own tasks, with what it should write."""

    @abstractmethod
    def samples(self, written: Sequence[Sequence[Any]]) -> list[list[Sample]]:
        """Return samples of tasks, from what is written on their inputs."""

    @abstractmethod
    def scores(self, adapter: Adapter | None, names: Sequence[str], seed: int) -> dict[str, float]:
        """Return the share of right answers per named task, and as ``base`` in the base's tasks."""

    def adapters(self, seed: int) -> dict[str, Adapter]:
        """Return this seed's LoRA of every task, trained if it is not there yet."""
        for task in self.tasks:
            folder = self.folder / f"lora-{task}-{seed}"
            if not folder.exists():
                self._train_lora(folder, self.batches(task, 1000 + seed), seed)
        shapes = layer_shapes(dict(self.model.named_modules()))
        return {task: peft.load(self.folder / f"lora-{task}-{seed}", shapes) for task in self.tasks}

    def _train_lora(self, folder: Path, batches: Iterator[Batch], seed: int) -> None:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        worn = get_peft_model(
            self.model, LoraConfig(lora_dropout=0.0, r=8, lora_alpha=16, **self.lora)
        )
        fit(worn, batches, self.size.lora_steps, self.size.lora_rate, folder.name)
        save_whole(worn, folder, save_embedding_layers=False)
        worn.unload()
        self.model.requires_grad_(False)

    def merge_inputs(self, names: Sequence[str], seed: int, way: Way) -> tuple[Network, list[Task]]:
        """Return the network, and each named task's own inputs with what its LoRA writes."""
        if seed not in self._written:
            worn = self.adapters(seed)
            own = {name: self.written(name, worn[name], seed) for name in self.tasks}
            self._written[seed] = {**own, PRESERVE: self.ordinary(seed)}
        asked = [*names, PRESERVE] if way.preserve else names
        written = [self._written[seed][name][: way.samples] for name in asked]
        rows = self.samples(written)
        tasks = [Task(name, rows[k], {k: 1.0}) for k, name in enumerate(names)]
        if way.preserve:
            tasks.append(Task(PRESERVE, rows[-1], {}, way.preserve))
        return type(self).network_of(self.model, head=True), tasks

    def wearing(self, adapter: Adapter | None) -> AbstractContextManager[None]:
        """Let the model wear an adapter in its weights."""
        deltas = adapter.deltas if adapter else {}
        modules = dict(self.model.named_modules())
        return in_weights(modules, {path: delta.dense() for path, delta in deltas.items()})


def fit(model: nn.Module, batches: Iterator[Batch], steps: int, rate: float, name: str) -> None:
    """Train what is trainable with AdamW: a short warm-up, then down to 0 along a cosine."""
    tell = teller(name, 500)
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(wanted, rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=steps + 1, pct_start=0.1
    )
    model.train()
    for step in range(1, steps + 1):
        loss = model(**next(batches)).loss
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(wanted, 1.0)
        optimiser.step()
        schedule.step()
        tell(step, steps, loss.item())
    model.eval()


def save_whole(model: Any, folder: Path, **options: Any) -> None:
    """Save a model's folder in one step, so that a run that was stopped leaves no half of it."""
    draft = folder.with_name(f"{folder.name}.part")
    model.save_pretrained(draft, **options)
    draft.rename(folder)
