"""Merges of PEFT adapters of a T5, FLAN-T5 or BART, on texts.

The decoder is teacher-forced: teacher rows and student rows read the same decoder tokens, so that a
layer's inputs depend only on the layers before it. These tokens are the sample's target, or what
the task's own teacher answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..devices import device_of
from ..errors import CalibrationError
from ..network import Network
from ..tasks import Sample
from .job import LanguageFamily, merge_peft
from .loading import generation_settings, load_tokenizer
from .samples import EncodedSample, check_fits, mask_of, masked, padded, until_end
from .teachers import Teachers
from .text_samples import (
    DECODER_STREAM,
    ENCODER_STREAM,
    TextOptions,
    TextSample,
    TokenRow,
    encode,
    in_encoder,
    token_samples,
)

_READS_ENCODER = re.compile(r".*\.((EncDecAttention\.[kv])|(encoder_attn\.[kv]_proj))")


def stream_of(path: str) -> str:
    """Return the stream of tokens that a layer reads: keys and values of cross-attention read the
    encoder's.
    """
    return ENCODER_STREAM if in_encoder(path) or _READS_ENCODER.fullmatch(path) else DECODER_STREAM


def network_of(model: Any, *, decoder: bool = True, head: bool = False) -> Network:
    """Return an encoder-decoder as the engines see it.

    Its rows are `TokenRow`. Its outputs are the last hidden states or the logits, and 0 where a row
    has padding.

    Args:
        head: Whether the layer runs, too, that makes words of the decoder's outputs.
    """

    def forward(rows: Sequence[TokenRow]) -> Tensor:
        ids = stacked([row.ids for row in rows])
        mask = stacked([row.mask for row in rows])
        outputs: Tensor
        if not decoder:
            outputs = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
            return masked(outputs, mask)
        decoder_ids = stacked([row.decoder_ids for row in rows])
        if head:
            whole = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder_ids}
            outputs = model(**whole, use_cache=False).logits
        else:
            states = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
            read = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
            answers = model.get_decoder()(input_ids=decoder_ids, **read, use_cache=False)
            outputs = answers.last_hidden_state
        return masked(outputs, stacked([row.decoder_mask for row in rows]))

    def stacked(rows: Sequence[Any]) -> Tensor:
        return torch.stack(list(rows)).to(device_of(model))

    return Network(dict(model.named_modules()), forward, stream_of)


def write(model: Any, samples: Sequence[EncodedSample], max_new_tokens: int = 32) -> list[Tensor]:
    """Return the token ids (length,) that the model answers to each sample, greedily."""
    greedy = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1}
    settings = generation_settings(model, max_new_tokens=max_new_tokens, **greedy)
    texts = [sample.read for sample in samples]
    length = max(map(len, texts))
    written = model.generate(
        input_ids=padded(texts, length, model.config.pad_token_id).to(device_of(model)),
        attention_mask=mask_of(texts, length).to(device_of(model)),
        generation_config=settings,
    )
    end_id = model.generation_config.eos_token_id
    return [until_end(row, end_id) for row in written[:, 1:].cpu()]


def prepare(
    teachers: Teachers,
    samples: Sequence[Sequence[TextSample]],
    options: TextOptions,
    tokenizer: Any = None,
) -> tuple[Network, list[list[Sample]]]:
    """Return the network to merge in, and the samples of each task as its rows.

    Args:
        teachers: The tasks' teachers, who answer samples without a target.
        tokenizer: Tokenizer of the base model; None if all samples are token ids.

    Raises:
        CalibrationError: A sample cannot be used.
    """
    model = teachers.model
    vocabulary = model.get_input_embeddings().num_embeddings
    encoded = [encode(task, tokenizer, options.max_length, vocabulary) for task in samples]
    paths = {path for adapter in teachers.adapters for path in adapter.deltas}
    runs_decoder = not all(map(in_encoder, paths))
    has_texts = any(sample.needs_reader for task in samples for sample in task)
    fill_to = options.max_length if has_texts and options.padding == "count" else None
    _check_lengths(model, [sample for task in encoded for sample in task], fill_to)
    if runs_decoder:
        answer = partial(write, model, max_new_tokens=options.max_new_tokens)
        encoded = teachers.answered(encoded, answer)
    else:
        encoded = [[replace(sample, target=None) for sample in task] for task in encoded]
    rows = token_samples(
        encoded,
        model.config.pad_token_id,
        model.prepare_decoder_input_ids_from_labels,
        padding=options.padding,
        fill_to=fill_to,
    )
    return network_of(model, decoder=runs_decoder, head="lm_head" in paths), rows


def _check_lengths(model: Any, samples: Sequence[EncodedSample], fill_to: int | None) -> None:
    """Refuse samples that are too long, before teachers answer them."""
    if fill_to is not None:
        check_fits([sample.read for sample in samples], fill_to)
    # T5 has none: its positions are relative
    positions = getattr(model.config, "max_position_embeddings", None)
    texts = [ids for sample in samples for ids in (sample.read, sample.target) if ids is not None]
    longest = max([fill_to or 0, *map(len, texts)])
    if positions is not None and longest > positions:
        raise CalibrationError(
            f"a sample has {longest} tokens, but this model reads {positions}; set max_length to "
            f"{positions}"
        )


FAMILY = LanguageFamily(
    ("t5", "mt5", "bart"),
    "AutoModelForSeq2SeqLM",
    load_tokenizer,
    prepare,
    TextOptions(),
    task_type="SEQ_2_SEQ_LM",
)
load_base = FAMILY.load
merge_t5 = partial(merge_peft, FAMILY)
