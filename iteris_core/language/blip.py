"""BLIP captioning models: PEFT adapters of the text decoder (and of the vision tower), merged on
pictures and captions.

Captions are teacher-forced: teacher rows and student rows read the same tokens, those of the
sample's caption, or of what the task's own teacher writes about the picture.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter
from ..config import MergeConfig
from ..devices import with_smaller_calls
from ..files.pretrained import load_adapter, load_model, load_processor
from ..network import Network
from .caption_samples import (
    IMAGE_STREAM,
    TEXT_STREAM,
    CaptionOptions,
    CaptionRow,
    CaptionSample,
    Encoded,
    caption_rows,
    encode_captions,
    has_texts,
    with_captions,
)
from .job import PRESERVE_WEIGHT, MergeJob, PeftMergeResult, StageProgress, merge_job

CAPTION_STAGE = "Teachers' captions"
_READS_IMAGE = re.compile(r"vision_model\..*|.*\.crossattention\.self\.(key|value)")


def load_base(source: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> nn.Module:
    """Load a BLIP captioning model from a folder or by its name on the hub; see
    `base_models.load_model`.
    """
    from transformers import BlipForConditionalGeneration

    return load_model(BlipForConditionalGeneration, ("blip",), source, dtype, device)


def stream_of(path: str) -> str:
    """Return whose tokens a layer reads: keys and values of cross-attention read the picture's."""
    return IMAGE_STREAM if _READS_IMAGE.fullmatch(path) else TEXT_STREAM


def network_of(model: nn.Module, *, head: bool = False) -> Network:
    """Return a BLIP captioning model as the engines see it; rows are `CaptionRow`, outputs the last
    hidden states or logits.

    Outputs are 0 where a caption has padding.

    Args:
        model: As `load_base` returns it.
        head: Whether to run the layers that make words of the decoder's outputs, too.
    """

    def forward(rows: Sequence[CaptionRow]) -> Tensor:
        pixels, ids, mask = (
            torch.stack([getattr(row, part) for row in rows]).to(model.device)
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


def merge_blip(
    base: str | nn.Module,
    adapter_folders: Sequence[Path],
    samples: Sequence[Sequence[CaptionSample]],
    config: MergeConfig | None = None,
    options: CaptionOptions | None = None,
    *,
    weights: Sequence[float] | None = None,
    preserve: Sequence[CaptionSample] = (),
    preserve_weight: float = PRESERVE_WEIGHT,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    processor: Any = None,
    progress: StageProgress | None = None,
) -> PeftMergeResult:
    """Merge PEFT adapters of one BLIP captioning model.

    Args:
        base: Folder or hub name, or a loaded model.
        adapter_folders: One or more.
        samples: Per adapter, its task's pictures and captions.
        config: How layers are solved; None: the defaults.
        options: How captions are read; None: the defaults.
        weights: Per adapter, how much its task counts; None: all the same.
        preserve: Ordinary pictures, on which the base model is to be kept as it is; none: no such
            task.
        preserve_weight: How much that task counts.
        dtype: In which the base runs, if it is loaded here.
        device: Where the base runs, if it is loaded here.
        processor: Of a base that is loaded already; needed for pictures in files, and for captions
            and prompts that are texts.
        progress: Told about stages and steps; may raise to cancel.

    Raises:
        IterisError: An unusable base, adapter, sample or setting, or what `merge` raises.
    """
    config = config or MergeConfig()
    options = options or CaptionOptions()
    job = merge_job(base, adapter_folders, samples, weights, preserve, preserve_weight)
    if processor is None and any(sample.needs_processor for task in job.samples for sample in task):
        processor = load_processor(job.base)
    model = load_base(base, dtype, device) if isinstance(base, str) else base
    adapters = [load_adapter(model, folder) for folder in job.folders]
    tokens = encode_captions(job.samples, processor, model, options)
    tokens = _written(
        model, adapters, job, tokens, options.max_new_tokens, config.samples_per_chunk, progress
    )
    rows = caption_rows(tokens, options, fill=options.count_padding and has_texts(job.samples))
    head = any(
        path.startswith("text_decoder.cls.") for adapter in adapters for path in adapter.deltas
    )
    return job.run(
        network_of(model, head=head), adapters, rows, config, asdict(options), progress=progress
    )


def _written(
    model: nn.Module,
    adapters: Sequence[Adapter],
    job: MergeJob,
    tasks: Sequence[Sequence[Encoded]],
    max_new_tokens: int,
    samples_per_call: int,
    progress: StageProgress | None,
) -> list[list[Encoded]]:
    """Let the teachers write what captions are missing."""
    tokens = []
    for k, (task, mix) in enumerate(zip(tasks, job.mixes, strict=True)):
        write = partial(with_captions, model, adapters, task, mix, max_new_tokens)
        tokens.append(with_smaller_calls(write, samples_per_call, "writing the teachers' captions"))
        if progress is not None:
            progress(CAPTION_STAGE, k + 1, len(tasks))
    return tokens
