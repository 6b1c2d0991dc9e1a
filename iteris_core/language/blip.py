"""Merges of PEFT adapters of a BLIP captioning model, on pictures and captions.

Captions are teacher-forced: teacher rows and student rows read the same tokens. These are the
sample's caption, or what the task's own teacher writes about the picture.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..devices import device_of
from ..network import IMAGE_STREAM, TEXT_STREAM, Network
from ..tasks import Sample
from .caption_samples import (
    CaptionOptions,
    CaptionRow,
    CaptionSample,
    caption_rows,
    encode_captions,
    has_texts,
)
from .job import LanguageFamily, merge_peft
from .loading import load_processor
from .samples import EncodedSample, masked, until_end
from .teachers import Teachers

_READS_IMAGE = re.compile(r"vision_model\..*|.*\.crossattention\.self\.(key|value)")
_HEAD = "text_decoder.cls."


def stream_of(path: str) -> str:
    """Return the stream of tokens that a layer reads: keys and values of cross-attention read the
    picture's.
    """
    return IMAGE_STREAM if _READS_IMAGE.fullmatch(path) else TEXT_STREAM


def network_of(model: Any, *, head: bool = False) -> Network:
    """Return a BLIP captioning model as the engines see it.

    Its rows are `CaptionRow`. Its outputs are the last hidden states or the logits, and 0 where a
    caption has padding.

    Args:
        head: Whether the layers run, too, that make words of the decoder's outputs.
    """

    def forward(rows: Sequence[CaptionRow]) -> Tensor:
        pixels, ids, mask = (
            torch.stack([getattr(row, part) for row in rows]).to(device_of(model))
            for part in ("pixels", "ids", "mask")
        )
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


def prepare(
    teachers: Teachers,
    samples: Sequence[Sequence[CaptionSample]],
    options: CaptionOptions,
    processor: Any = None,
) -> tuple[Network, list[list[Sample]]]:
    """Return the network to merge in, and the samples of each task as its rows.

    Args:
        processor: Processor of the base model; None if no sample needs it.

    Raises:
        CalibrationError, ConfigError: A sample cannot be used, see `encode_captions`.
    """
    model = teachers.model
    encoded = encode_captions(samples, processor, model, options)
    answer = partial(write, model, max_new_tokens=options.max_new_tokens)
    encoded = teachers.answered(encoded, answer)
    fill = options.padding == "count" and has_texts(samples)
    head = any(path.startswith(_HEAD) for adapter in teachers.adapters for path in adapter.deltas)
    return network_of(model, head=head), caption_rows(encoded, options, fill=fill)


FAMILY = LanguageFamily(
    ("blip",), "BlipForConditionalGeneration", load_processor, prepare, CaptionOptions()
)
load_base = FAMILY.load
merge_blip = partial(merge_peft, FAMILY)
