"""Calibration samples of captioning models: pictures and captions from files, as pixels and token
rows of one length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter
from ..errors import CalibrationError, ConfigError
from ..rows.wearing import wearing
from ..tasks import Sample
from .text_samples import padded, parse_line, read_lines, until_end

IMAGE_STREAM = "image"
TEXT_STREAM = "text"
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_EXAMPLE = '{"image": "a.png", "caption": "..."} ("caption" is optional)'


@dataclass(frozen=True)
class CaptionSample:
    """One picture of a task, and its caption.

    Args:
        image: A file, or pixels as the model reads them, (3, height, width).
        caption: A text, or the token ids (length,) that the decoder reads, from its start token on;
            None: what the task's own teacher writes.
        prompt: What a caption that is no token ids begins with, whoever writes it; that which the
            adapter was trained with.
    """

    image: Path | Tensor
    caption: str | Tensor | None = None
    prompt: str = ""

    @property
    def needs_processor(self) -> bool:
        """Whether something of it has to be turned into pixels or token ids."""
        return (
            not isinstance(self.image, Tensor) or isinstance(self.caption, str) or bool(self.prompt)
        )


@dataclass(frozen=True)
class CaptionRow:
    """What one row of a batch reads: pixels (3, height, width), token ids (length,), and which of
    them are no padding.
    """

    pixels: Tensor
    ids: Tensor
    mask: Tensor


@dataclass(frozen=True)
class CaptionOptions:
    """How captions are read.

    Args:
        count_padding: Fill captions up to `max_length`, unless all are token ids, and let the
            padding count in the statistics, as the published code does (with 168).
        max_length: Tokens of a caption with its prompt; what is longer is cut.
        max_new_tokens: Length of a caption that a teacher has to write, without the prompt.
    """

    count_padding: bool = False
    max_length: int = 64
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        for name, least in (("max_length", 3), ("max_new_tokens", 1)):  # start, one word, end
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be {least} or more")


@dataclass(frozen=True)
class Encoded:
    """A sample as pixels and token ids (length,).

    Args:
        pixels: (3, height, width).
        ids: That the decoder reads; None where the teacher is to write them.
        start: That it begins with where the teacher writes.
    """

    pixels: Tensor
    ids: Tensor | None
    start: Tensor


def read_images(path: Path) -> list[CaptionSample]:
    """Read samples: the pictures of a folder, or JSON lines ``{"image": ..., "caption": ...}``,
    paths relative to the file.

    Raises:
        CalibrationError: There are none, or a line is wrong; names it.
    """
    if path.is_dir():
        found = [
            CaptionSample(file)
            for file in sorted(path.iterdir())
            if file.suffix.lower() in _PICTURES
        ]
        if not found:
            raise CalibrationError(
                f"{path}: there are no pictures in this folder ({', '.join(_PICTURES)})"
            )
        return found
    if not path.is_file():
        raise CalibrationError(
            f"{path}: there is no such folder or file; give a folder of pictures, or lines "
            f"{_EXAMPLE}"
        )
    return [
        _of_json(path, f"{path}, line {number}", line)
        for number, line in read_lines(path, _EXAMPLE)
    ]


def _of_json(path: Path, place: str, line: str) -> CaptionSample:
    entry = parse_line(place, line, _EXAMPLE)
    if (
        not isinstance(entry, Mapping)
        or not isinstance(entry.get("image"), str)
        or not entry["image"].strip()
    ):
        raise CalibrationError(f'{place}: names no file as "image"; write {_EXAMPLE}')
    caption = entry.get("caption")
    if caption is not None and not (isinstance(caption, str) and caption.strip()):
        raise CalibrationError(
            f'{place}: "caption" is {caption!r:.60}, no text; write one, or leave it out'
        )
    return CaptionSample(path.parent / entry["image"], caption)


def encode_captions(
    tasks: Sequence[Sequence[CaptionSample]],
    processor: Any,
    model: nn.Module,
    options: CaptionOptions,
) -> list[list[Encoded]]:
    """Return all tasks' samples as pixels and token ids.

    Args:
        tasks: Per task its samples.
        processor: Of the model; None if nothing needs one.
        model: As `blip.load_base` returns it.
        options: How captions are read.

    Raises:
        CalibrationError: A picture that cannot be read, or pixels and ids that the model does not
            have.
        ConfigError: Captions may become longer than what the model's decoder reads.
    """
    tokens = [
        [_encoded(sample, processor, model, options.max_length) for sample in task]
        for task in tasks
    ]
    if options.count_padding and has_texts(tasks):
        check_length(model, options.max_length, "a caption filled up to max_length")
    written = [sample for task in tokens for sample in task if sample.ids is None]
    if written:
        longest = (
            max(len(sample.start) for sample in written) + options.max_new_tokens - 1
        )  # the last one is never read
        check_length(model, longest, "a caption with its prompt and max_new_tokens")
    return tokens


def has_texts(tasks: Sequence[Sequence[CaptionSample]]) -> bool:
    return not all(isinstance(sample.caption, Tensor) for task in tasks for sample in task)


def check_length(model: nn.Module, length: int, what: str) -> None:
    """Refuse what is longer than a BLIP's decoder can read.

    Args:
        model: The captioning model.
        length: In tokens.
        what: May become that long, for the error.

    Raises:
        ConfigError: It has fewer positions.
    """
    positions = model.config.text_config.max_position_embeddings
    if length > positions:
        raise ConfigError(
            f"{what} may have {length} tokens, but this model's decoder reads {positions}; set a "
            "smaller number"
        )


def _encoded(sample: CaptionSample, processor: Any, model: nn.Module, max_length: int) -> Encoded:
    pixels = sample.image if isinstance(sample.image, Tensor) else _pixels(sample.image, processor)
    side = model.config.vision_config.image_size
    settings = model.config.text_config
    if pixels.shape != (3, side, side):
        raise CalibrationError(
            f"a sample has pixels of shape {tuple(pixels.shape)}; this model reads (3, {side}, "
            f"{side})"
        )

    def tokens(text: str) -> Tensor:
        words = (
            processor.tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
            if text
            else [0, 0]
        )
        # as the model's own generate does: its start token for the tokenizer's, and no end token to
        # read
        return torch.tensor([settings.bos_token_id, *words[1:-1]])

    start = tokens(sample.prompt.strip())
    ids = sample.caption
    if isinstance(ids, Tensor) and sample.prompt:
        raise CalibrationError(
            f"a caption is token ids and has the prompt {sample.prompt!r}; put the prompt's ids "
            "into them"
        )
    if isinstance(ids, str):
        ids = tokens(f"{sample.prompt.strip()} {ids}".strip())
    if ids is not None and (
        ids.ndim != 1 or not ids.numel() or ids.min() < 0 or ids.max() >= settings.vocab_size
    ):
        raise CalibrationError(
            f"a caption has token ids of shape {tuple(ids.shape)}; the model reads 1 or more ids "
            f"below {settings.vocab_size}"
        )
    if ids is not None:
        check_length(model, len(ids), "a caption (max_length cuts those that are texts)")
    return Encoded(pixels, ids, start)


def _pixels(file: Path, processor: Any) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as picture:
            return processor.image_processor(picture.convert("RGB"), return_tensors="pt")[
                "pixel_values"
            ][0]
    except (OSError, UnidentifiedImageError) as error:
        raise CalibrationError(
            f"{file}: cannot be read as a picture ({error}); give a PNG or JPEG file"
        ) from error


def with_captions(
    model: nn.Module,
    adapters: Sequence[Adapter],
    samples: Sequence[Encoded],
    mix: Mapping[int, float],
    max_new_tokens: int,
    samples_per_call: int,
) -> list[Encoded]:
    """Fill in the captions that are missing: what base + mix writes behind their starts, greedily.

    Args:
        model: The base model.
        adapters: What the mix's indices mean.
        samples: Of one task.
        mix: What the task's teacher wears.
        max_new_tokens: Length of a caption without its start, at most.
        samples_per_call: Rows of one batch.
    """
    missing: dict[tuple[int, ...], list[int]] = {}
    for i, sample in enumerate(samples):
        if sample.ids is None:
            missing.setdefault(tuple(sample.start.tolist()), []).append(i)
    found = list(samples)
    end_id = model.config.text_config.sep_token_id
    options = {"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens}
    for start, indices in missing.items():
        for first in range(0, len(indices), samples_per_call):
            batch = indices[first : first + samples_per_call]
            pixels = torch.stack([samples[i].pixels for i in batch]).to(model.device, model.dtype)
            # generate takes the last id for the tokenizer's end token, and drops it
            ids = torch.tensor([*start, end_id], device=model.device).repeat(len(batch), 1)
            with (
                torch.no_grad(),
                wearing(dict(model.named_modules()), adapters, [mix] * len(batch)),
            ):
                written = model.generate(
                    pixel_values=pixels,
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    **options,
                )
            for i, row in zip(batch, written.cpu(), strict=True):
                found[i] = replace(
                    samples[i], ids=until_end(row, end_id)[:-1]
                )  # the last token is written, never read
    return found


def caption_rows(
    tasks: Sequence[Sequence[Encoded]], options: CaptionOptions, *, fill: bool = False
) -> list[list[Sample]]:
    """Return all tasks' samples as rows of one length; what fills captions up has no weight unless
    padding counts.

    Args:
        tasks: With the ids of every caption.
        options: How captions are read.
        fill: Fill them up to ``options.max_length``, not to the longest.

    Raises:
        CalibrationError: A caption is longer than that.
    """
    length = (
        options.max_length if fill else max(len(sample.ids) for task in tasks for sample in task)
    )
    rows = []
    for task in tasks:
        ids = padded([sample.ids for sample in task], length, 0)
        mask = padded([torch.ones_like(sample.ids) for sample in task], length, 0)
        weights = [
            {} if options.count_padding or row.all() else {TEXT_STREAM: row.float()} for row in mask
        ]
        rows.append(
            [
                Sample(CaptionRow(s.pixels, ids[i], mask[i]), token_weights=weights[i])
                for i, s in enumerate(task)
            ]
        )
    return rows
