"""Merges of PEFT adapters of a BLIP captioning model, on pictures and captions.

Captions are teacher-forced: teacher rows and student rows read the same tokens. These are the
sample's caption, or what the task's own teacher writes about the picture.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..base_models import load_processor
from ..devices import device_of
from ..errors import CalibrationError
from ..network import IMAGE_STREAM, TEXT_STREAM, Network
from ..tasks import Sample
from .job import LanguageFamily, merge_peft
from .pictures import open_picture
from .samples import (
    EncodedSample,
    Example,
    ReadingOptions,
    Row,
    check_ids,
    check_length,
    masked,
    padded,
    read_images,
    row_sample,
    stacked,
    until_end,
)

_READS_IMAGE = re.compile(r"vision_model\..*|.*\.crossattention\.self\.(key|value)")


def stream_of(path: str) -> str:
    """Return the stream of tokens that a layer reads: keys and values of cross-attention read the
    picture's.
    """
    return IMAGE_STREAM if _READS_IMAGE.fullmatch(path) else TEXT_STREAM


def network_of(model: Any, *, head: bool = False) -> Network:
    """Return a BLIP captioning model as the engines see it.

    Its outputs are the last hidden states or the logits, and 0 where a caption has padding.

    Args:
        head: Whether the layers run, too, that make words of the decoder's outputs.
    """

    def forward(rows: Sequence[Row]) -> Tensor:
        parts = ("read", "decoder_ids", "decoder_mask")
        pixels, ids, mask = (stacked(model, rows, part) for part in parts)
        picture = model.vision_model(pixel_values=pixels.to(model.dtype)).last_hidden_state
        seen = torch.ones(picture.shape[:2], dtype=torch.long, device=picture.device)
        decoder = model.text_decoder if head else model.text_decoder.bert
        answers = decoder(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=picture,
            encoder_attention_mask=seen,
            is_decoder=True,
            use_cache=False,
        )
        outputs: Tensor = answers.logits if head else answers.last_hidden_state
        return masked(outputs, mask)

    return Network(dict(model.named_modules()), forward, stream_of)


def write(model: Any, samples: Sequence[EncodedSample], max_new_tokens: int = 32) -> list[Tensor]:
    """Return the token ids (length,) that the model writes about each picture, greedily.

    Args:
        samples: Samples of one batch; their captions begin alike.
        max_new_tokens: Most tokens of a caption, without its beginning.
    """
    end_id = model.config.text_config.sep_token_id
    # generate takes the last id for the tokenizer's end token, and drops it
    start = torch.tensor([*samples[0].start.tolist(), end_id], device=device_of(model))
    ids = start.repeat(len(samples), 1)
    pixels = torch.stack([sample.read for sample in samples]).to(device_of(model), model.dtype)
    written = model.generate(
        pixel_values=pixels,
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
    )
    # the last token is written, never read
    return [until_end(row, end_id)[:-1] for row in written.cpu()]


def encoded(example: Example, processor: Any, model: Any, options: ReadingOptions) -> EncodedSample:
    """Return a picture and its caption as pixels and token ids.

    Args:
        processor: Processor of the model; None if the example does not need one.

    Raises:
        CalibrationError: The picture cannot be read, or the model does not have these pixels or
            ids.
        ConfigError: The caption may become longer than what the model's decoder reads.
    """
    settings = model.config.text_config

    def tokens(text: str) -> Tensor:
        words = [0, 0]
        if text:
            cut = processor.tokenizer(text, truncation=True, max_length=options.max_length)
            words = cut["input_ids"]
        # as the model's own generate does: its start token for the tokenizer's, and no end token to
        # read
        return torch.tensor([settings.bos_token_id, *words[1:-1]])

    prompt = example.prompt.strip()
    start = tokens(prompt)
    ids = example.target
    if isinstance(ids, Tensor) and prompt:
        raise CalibrationError(
            f"a caption is token ids and has the prompt {prompt!r}; put the prompt's ids into them"
        )
    if isinstance(ids, str):
        ids = tokens(f"{prompt} {ids}".strip())
    if ids is None:
        length = len(start) + options.max_new_tokens - 1  # the last one is never read
        what = "a caption with its prompt and max_new_tokens"
    else:
        check_ids("a caption", ids, settings.vocab_size)
        length, what = len(ids), "a caption (max_length cuts those that are texts)"
    check_length(length, settings.max_position_embeddings, what)
    return EncodedSample(_pixels(example.input, processor, model), ids, start)


def _pixels(image: Any, processor: Any, model: Any) -> Tensor:
    pixels: Tensor = image
    if not isinstance(image, Tensor):
        made = processor.image_processor(open_picture(image), return_tensors="pt")
        pixels = made["pixel_values"][0]
    side = model.config.vision_config.image_size
    if pixels.shape != (3, side, side):
        raise CalibrationError(
            f"a sample has pixels of shape {tuple(pixels.shape)}; this model reads (3, {side}, "
            f"{side})"
        )
    return pixels


def caption_rows(_model: Any, tasks: Sequence[Sequence[EncodedSample]]) -> list[list[Sample]]:
    """Return all tasks' samples, each with a target, as rows of one length."""
    targets = [sample.target for sample in chain(*tasks) if sample.target is not None]
    captions = zip(*padded(targets, 0), strict=True)
    streams = IMAGE_STREAM, TEXT_STREAM
    return [
        [row_sample(Row(sample.read, None, *next(captions)), streams) for sample in task]
        for task in tasks
    ]


FAMILY = LanguageFamily(
    ("blip",),
    "BlipForConditionalGeneration",
    load_processor,
    read_images,
    encoded,
    write,
    network_of,
    caption_rows,
    head="text_decoder.cls.",
    options=ReadingOptions(max_length=64),
)
load_base = FAMILY.load
merge_blip = partial(merge_peft, FAMILY)
