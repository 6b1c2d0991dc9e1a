"""Merges of PEFT adapters of a T5, FLAN-T5 or BART, on texts.

The decoder is teacher-forced: teacher rows and student rows read the same decoder tokens, so that a
layer's inputs depend only on the layers before it. These tokens are the sample's target, or what
the task's own teacher answers.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..base_models import load_tokenizer
from ..devices import device_of
from ..network import Network
from ..settings import settings
from ..tasks import Sample
from .job import LanguageFamily, merge_peft
from .samples import (
    EncodedSample,
    Example,
    Padding,
    ReadingOptions,
    Row,
    check_ids,
    check_length,
    masked,
    padded,
    read_texts,
    row_sample,
    stacked,
    until_end,
)
from .teachers import Teachers

ENCODER_STREAM = "encoder"
DECODER_STREAM = "decoder"
_IGNORED_LABEL = -100
_IN_ENCODER = re.compile(r"(.*\.)?encoder\..*")
_READS_ENCODER = re.compile(r".*\.((EncDecAttention\.[kv])|(encoder_attn\.[kv]_proj))")


@settings
class TextOptions(ReadingOptions):
    """How texts are read, and which modules are merged."""

    modules: Annotated[
        Literal["all", "encoder"],
        Field(description="Modules that are merged; encoder leaves the decoder out."),
    ] = "all"

    def is_merged(self, path: str) -> bool:
        return self.modules == "all" or in_encoder(path)


def in_encoder(path: str) -> bool:
    """Tell the encoder's module paths from the decoder's."""
    return _IN_ENCODER.fullmatch(path) is not None


def stream_of(path: str) -> str:
    """Return the stream of tokens that a layer reads: keys and values of cross-attention read the
    encoder's.
    """
    return ENCODER_STREAM if in_encoder(path) or _READS_ENCODER.fullmatch(path) else DECODER_STREAM


def network_of(model: Any, *, decoder: bool = True, head: bool = False) -> Network:
    """Return an encoder-decoder as the engines see it.

    Its outputs are the last hidden states or the logits, and 0 where a row has padding.

    Args:
        head: Whether the layer runs, too, that makes words of the decoder's outputs.
    """

    def forward(rows: Sequence[Row]) -> Tensor:
        ids, mask = stacked(model, rows, "read"), stacked(model, rows, "mask")
        outputs: Tensor
        if not decoder:
            outputs = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
            return masked(outputs, mask)
        decoder_ids = stacked(model, rows, "decoder_ids")
        if head:
            whole = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder_ids}
            outputs = model(**whole, use_cache=False).logits
        else:
            states = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
            read = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
            answers = model.get_decoder()(input_ids=decoder_ids, **read, use_cache=False)
            outputs = answers.last_hidden_state
        return masked(outputs, stacked(model, rows, "decoder_mask"))

    return Network(dict(model.named_modules()), forward, stream_of)


def generation_settings(model: nn.Module, **changed: Any) -> Any:
    """Return a model's own settings of generation with some of them changed, for
    ``model.generate(generation_config=...)``.

    As arguments of `generate` they would be checked together with those that they replace, and
    refused where the two contradict each other.
    """
    settings = copy.deepcopy(model.generation_config)
    for name, value in changed.items():
        setattr(settings, name, value)
    return settings


def write(model: Any, samples: Sequence[EncodedSample], max_new_tokens: int = 32) -> list[Tensor]:
    """Return the token ids (length,) that the model answers to each sample, greedily."""
    greedy = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1}
    ids, mask = padded([sample.read for sample in samples], model.config.pad_token_id)
    written = model.generate(
        input_ids=ids.to(device_of(model)),
        attention_mask=mask.to(device_of(model)),
        generation_config=generation_settings(model, max_new_tokens=max_new_tokens, **greedy),
    )
    end_id = model.generation_config.eos_token_id
    return [until_end(row, end_id) for row in written[:, 1:].cpu()]


def prepare(
    teachers: Teachers,
    tasks: Sequence[Sequence[Example]],
    options: TextOptions,
    tokenizer: Any = None,
) -> tuple[Network, list[list[Sample]]]:
    """Return the network to merge in, and the examples of each task as its rows.

    Args:
        teachers: The tasks' teachers, who answer examples without a target.
        tokenizer: Tokenizer of the base model; None if all examples are token ids.

    Raises:
        CalibrationError, ConfigError: An example cannot be used.
    """
    model = teachers.model
    encoded = [[_encoded(example, tokenizer, model, options) for example in task] for task in tasks]
    has_texts = any(example.needs_reader for example in chain(*tasks))
    fill_to = options.max_length if has_texts and options.padding == "count" else None
    # before teachers answer; T5 has no such number: its positions are relative
    positions = getattr(model.config, "max_position_embeddings", None)
    texts = [ids for sample in chain(*encoded) for ids in (sample.read, sample.target)]
    longest = max(len(ids) for ids in texts if ids is not None)
    check_length(max(longest, fill_to or 0), positions, "a sample (max_length cuts texts)")
    padded([sample.read for sample in chain(*encoded)], 0, fill_to)
    paths = {path for adapter in teachers.adapters for path in adapter.deltas}
    runs_decoder = not all(map(in_encoder, paths))
    if runs_decoder:
        answer = partial(write, model, max_new_tokens=options.max_new_tokens)
        encoded = teachers.answered(encoded, answer)
    else:
        encoded = [[replace(sample, target=None) for sample in task] for task in encoded]
    shift_right = model.prepare_decoder_input_ids_from_labels
    rows = text_rows(encoded, model.config.pad_token_id, shift_right, options.padding, fill_to)
    return network_of(model, decoder=runs_decoder, head="lm_head" in paths), rows


def _encoded(
    example: Example, tokenizer: Any, model: Any, options: ReadingOptions
) -> EncodedSample:
    def tokens(text: Any, name: str) -> Tensor:
        ids: Tensor = text
        if isinstance(text, str):
            read = tokenizer(**{name: text}, truncation=True, max_length=options.max_length)
            ids = torch.tensor(read["input_ids"], dtype=torch.long)
        check_ids("a sample", ids, model.get_input_embeddings().num_embeddings)
        return ids

    target = None if example.target is None else tokens(example.target, "text_target")
    return EncodedSample(tokens(example.input, "text"), target)


def text_rows(
    tasks: Sequence[Sequence[EncodedSample]],
    pad_id: int,
    shift_right: Callable[[Tensor], Tensor],
    padding: Padding = "ignore",
    fill_to: int | None = None,
) -> list[list[Sample]]:
    """Return all tasks' samples as rows of one length.

    Args:
        tasks: Samples of each task; all have a target, or none (then the decoder does not run).
        pad_id: Token id that fills inputs up.
        shift_right: Labels (rows, length), -100 after their end -> decoder inputs (rows, length).
        fill_to: Length of the inputs; None: the longest one's.
    """
    samples = list(chain(*tasks))
    columns = list(padded([sample.read for sample in samples], pad_id, fill_to))
    targets = [sample.target for sample in samples if sample.target is not None]
    if targets:
        labels, mask = padded(targets, _IGNORED_LABEL)
        columns += [shift_right(labels), mask]
    streams = ENCODER_STREAM, DECODER_STREAM
    rows = (row_sample(Row(*row), streams, padding) for row in zip(*columns, strict=True))
    return [[next(rows) for _ in task] for task in tasks]


FAMILY = LanguageFamily(
    ("t5", "mt5", "bart"),
    "AutoModelForSeq2SeqLM",
    load_tokenizer,
    read_texts,
    prepare,
    TextOptions(),
    task_type="SEQ_2_SEQ_LM",
)
load_base = FAMILY.load
merge_t5 = partial(merge_peft, FAMILY)
