"""The T5 side of the experiment, and the common part of both sides: LoRAs by seed, calibration
rows, scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from iteris_core import Adapter, Network, Task
from iteris_core.files import peft
from iteris_core.files.pretrained import mergeable_shapes
from iteris_core.language.samples import Encoded
from iteris_core.language.t5 import network_of, write
from iteris_core.language.teachers import Teachers
from iteris_core.language.text_samples import token_samples

from .language_methods import Way
from .language_tasks import BASE_TASKS, LORA_TASKS, MOST_WORDS, PAD, TextTask, encode, score
from .language_train import answers, fit, make_t5, patched, save_whole, text_batches, train_lora

_FILLED = 32  # tokens of an input whose padding counts, as the published code fills texts up

Tell = Callable[
    [str, int, int], None
]  # what is trained, steps done, steps in all; may raise to cancel


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


class World(Protocol):
    """One base model, its LoRAs, and how merged LoRAs are scored."""

    name: str
    tasks: Sequence[str]

    def adapters(self, seed: int) -> dict[str, Adapter]: ...

    def merge_inputs(
        self, names: Sequence[str], seed: int, way: Way
    ) -> tuple[Network, list[Task]]: ...

    def scores(
        self, adapter: Adapter | None, names: Sequence[str], seed: int
    ) -> dict[str, float]: ...


@dataclass
class TextWorld:
    """A small T5, and LoRAs on q and v of all attention layers.

    Args:
        folder: Folder of this base model and its LoRAs.
        seed: Seed of the base model.
        size: Amounts of training and measuring.
        tell: Listener for the progress of training.
    """

    folder: Path
    seed: int
    size: Size
    tell: Tell
    name: str = "t5"
    tasks: Sequence[str] = tuple(task.name for task in LORA_TASKS)
    model: nn.Module = field(init=False)
    written: dict[tuple[str, int], list[Encoded]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from transformers import T5ForConditionalGeneration

        base = self.folder / "base"
        if not base.exists():
            model = make_t5(self.seed, self.size.width, self.size.layers)
            steps = self.size.base_steps
            batches = text_batches(BASE_TASKS, self.seed, self.size.batch)
            fit(
                model,
                batches,
                steps,
                self.size.base_rate,
                lambda step, _: self.tell("T5", step, steps),
            )
            save_whole(model, base)
        self.model = T5ForConditionalGeneration.from_pretrained(base).eval().requires_grad_(False)

    def adapters(self, seed: int) -> dict[str, Adapter]:
        """Return this seed's LoRA of every task, trained if it is not there yet."""
        found = {}
        size = self.size
        for task in LORA_TASKS:
            folder = self.folder / f"lora-{task.name}-{seed}"
            if not folder.exists():
                told = lambda step, _, name=folder.name: self.tell(name, step, size.lora_steps)  # noqa: E731
                drawn = text_batches([task], 1000 + seed, size.batch)
                settings = {"r": 8, "lora_alpha": 16, "task_type": "SEQ_2_SEQ_LM"}
                train_lora(
                    self.model,
                    folder,
                    drawn,
                    size.lora_steps,
                    size.lora_rate,
                    seed,
                    told,
                    target_modules=["q", "v"],
                    **settings,
                )
            found[task.name] = peft.load(folder, mergeable_shapes(self.model))
        return found

    def merge_inputs(self, names: Sequence[str], seed: int, way: Way) -> tuple[Network, list[Task]]:
        """Return the network, and each named task's own inputs with what its LoRA answers."""
        worn = self.adapters(seed)
        samples = [self.answered(worn[name], seed)[: way.samples] for name in names]
        if way.preserve:
            samples.append(self.ordinary(seed, len(samples[0])))
        shift = self.model.prepare_decoder_input_ids_from_labels
        fill_to = _FILLED if way.padding == "count" else None
        rows = token_samples(samples, PAD, shift, padding=way.padding, fill_to=fill_to)
        tasks = [Task(name, rows[k], {k: 1.0}) for k, name in enumerate(names)]
        if way.preserve:
            tasks.append(Task("preserve", rows[-1], {}, way.preserve))
        return replace(network_of(self.model), forward=self.outputs), tasks

    def answered(self, adapter: Adapter, seed: int) -> list[Encoded]:
        """Return inputs of an adapter's task with the adapter's answers in place of labels."""
        name = next(task.name for task in LORA_TASKS if adapter.name == f"lora-{task.name}-{seed}")
        if (name, seed) not in self.written:
            task = next(task for task in LORA_TASKS if task.name == name)
            asked = [
                Encoded(encode(read), None)
                for read, _ in task.examples(100 + seed, self.size.samples)
            ]
            teachers = Teachers(self.model, [adapter], [{0: 1.0}], samples_per_call=64)
            answer = partial(write, self.model, max_new_tokens=MOST_WORDS)
            (self.written[name, seed],) = teachers.answered([asked], answer)
        return self.written[name, seed]

    def ordinary(self, seed: int, count: int) -> list[Encoded]:
        """Return inputs of the base model's own tasks, in turn."""
        drawn = [
            BASE_TASKS[i % len(BASE_TASKS)].examples(10_000 + 1000 * seed + i, 1)[0]
            for i in range(count)
        ]
        return [Encoded(encode(read), encode(right)) for read, right in drawn]

    def outputs(self, rows: Sequence[Any]) -> Tensor:
        """Return a batch's logits, 0 after the end of an answer."""
        ids, mask, decoder_ids = (
            torch.stack([getattr(row, part) for row in rows])
            for part in ("ids", "mask", "decoder_ids")
        )
        logits = self.model(
            input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids, use_cache=False
        ).logits
        is_word = decoder_ids != self.model.config.pad_token_id
        is_word[:, 0] = True  # T5 starts with the padding token
        return logits * is_word[..., None]

    def scores(self, adapter: Adapter | None, names: Sequence[str], seed: int) -> dict[str, float]:
        """Return the share of right answers per named task, and their mean over the base model's
        own tasks as ``base``.
        """
        wanted = [(task, self.size.examples) for task in LORA_TASKS if task.name in names]
        wanted += [(task, self.size.base_examples) for task in BASE_TASKS]
        with patched(self.model, adapter):
            found = _text_scores(self.model, wanted, 200 + seed)
        own = {name: found[name] for name in names}
        return {**own, "base": sum(found[task.name] for task in BASE_TASKS) / len(BASE_TASKS)}


def _text_scores(
    model: nn.Module, wanted: Sequence[tuple[TextTask, int]], seed: int
) -> dict[str, float]:
    """Return the share of right answers on so many fresh examples of each task, answered in one
    batch.
    """
    examples = [task.examples(seed, count) for task, count in wanted]
    told = iter(answers(model, [read for part in examples for read, _ in part]))
    return {
        task.name: score([next(told) for _ in part], [right for _, right in part])
        for (task, _), part in zip(wanted, examples, strict=True)
    }
