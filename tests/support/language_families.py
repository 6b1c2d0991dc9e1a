"""Tiny models of every language family, with two adapters and samples of each, to merge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_language
import torch
from transformers import BartForConditionalGeneration, BlipForConditionalGeneration

from iteris_core.files import peft
from iteris_core.language import blip, t5
from iteris_core.language.job import AdapterTask, LanguageFamily, PeftMergeResult, merge_peft
from iteris_core.language.samples import Example

LENGTHS = ((7, 4), (3, 6), (9, 1), (5, 5))  # of inputs and targets


def texts(seed: int, *, targets: bool = True) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)

    def ids(length):
        return torch.randint(2, 60, (length,), generator=generator)

    drawn = [(ids(n), ids(m)) for n, m in LENGTHS]
    return [Example(text, target if targets else None) for text, target in drawn]


def captions(seed: int, *, targets: bool = True) -> list[Example]:
    torch.manual_seed(seed)
    start = torch.tensor([3])
    drawn = [
        (torch.randn(3, 16, 16), torch.cat([start, torch.randint(4, 50, (n,))]))
        for n in (4, 7, 2, 6)
    ]
    return [Example(pixels, ids if targets else None) for pixels, ids in drawn]


@dataclass(frozen=True)
class Case:
    """A folder with a saved ``base``, and adapters ``one`` and ``two``."""

    family: LanguageFamily
    folder: Path
    samples: Callable[..., list[Any]]

    @property
    def adapters(self) -> list[Path]:
        return [self.folder / "one", self.folder / "two"]

    def base(self, dtype: torch.dtype = torch.float32):
        return self.family.load(str(self.folder / "base"), dtype)

    def tasks(self, **options) -> list[AdapterTask]:
        each = enumerate(self.adapters)
        return [AdapterTask(folder, self.samples(k, **options)) for k, folder in each]

    def deltas(self, folder: Path):
        base = self.base()
        shapes = tiny_language.shapes(base)
        return peft.load(folder, shapes, lambda path: base.get_submodule(path).weight).deltas

    def merge(self, base=None, tasks=None, config=None, **more) -> PeftMergeResult:
        base = self.base() if base is None else base
        return merge_peft(self.family, base, tasks or self.tasks(), config, **more)

    def logits(self, model) -> torch.Tensor:
        """Return what a model answers to samples that no merge has seen."""
        if self.family is t5.FAMILY:
            return tiny_language.logits(model)
        sample = captions(5)[0]
        with torch.no_grad():
            inputs = {"pixel_values": sample.input[None], "input_ids": sample.target[None]}
            return model.eval()(**inputs).logits


def make(name: str, folder: Path) -> Case:
    base, adapter = folder / "base", tiny_language.adapter
    if name == "T5":
        tiny_language.t5().save_pretrained(base)
        adapter(base, folder / "one", 1)
        every = ("q", "k", "v", "o", "wi", "wo")
        adapter(base, folder / "two", 2, every, r=3, lora_alpha=6)
    elif name == "FLAN-T5":  # gated, with a head that is not the embedding; the second is a DoRA
        model = tiny_language.t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
        model.lm_head.weight = torch.nn.Parameter(torch.randn(60, 32) / 4)
        model.save_pretrained(base)
        adapter(base, folder / "one", 1, ("q", "v", "wi_0", "wi_1", "wo"))
        adapter(base, folder / "two", 2, ("q", "wi_1"), use_dora=True)
    elif name == "BART":
        tiny_language.bart().save_pretrained(base)
        targets = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1")
        for seed, place in ((1, "one"), (2, "two")):
            adapter(base, folder / place, seed, targets, kind=BartForConditionalGeneration)
    else:
        tiny_language.blip().save_pretrained(base)
        tiny_language.blip_processor().save_pretrained(base)
        kind = {"kind": BlipForConditionalGeneration, "task_type": None}
        adapter(base, folder / "one", 1, ("query", "key", "value"), **kind)
        adapter(base, folder / "two", 2, ("query", "value", "qkv", "fc1"), r=3, **kind)
        return Case(blip.FAMILY, folder, captions)
    return Case(t5.FAMILY, folder, texts)
