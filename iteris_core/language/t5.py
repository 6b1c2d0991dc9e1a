"""Merges of PEFT adapters of a T5, FLAN-T5 or BART, on texts.

The decoder is teacher-forced: teacher rows and student rows read the same decoder tokens, so that a
layer's inputs depend only on the layers before it. These tokens are the sample's target, or what
the task's own teacher answers.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..base_models import load_tokenizer
from ..devices import device_of
from ..network import Network
from ..tasks import Sample
from .job import LanguageFamily, merge_peft
from .samples import (
    EncodedSample,
    Example,
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

ENCODER_STREAM = "encoder"
DECODER_STREAM = "decoder"
_IGNORED_LABEL = -100
_READS_ENCODER = re.compile(
    r"(.*\.)?encoder\..*|.*\.((EncDecAttention\.[kv])|(encoder_attn\.[kv]_proj))"
)


def stream_of(path: str) -> str:
    """Return the stream of tokens that a layer reads: keys and values of cross-attention read the
    encoder's.
    """
    return ENCODER_STREAM if _READS_ENCODER.fullmatch(path) else DECODER_STREAM


def network_of(model: Any, *, head: bool = False) -> Network:
    """Return an encoder-decoder as the engines see it.

    Its outputs are the last hidden states or the logits, and 0 where a row has padding.

    Args:
        head: Whether the layer runs, too, that makes words of the decoder's outputs.
    """

    def forward(rows: Sequence[Row]) -> Tensor:
        parts = ("read", "mask", "decoder_ids", "decoder_mask")
        ids, mask, decoder_ids, decoder_mask = (stacked(model, rows, part) for part in parts)
        outputs: Tensor
        if head:
            whole = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder_ids}
            outputs = model(**whole, use_cache=False).logits
        else:
            states = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
            read = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
            answers = model.get_decoder()(input_ids=decoder_ids, **read, use_cache=False)
            outputs = answers.last_hidden_state
        return masked(outputs, decoder_mask)

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


def encoded(example: Example, tokenizer: Any, model: Any, options: ReadingOptions) -> EncodedSample:
    """Return a text and its answer as token ids.

    Args:
        tokenizer: Tokenizer of the model; None if both are token ids.

    Raises:
        CalibrationError: The model does not have these ids.
        ConfigError: A text is longer than what the model reads.
    """
    # T5 has no such number: its positions are relative
    positions = getattr(model.config, "max_position_embeddings", None)

    def tokens(text: Any, name: str) -> Tensor:
        ids: Tensor = text
        if isinstance(text, str):
            read = tokenizer(**{name: text}, truncation=True, max_length=options.max_length)
            ids = torch.tensor(read["input_ids"], dtype=torch.long)
        check_ids("a sample", ids, model.get_input_embeddings().num_embeddings)
        check_length(len(ids), positions, "a sample (max_length cuts texts)")
        return ids

    target = None if example.target is None else tokens(example.target, "text_target")
    return EncodedSample(tokens(example.input, "text"), target)


def text_rows(model: Any, tasks: Sequence[Sequence[EncodedSample]]) -> list[list[Sample]]:
    """Return all tasks' samples, each with a target, as rows of one length."""
    samples = list(chain(*tasks))
    targets = [sample.target for sample in samples if sample.target is not None]
    labels, decoder_mask = padded(targets, _IGNORED_LABEL)
    decoder_ids = model.prepare_decoder_input_ids_from_labels(labels)
    ids, mask = padded([sample.read for sample in samples], model.config.pad_token_id)
    rows = map(Row, ids, mask, decoder_ids, decoder_mask)
    streams = ENCODER_STREAM, DECODER_STREAM
    return [[row_sample(next(rows), streams) for _ in task] for task in tasks]


FAMILY = LanguageFamily(
    ("t5", "mt5", "bart"),
    "AutoModelForSeq2SeqLM",
    load_tokenizer,
    read_texts,
    encoded,
    write,
    network_of,
    text_rows,
    head="lm_head",
    options=ReadingOptions(),
    task_type="SEQ_2_SEQ_LM",
)
load_base = FAMILY.load
merge_t5 = partial(merge_peft, FAMILY)
