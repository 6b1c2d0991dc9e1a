"""Calibration samples of captioning models: pictures and captions, as pixels and token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ..errors import CalibrationError, ConfigError
from ..network import TEXT_STREAM
from ..settings import MOST_TOKENS, settings
from ..tasks import Sample
from .pictures import SUFFIXES, open_picture, pictures_in
from .samples import (
    EncodedSample,
    Padding,
    ReadingOptions,
    check_ids,
    longest,
    mask_of,
    padded,
    read_pairs,
    targets_of,
    token_weights,
)


@dataclass(frozen=True)
class CaptionSample:
    """One picture of a task, and its caption.

    Args:
        image: File of the picture, or pixels as the model reads them, (3, height, width).
        caption: A text, or the token ids (length,) that the decoder reads, from its start token on;
            None: the task's own teacher writes it.
        prompt: Text that the caption begins with, given or written: the words that the adapter was
            trained with. Captions that are token ids include it.
    """

    image: Path | Tensor
    caption: str | Tensor | None = None
    prompt: str = ""

    @property
    def needs_reader(self) -> bool:
        """Whether a processor is needed, to turn a part of the sample into pixels or token ids."""
        return (
            not isinstance(self.image, Tensor) or isinstance(self.caption, str) or bool(self.prompt)
        )


@dataclass(frozen=True)
class CaptionRow:
    """The picture and caption that one row of a batch reads.

    Args:
        pixels: Picture (3, height, width).
        ids: Token ids (length,).
        mask: 1 for tokens and 0 for padding, (length,).
    """

    pixels: Tensor
    ids: Tensor
    mask: Tensor


@settings
class CaptionOptions(ReadingOptions):
    """How captions are read."""

    padding: Annotated[
        Padding,
        Field(
            description="ignore leaves padding out of the statistics; count fills captions up to "
            "max_length, unless all are token ids, and counts the padding, as the published code "
            "does with 168."
        ),
    ] = "ignore"
    # at least a start token, one word and an end token
    max_length: Annotated[
        int,
        Field(
            ge=3,
            le=MOST_TOKENS,
            description="Tokens of a caption with its prompt; what is longer is cut.",
        ),
    ] = 64


def read_images(path: Path) -> list[CaptionSample]:
    """Read samples: the pictures of a folder, or JSON lines ``{"image": ..., "caption": ...}``,
    paths relative to the file.

    Raises:
        CalibrationError: There are none, or a line is wrong; names it.
    """
    if path.is_dir():
        files = pictures_in(path)
        if not files:
            raise CalibrationError(
                f"{path}: there are no pictures in this folder ({', '.join(SUFFIXES)})"
            )
        return [CaptionSample(file) for file in files]
    if not path.is_file():
        raise CalibrationError(
            f"{path}: there is no such folder or file; give a folder of pictures, or lines "
            '{"image": "a.png", "caption": "..."} ("caption" is optional)'
        )
    pairs = read_pairs(path, "image", "caption")
    return [CaptionSample(path.parent / image, caption) for image, caption in pairs]


def encode_captions(
    tasks: Sequence[Sequence[CaptionSample]],
    processor: Any,
    model: Any,
    options: CaptionOptions,
) -> list[list[EncodedSample]]:
    """Return all tasks' samples as pixels and token ids.

    Args:
        processor: Processor of the model; None if no sample needs one.

    Raises:
        CalibrationError: A picture cannot be read, or the model does not have these pixels or ids.
        ConfigError: Captions may become longer than what the model's decoder reads.
    """
    encoded = [
        [_encoded(sample, processor, model, options.max_length) for sample in task]
        for task in tasks
    ]
    if options.padding == "count" and has_texts(tasks):
        check_length(model, options.max_length, "a caption filled up to max_length")
    starts = [sample.start for task in encoded for sample in task if sample.target is None]
    if starts:
        most = max(map(len, starts)) + options.max_new_tokens - 1  # the last one is never read
        check_length(model, most, "a caption with its prompt and max_new_tokens")
    return encoded


def has_texts(tasks: Sequence[Sequence[CaptionSample]]) -> bool:
    """Whether some caption is not token ids yet."""
    return not all(isinstance(sample.caption, Tensor) for task in tasks for sample in task)


def check_length(model: Any, length: int, what: str) -> None:
    """Refuse a length that a BLIP's decoder cannot read.

    Raises:
        ConfigError: The decoder has fewer positions.
    """
    positions = model.config.text_config.max_position_embeddings
    if length > positions:
        raise ConfigError(
            f"{what} may have {length} tokens, but this model's decoder reads {positions}; set a "
            "smaller number"
        )


def _encoded(sample: CaptionSample, processor: Any, model: Any, max_length: int) -> EncodedSample:
    settings = model.config.text_config

    def tokens(text: str) -> Tensor:
        words = [0, 0]
        if text:
            cut = processor.tokenizer(text, truncation=True, max_length=max_length)
            words = cut["input_ids"]
        # as the model's own generate does: its start token for the tokenizer's, and no end token to
        # read
        return torch.tensor([settings.bos_token_id, *words[1:-1]])

    prompt = sample.prompt.strip()
    ids = sample.caption
    if isinstance(ids, Tensor) and prompt:
        raise CalibrationError(
            f"a caption is token ids and has the prompt {prompt!r}; put the prompt's ids into them"
        )
    if isinstance(ids, str):
        ids = tokens(f"{prompt} {ids}".strip())
    if ids is not None:
        check_ids("a caption", ids, settings.vocab_size)
        check_length(model, len(ids), "a caption (max_length cuts those that are texts)")
    return EncodedSample(_pixels(sample.image, processor, model), ids, tokens(prompt))


def _pixels(image: Path | Tensor, processor: Any, model: Any) -> Tensor:
    if isinstance(image, Tensor):
        pixels = image
    else:
        made = processor.image_processor(open_picture(image), return_tensors="pt")
        pixels = made["pixel_values"][0]
    side = model.config.vision_config.image_size
    if pixels.shape != (3, side, side):
        raise CalibrationError(
            f"a sample has pixels of shape {tuple(pixels.shape)}; this model reads (3, {side}, "
            f"{side})"
        )
    return pixels


def caption_rows(
    tasks: Sequence[Sequence[EncodedSample]], options: CaptionOptions, *, fill: bool = False
) -> list[list[Sample]]:
    """Return all tasks' samples as rows of one length.

    Args:
        tasks: Samples of each task, each with a target.
        fill: Whether captions are filled up to ``options.max_length``, or to the longest.

    Raises:
        CalibrationError: A caption is longer than that.
    """
    captions = targets_of(tasks)
    length = options.max_length if fill else longest(captions)
    made = []
    for task, texts in zip(tasks, captions, strict=True):
        rows = zip(task, padded(texts, length, 0), mask_of(texts, length), strict=True)
        made.append(
            [
                Sample(
                    CaptionRow(sample.read, ids, mask),
                    token_weights=token_weights({TEXT_STREAM: mask}, options.padding),
                )
                for sample, ids, mask in rows
            ]
        )
    return made
