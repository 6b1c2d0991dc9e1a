"""BLIP captioning models: PEFT adapters of the text decoder (and of the vision tower), merged on pictures and captions.

Captions are teacher-forced: teacher rows and student rows read the same tokens, those of the sample's caption, or of what
the task's own teacher writes about the picture.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter
from ..config import MergeConfig
from ..errors import CalibrationError
from ..memory import with_smaller_calls
from ..merge import MergeResult
from ..network import Network
from ..rows import wearing
from ..tasks import Sample
from .base_models import load_adapter, load_model, load_processor
from .merge_job import MergeJob, StageProgress, merge_job
from .text_samples import padded, until_end

CAPTION_STAGE = "Teachers' captions"
IMAGE_STREAM, TEXT_STREAM = "image", "text"
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_READS_IMAGE = re.compile(r"vision_model\..*|.*\.crossattention\.self\.(key|value)")


@dataclass(frozen=True)
class CaptionSample:
    """One picture of a task, and its caption.

    Args:
        image: A file, or pixels as the model reads them, (3, height, width).
        caption: A text, or the token ids (length,) that the decoder reads, from its start token on; None: what the task's own
            teacher writes.
    """

    image: Path | Tensor
    caption: str | Tensor | None = None


@dataclass(frozen=True)
class CaptionRow:
    """What one row of a batch reads: pixels (3, height, width), token ids (length,), and which of them are no padding."""

    pixels: Tensor
    ids: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Encoded:
    """A sample as pixels and the token ids that the decoder reads; None where the teacher is to write them."""

    pixels: Tensor
    ids: Tensor | None


def read_images(path: Path) -> list[CaptionSample]:
    """Read samples: the pictures of a folder, or JSON lines ``{"image": ..., "caption": ...}``, paths relative to the file.

    Raises:
        CalibrationError: There are none, or a line is wrong; names it.
    """
    if path.is_dir():
        found = [CaptionSample(file) for file in sorted(path.iterdir()) if file.suffix.lower() in _PICTURES]
        if not found:
            raise CalibrationError(f"{path}: there are no pictures in this folder ({', '.join(_PICTURES)})")
        return found
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path}: cannot be read ({error}); give a folder of pictures, or JSON lines") from error
    samples = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            samples.append(CaptionSample(path.parent / entry["image"], entry.get("caption") or None))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            example = '{"image": "a.png", "caption": "..."}'
            raise CalibrationError(f"{path}, sample {number}: is not like {example} ({error})") from error
    return samples


def load_base(source: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> nn.Module:
    """Load a BLIP captioning model from a folder or by its name on the hub; see `base_models.load_model`."""
    from transformers import BlipForConditionalGeneration

    return load_model(BlipForConditionalGeneration, ("blip",), source, dtype, device)


def stream_of(path: str) -> str:
    """Return whose tokens a layer reads: keys and values of cross-attention read the picture's."""
    return IMAGE_STREAM if _READS_IMAGE.fullmatch(path) else TEXT_STREAM


def network_of(model: nn.Module, *, head: bool = False) -> Network:
    """Return a BLIP captioning model as the engines see it; rows are `CaptionRow`, outputs the last hidden states or logits.

    Outputs are 0 where a caption has padding.

    Args:
        model: As `load_base` returns it.
        head: Whether to run the layers that make words of the decoder's outputs, too.
    """

    def forward(rows: Sequence[CaptionRow]) -> Tensor:
        pixels, ids, mask = (
            torch.stack([getattr(row, part) for row in rows]).to(model.device) for part in ("pixels", "ids", "mask")
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
    *,
    weights: Sequence[float] | None = None,
    preserve: Sequence[CaptionSample] = (),
    preserve_weight: float = 1.0,
    count_padding: bool = False,
    max_length: int = 64,
    max_new_tokens: int = 32,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    processor: Any = None,
    progress: StageProgress | None = None,
) -> MergeResult:
    """Merge PEFT adapters of one BLIP captioning model.

    Args:
        base: Folder or hub name, or a loaded model.
        adapter_folders: One or more.
        samples: Per adapter, its task's pictures and captions.
        config: How layers are solved; None: the defaults.
        weights: Per adapter, how much its task counts; None: all the same.
        preserve: Ordinary pictures, on which the base model is to be kept as it is; none: no such task.
        preserve_weight: How much that task counts.
        count_padding: Let the padding of captions count in the statistics, as the published code does.
        max_length: Tokens of a caption; what is longer is cut.
        max_new_tokens: Length of a caption that a teacher has to write.
        dtype: In which the base runs, if it is loaded here.
        device: Where the base runs, if it is loaded here.
        processor: Of a base that is loaded already; needed for pictures in files, and for captions that are texts.
        progress: Told about stages and steps; may raise to cancel.

    Raises:
        IterisError: An unusable base, adapter, sample or setting, or what `merge` raises.
    """
    config = config or MergeConfig()
    job = merge_job(base, adapter_folders, samples, weights, preserve, preserve_weight)
    flat = [part for task in job.samples for sample in task for part in (sample.image, sample.caption)]
    if processor is None and any(isinstance(part, (str, Path)) for part in flat):
        processor = load_processor(job.base)
    model = load_base(base, dtype, device) if isinstance(base, str) else base
    adapters = [load_adapter(model, folder) for folder in job.folders]
    tokens = _read_and_write(model, adapters, job, processor, (max_length, max_new_tokens), config.samples_per_chunk, progress)
    head = any(path.startswith("text_decoder.cls.") for adapter in adapters for path in adapter.deltas)
    options = {"count_padding": count_padding, "max_length": max_length, "max_new_tokens": max_new_tokens}
    return job.run(network_of(model, head=head), adapters, _rows(tokens, count_padding), config, options, progress=progress)


