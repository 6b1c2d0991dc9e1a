"""Functions that make models write: answers of an encoder-decoder, and captions of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from iteris_core.adapters import Adapter, LowRankDelta
from iteris_core.devices import exact_products, product_dtype
from iteris_core.language.pictures import open_picture
from iteris_core.language.samples import check_length
from iteris_core.language.t5 import generation_settings
from iteris_core.layers import add_to_output, codes_of
from iteris_core.rows.wearing import layer_hooks
from iteris_core.settings import MOST_AT_ONCE, MOST_TOKENS, settings


@settings
class Generation:
    """How answers are written."""

    beams: Annotated[
        int, Field(ge=1, le=MOST_AT_ONCE, description="Beams of the beam search; 1 is greedy.")
    ] = 1
    max_new_tokens: Annotated[
        int, Field(ge=1, le=MOST_TOKENS, description="Most tokens of an answer.")
    ] = 16
    max_length: Annotated[
        int,
        Field(ge=1, le=MOST_TOKENS, description="Tokens of a prompt; what is longer is cut."),
    ] = 256
    no_repeat: Annotated[
        int,
        Field(
            ge=0,
            le=MOST_TOKENS,
            description="Sequences of this many tokens are written only once; 0: any may come "
            "again.",
        ),
    ] = 0
    repetition_penalty: Annotated[
        float,
        Field(
            gt=0,
            le=1000,
            description="Above 1: tokens that were read or written become less likely.",
        ),
    ] = 1.0

    def options(self) -> dict[str, Any]:
        """Return the arguments of transformers' ``generate``."""
        return {
            "do_sample": False,
            "num_beams": self.beams,
            "max_new_tokens": self.max_new_tokens,
            "no_repeat_ngram_size": self.no_repeat,
            "repetition_penalty": self.repetition_penalty,
        }


# As the published code writes captions, but with plain beams: its beam groups are gone from
# transformers 5.
CAPTIONS = Generation(
    beams=4, max_new_tokens=42, max_length=168, no_repeat=3, repetition_penalty=1.2
)


@contextmanager
def all_wearing(modules: dict[str, nn.Module], adapter: Adapter | None) -> Iterator[None]:
    """Let every row of every call run through base + adapter.

    `rows.wearing` needs a fixed number of rows, but a beam search has more rows in the decoder than
    in the encoder.

    Args:
        modules: Modules of the model.
        adapter: Adapter that all rows wear; None: the base model alone.
    """
    deltas = adapter.deltas if adapter is not None else {}
    on_device: dict[str, LowRankDelta] = {}

    def hook(path: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if path not in on_device:
            on_device[path] = deltas[path].to(device=x.device, dtype=product_dtype(x))
        delta = on_device[path]
        with exact_products(x.device):
            add_to_output(module, y, codes_of(module, x, delta.down), delta.up)
        return y

    with layer_hooks({path: modules[path] for path in deltas}, hook):
        yield


def text_writer(
    model: Any, tokenizer: Any, generation: Generation
) -> Callable[[Sequence[str]], list[str]]:
    """Return a function that lets an encoder-decoder of `language.t5` answer prompts."""
    settings = generation_settings(model, num_return_sequences=1, **generation.options())

    def write(prompts: Sequence[str]) -> list[str]:
        inputs = tokenizer(
            list(prompts),
            padding=True,
            truncation=True,
            max_length=generation.max_length,
            return_tensors="pt",
        )
        ids = inputs["input_ids"].to(model.device)
        mask = inputs["attention_mask"].to(model.device)
        with torch.no_grad():
            written = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        return [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]

    return write


def caption_writer(
    model: Any, processor: Any, prompt: str, generation: Generation
) -> Callable[[Sequence[Path | bytes]], list[str]]:
    """Return a function that lets a model of `language.blip` write captions of pictures.

    Args:
        model: The captioning model.
        processor: Processor of the model.
        prompt: Text that the model begins with; it is not part of a caption.
        generation: Settings for writing captions.

    Raises:
        ConfigError: Prompt and caption together may become longer than what the model's decoder
            reads.
    """
    start = processor.tokenizer(
        prompt, truncation=True, max_length=generation.max_length, return_tensors="pt"
    )["input_ids"]
    # the end tokens, of the prompt and of the caption, are never read
    check_length(
        start.shape[1] - 1 + generation.max_new_tokens - 1,
        model.config.text_config.max_position_embeddings,
        "a caption with its prompt and max_new_tokens",
    )

    def write(pictures: Sequence[Path | bytes]) -> list[str]:
        images = [open_picture(picture) for picture in pictures]
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"].to(
            model.device, model.dtype
        )
        ids = start.repeat(len(images), 1).to(model.device)
        with torch.no_grad():
            written = model.generate(
                pixel_values=pixels,
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **generation.options(),
            )
        captions = written[:, start.shape[1] - 1 :]  # generate drops the prompt's end token
        return [
            text.strip()
            for text in processor.tokenizer.batch_decode(captions, skip_special_tokens=True)
        ]

    return write
