"""A small T5, trained from scratch, and LoRAs for it, trained by PEFT."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iteris_core import Adapter

from .language_tasks import END, MOST_WORDS, PAD, VOCABULARY, TextTask, batch, decode

Batch = Mapping[str, Tensor]
IGNORED = -100


def make_t5(seed: int, width: int = 128, layers: int = 3) -> nn.Module:
    """Return a T5 with random weights."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    shape = T5Config(
        vocab_size=len(VOCABULARY),
        d_model=width,
        d_kv=width // 4,
        num_heads=4,
        d_ff=2 * width,
        num_layers=layers,
        dropout_rate=0.0,
        decoder_start_token_id=PAD,
        pad_token_id=PAD,
        eos_token_id=END,
    )
    model = T5ForConditionalGeneration(shape)
    for name, weight in model.named_parameters():
        # T5 draws these so small that so short a training never learns where a word stands:
        # reversing stays at 0.1
        if "relative_attention_bias" in name:
            nn.init.normal_(weight, std=3.0)
    return model


def text_batch(examples: Sequence[tuple[list[str], list[str]]]) -> Batch:
    """Return examples as what T5's ``forward`` takes."""
    ids = batch([read for read, _ in examples])
    return {
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "labels": batch([right for _, right in examples], IGNORED),
    }


def text_batches(tasks: Sequence[TextTask], seed: int, size: int) -> Iterator[Batch]:
    """Yield batches without end, all tasks mixed."""
    source = random.Random(seed)
    while True:
        drawn = [source.choice(tasks) for _ in range(size)]
        yield text_batch(
            [task.examples(source.randrange(1 << 40) + (1 << 20), 1)[0] for task in drawn]
        )


def fit(
    model: nn.Module,
    batches: Iterator[Batch],
    steps: int,
    rate: float,
    tell: Callable[[int, float], None],
) -> None:
    """Train what is trainable with AdamW: a short warm-up, then down to 0 along a cosine."""
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
        tell(step, loss.item())
    model.eval()


def train_lora(
    base: nn.Module,
    folder: Path,
    batches: Iterator[Batch],
    steps: int,
    rate: float,
    seed: int,
    tell: Callable[[int, float], None],
    **settings: Any,
) -> None:
    """Train a LoRA with PEFT and save its folder; the base is as it was afterwards."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    worn = get_peft_model(base, LoraConfig(lora_dropout=0.0, **settings))
    fit(worn, batches, steps, rate, tell)
    save_whole(worn, folder, save_embedding_layers=False)
    worn.unload()
    base.requires_grad_(False)


def save_whole(model: Any, folder: Path, **options: Any) -> None:
    """Save a model's folder in one step, so that a run that was stopped leaves no half of it."""
    draft = folder.with_name(f"{folder.name}.part")
    model.save_pretrained(draft, **options)
    draft.rename(folder)


@contextmanager
def patched(model: nn.Module, adapter: Adapter | None) -> Iterator[None]:
    """Add an adapter's deltas to the weights, and put back the very same weights afterwards."""
    deltas = {} if adapter is None else adapter.deltas
    weights = {path: model.get_submodule(path).weight for path in deltas}
    before = {path: weight.detach().clone() for path, weight in weights.items()}
    with torch.no_grad():
        try:
            for path, weight in weights.items():
                weight.add_(deltas[path].dense().to(weight.dtype))
            yield
        finally:
            for path, weight in weights.items():
                weight.copy_(before[path])


@torch.no_grad()
def answers(model: nn.Module, texts: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the model's greedy answers."""
    ids = batch(texts)
    written = model.generate(
        input_ids=ids,
        attention_mask=(ids != PAD).long(),
        do_sample=False,
        num_beams=1,
        max_new_tokens=MOST_WORDS,
    )
    return [decode(row) for row in written[:, 1:]]
