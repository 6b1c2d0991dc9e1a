"""Merges of PEFT adapters of a BLIP captioning model, on pictures and captions.

Captions are teacher-forced: teacher rows and student rows read the same tokens. These are the
sample's caption, or what the task's own teacher writes about the picture.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import MergeConfig
from ..devices import device_of
from ..files.pretrained import DeviceMap, load_adapter, load_model, load_processor
from ..network import IMAGE_STREAM, TEXT_STREAM, Network
from ..progress import StageProgress, nobody
from .caption_samples import (
    CaptionOptions,
    CaptionRow,
    caption_rows,
    encode_captions,
    has_texts,
)
from .job import DEFAULT, AdapterTask, Base, MergeJob, PeftMergeResult, Preserve
from .samples import Encoded, until_end

KINDS = ("blip",)  # values of ``model_type``
_READS_IMAGE = re.compile(r"vision_model\..*|.*\.crossattention\.self\.(key|value)")
_HEAD = "text_decoder.cls."


def load_base(
    source: str,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    device_map: DeviceMap = "none",
) -> nn.Module:
    """Load a BLIP captioning model from a folder or by its name on the hub; see
    `pretrained.load_model`.
    """
    from transformers import BlipForConditionalGeneration

    return load_model(BlipForConditionalGeneration, KINDS, source, dtype, device, device_map)


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
        model: The model, as `load_base` returns it.
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
        return (answers.logits if head else answers.last_hidden_state) * mask[..., None]

    return Network(dict(model.named_modules()), forward, stream_of)


def write(model: Any, samples: Sequence[Encoded], max_new_tokens: int = 32) -> list[Tensor]:
    """Return the token ids (length,) that the model writes about each picture, greedily.

    Args:
        model: The model, as `load_base` returns it.
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


def merge_blip(
    base: Base | str | nn.Module,
    adapters: Sequence[AdapterTask],
    config: MergeConfig | None = None,
    options: CaptionOptions | None = None,
    *,
    preserve: Preserve | None = None,
    progress: StageProgress = nobody,
) -> PeftMergeResult:
    """Merge PEFT adapters of one BLIP captioning model.

    Args:
        base: Folder, name on the hub, a loaded model, or a `Base` that says more about it. Its
            reader is a processor; pictures in files, and captions and prompts that are texts, need
            it.
        adapters: Adapters to merge, at least one; their samples are `CaptionSample`.
        config: Settings of the merge; None: those of `job.DEFAULT`.
        options: Settings with which captions are read; None: the defaults.
        preserve: Samples on which the base model is kept as it is; None: there is no such task.
        progress: Listener for (stage, steps done, steps in all); may raise to cancel.

    Raises:
        IterisError: A base, adapter, sample or setting cannot be used, or an error of `merge`.
    """
    base = base if isinstance(base, Base) else Base(base)
    options = options or CaptionOptions()
    job = MergeJob(base, adapters, preserve or Preserve(), config or DEFAULT, progress)
    processor = base.reader
    if processor is None and any(sample.needs_processor for task in job.samples for sample in task):
        processor = load_processor(base.name)
    model = base.model
    if isinstance(model, str):
        model = load_base(model, base.dtype, base.device, base.device_map)
    worn = [load_adapter(model, Path(task.folder)) for task in adapters]
    encoded = encode_captions(job.samples, processor, model, options)
    answer = partial(write, model, max_new_tokens=options.max_new_tokens)
    encoded = job.teachers(model, worn).answered(encoded, answer)
    fill = options.padding == "count" and has_texts(job.samples)
    rows = caption_rows(encoded, options, fill=fill)
    head = any(path.startswith(_HEAD) for adapter in worn for path in adapter.deltas)
    return job.run(network_of(model, head=head), worn, rows, options)
