"""Models that write: an encoder-decoder on prompts, a captioning model on pictures, either of them
wearing an adapter.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter
from ..devices import product_dtype
from ..errors import ConfigError
from ..files.pretrained import generation_settings
from ..language.caption_samples import check_length
from ..layers import add_to_output, codes_of
from ..rows.wearing import layer_hooks
from .text_metrics import EvaluationError


@dataclass(frozen=True)
class Generation:
    """How answers are written.

    Args:
        beams: 1 is greedy.
        max_new_tokens: Length of an answer, at most.
        max_length: Tokens of a prompt; what is longer is cut.
        no_repeat: Sequences of this many tokens are written once only; 0: any may come again.
        repetition_penalty: Above 1: what was read or written becomes less likely.
    """

    beams: int = 1
    max_new_tokens: int = 16
    max_length: int = 256
    no_repeat: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name in ("beams", "max_new_tokens", "max_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 1 or more")

    def options(self) -> dict[str, Any]:
        """Return what `generate` of transformers takes."""
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
    """Let every row of every call run through base + adapter; None: the base alone."""
    deltas = adapter.deltas if adapter is not None else {}
    at_hand: dict[str, Any] = {}

    def hook(path: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if path not in at_hand:
            at_hand[path] = deltas[path].to(device=x.device, dtype=product_dtype(x))
        y = y.clone()
        add_to_output(module, y, codes_of(module, x, at_hand[path].down) @ at_hand[path].up.T)
        return y

    with layer_hooks({path: modules[path] for path in deltas}, hook):
        yield


def text_writer(
    model: nn.Module, tokenizer: Any, how: Generation
) -> Callable[[Sequence[str]], list[str]]:
    """Return what answers prompts with an encoder-decoder of `families.t5`."""

    settings = generation_settings(model, num_return_sequences=1, **how.options())

    def write(prompts: Sequence[str]) -> list[str]:
        inputs = tokenizer(
            list(prompts),
            padding=True,
            truncation=True,
            max_length=how.max_length,
            return_tensors="pt",
        )
        ids = inputs["input_ids"].to(model.device)
        mask = inputs["attention_mask"].to(model.device)
        with torch.no_grad():
            written = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        return [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]

    return write


def caption_writer(
    model: nn.Module, processor: Any, prompt: str, how: Generation
) -> Callable[[Sequence[Path | bytes]], list[str]]:
    """Return what writes captions with a model of `families.blip`, behind a prompt that is not part
    of the caption.

    Raises:
        ConfigError: Prompt and caption together may become longer than what the model's decoder
            reads.
    """
    start = processor.tokenizer(
        prompt, truncation=True, max_length=how.max_length, return_tensors="pt"
    )["input_ids"]
    # the end tokens, of the prompt and of the caption, are never read
    check_length(
        model,
        start.shape[1] - 1 + how.max_new_tokens - 1,
        "a caption with its prompt and max_new_tokens",
    )

    def write(pictures: Sequence[Path | bytes]) -> list[str]:
        images = [_opened(picture) for picture in pictures]
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"].to(
            model.device, model.dtype
        )
        ids = start.repeat(len(images), 1).to(model.device)
        with torch.no_grad():
            written = model.generate(
                pixel_values=pixels,
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **how.options(),
            )
        captions = written[:, start.shape[1] - 1 :]  # generate drops the prompt's end token
        return [
            text.strip()
            for text in processor.tokenizer.batch_decode(captions, skip_special_tokens=True)
        ]

    return write


def _opened(picture: Path | bytes) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        place = "a picture in the parquet file" if isinstance(picture, bytes) else picture
        raise EvaluationError(
            f"{place}: cannot be read as a picture ({error}); give a PNG or JPEG file"
        ) from error