def _read_and_write(
    model: nn.Module,
    adapters: Sequence[Adapter],
    job: MergeJob,
    processor: Any,
    lengths: tuple[int, int],
    samples_per_call: int,
    progress: StageProgress | None,
) -> list[list[Encoded]]:
    """Encode all tasks' samples, and let teachers write what captions are missing; lengths of captions given and written."""
    tokens = []
    for k, (task, mix) in enumerate(zip(job.samples, job.mixes, strict=True)):
        read = [encoded(sample, processor, model, lengths[0]) for sample in task]
        write = partial(_with_captions, model, adapters, read, mix, lengths[1])
        tokens.append(with_smaller_calls(write, samples_per_call, "writing the teachers' captions"))
        if progress is not None:
            progress(CAPTION_STAGE, k + 1, len(job.samples))
    return tokens


def encoded(sample: CaptionSample, processor: Any, model: nn.Module, max_length: int) -> Encoded:
    """Return a sample as pixels and token ids, cut to a length.

    Raises:
        CalibrationError: A picture that cannot be read, or pixels and ids that the model does not have.
    """
    pixels, ids = sample.image, sample.caption
    if not isinstance(pixels, Tensor):
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(pixels) as picture:
                pixels = processor.image_processor(picture.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        except (OSError, UnidentifiedImageError) as error:
            raise CalibrationError(f"{pixels}: cannot be read as a picture ({error}); give a PNG or JPEG file") from error
    side = model.config.vision_config.image_size
    if pixels.shape != (3, side, side):
        raise CalibrationError(f"a sample has pixels of shape {tuple(pixels.shape)}; this model reads (3, {side}, {side})")
    if isinstance(ids, str):
        words = processor.tokenizer(ids, truncation=True, max_length=max_length)["input_ids"]
        # as the model's own generate does: its start token for the tokenizer's, and no end token to read
        ids = torch.tensor([model.config.text_config.bos_token_id, *words[1:-1]])
    if ids is not None and (
        ids.ndim != 1 or not ids.numel() or ids.min() < 0 or ids.max() >= model.config.text_config.vocab_size
    ):
        raise CalibrationError(
            f"a caption has token ids of shape {tuple(ids.shape)}; the model reads 1 or more ids below "
            f"{model.config.text_config.vocab_size}"
        )
    return Encoded(pixels, ids)


def _with_captions(
    model: nn.Module,
    adapters: Sequence[Adapter],
    samples: Sequence[Encoded],
    mix: Mapping[int, float],
    max_new_tokens: int,
    samples_per_call: int,
) -> list[Encoded]:
    """Fill in the captions that are missing: what base + mix writes, greedily."""
    missing = [sample.pixels for sample in samples if sample.ids is None]
    answers: list[Tensor] = []
    end_id = model.config.text_config.sep_token_id
    for start in range(0, len(missing), samples_per_call):
        pixels = torch.stack(missing[start : start + samples_per_call]).to(model.device, model.dtype)
        with torch.no_grad(), wearing(dict(model.named_modules()), adapters, [mix] * len(pixels)):
            written = model.generate(pixel_values=pixels, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens)
        answers.extend(until_end(row, end_id)[:-1] for row in written.cpu())  # the last token is written, never read
    left = iter(answers)
    return [replace(sample, ids=next(left)) if sample.ids is None else sample for sample in samples]


def _rows(tasks: Sequence[Sequence[Encoded]], count_padding: bool) -> list[list[Sample]]:
    """Return all tasks' samples as rows of one length; what fills captions up has no weight."""
    longest = max(len(sample.ids) for task in tasks for sample in task)
    rows = []
    for task in tasks:
        ids = padded([sample.ids for sample in task], longest, 0)
        mask = padded([torch.ones_like(sample.ids) for sample in task], longest, 0)
        weights = [{} if count_padding or row.all() else {TEXT_STREAM: row.float()} for row in mask]
        rows.append([Sample(CaptionRow(s.pixels, ids[i], mask[i]), token_weights=weights[i]) for i, s in enumerate(task)])
    return rows
