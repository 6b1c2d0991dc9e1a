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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter
from ..config import MergeConfig
from ..devices import device_of
from ..errors import CalibrationError
from ..files.pretrained import (
    DeviceMap,
    generation_settings,
    load_adapter,
    load_model,
    load_tokenizer,
)
from ..network import Network
from ..progress import StageProgress, nobody
from ..report.records import Note
from ..tasks import Sample
from .job import DEFAULT, AdapterTask, Base, MergeJob, PeftMergeResult, Preserve
from .samples import Encoded, check_fits, mask_of, padded, until_end
from .teachers import Teachers
from .text_samples import (
    DECODER_STREAM,
    ENCODER_STREAM,
    TextOptions,
    TextSample,
    TokenRow,
    encode,
    token_samples,
)

TASK_TYPE = "SEQ_2_SEQ_LM"
KINDS = ("t5", "mt5", "bart")  # values of ``model_type``
_IN_ENCODER = re.compile(r"(.*\.)?encoder\..*")
_READS_ENCODER = re.compile(r".*\.((EncDecAttention\.[kv])|(encoder_attn\.[kv]_proj))")


def load_base(
    source: str,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    device_map: DeviceMap = "none",
) -> nn.Module:
    """Load a T5, FLAN-T5 or BART from a folder or by its name on the hub; see
    `pretrained.load_model`.
    """
    from transformers import AutoModelForSeq2SeqLM

    return load_model(AutoModelForSeq2SeqLM, KINDS, source, dtype, device, device_map)


def stream_of(path: str) -> str:
    """Return the stream of tokens that a layer reads: keys and values of cross-attention read the
    encoder's.
    """
    return (
        ENCODER_STREAM
        if _IN_ENCODER.fullmatch(path) or _READS_ENCODER.fullmatch(path)
        else DECODER_STREAM
    )


def in_encoder(path: str) -> bool:
    """Tell the encoder's module paths from the decoder's."""
    return _IN_ENCODER.fullmatch(path) is not None


def network_of(model: Any, *, decoder: bool = True, head: bool = False) -> Network:
    """Return an encoder-decoder as the engines see it.

    Its rows are `TokenRow`. Its outputs are the last hidden states or the logits, and 0 where a row
    has padding.

    Args:
        model: The model, as `load_base` returns it.
        decoder: Whether the decoder runs.
        head: Whether the layer runs, too, that makes words of the decoder's outputs.
    """

    def forward(rows: Sequence[TokenRow]) -> Tensor:
        inputs = {
            "input_ids": stacked([row.ids for row in rows]),
            "attention_mask": stacked([row.mask for row in rows]),
        }
        if not decoder:
            return (
                model.get_encoder()(**inputs).last_hidden_state
                * inputs["attention_mask"][..., None]
            )
        decoder_ids = stacked([row.decoder_ids for row in rows])
        counts = stacked([row.decoder_mask for row in rows])[..., None]
        if head:
            return model(**inputs, decoder_input_ids=decoder_ids, use_cache=False).logits * counts
        states = model.get_encoder()(**inputs).last_hidden_state
        answers = model.get_decoder()(
            input_ids=decoder_ids,
            encoder_hidden_states=states,
            encoder_attention_mask=inputs["attention_mask"],
            use_cache=False,
        )
        return answers.last_hidden_state * counts

    def stacked(rows: Sequence[Any]) -> Tensor:
        return torch.stack(list(rows)).to(device_of(model))

    return Network(dict(model.named_modules()), forward, stream_of)


def write(model: Any, samples: Sequence[Encoded], max_new_tokens: int = 32) -> list[Tensor]:
    """Return the token ids (length,) that the model answers to each sample, greedily.

    Args:
        model: The model, as `load_base` returns it.
        samples: Samples of one batch.
        max_new_tokens: Most tokens of an answer.
    """
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


def merge_t5(
    base: Base | str | nn.Module,
    adapters: Sequence[AdapterTask],
    config: MergeConfig | None = None,
    options: TextOptions | None = None,
    *,
    preserve: Preserve | None = None,
    progress: StageProgress = nobody,
) -> PeftMergeResult:
    """Merge PEFT adapters of one T5, FLAN-T5 or BART.

    Args:
        base: Folder, name on the hub, a loaded model, or a `Base` that says more about it. Its
            reader is a tokenizer; samples that are texts need it.
        adapters: Adapters to merge, at least one; their samples are `TextSample`.
        config: Settings of the merge; None: those of `job.DEFAULT`.
        options: Settings with which texts are read, and the modules to merge; None: the defaults.
        preserve: Samples on which the base model is kept as it is; None: there is no such task.
        progress: Listener for (stage, steps done, steps in all); may raise to cancel.

    Raises:
        IterisError: A base, adapter, sample or setting cannot be used, or an error of `merge`.
    """
    base = base if isinstance(base, Base) else Base(base)
    options = options or TextOptions()
    job = MergeJob(base, adapters, preserve or Preserve(), config or DEFAULT, progress)
    tokenizer = base.reader
    if tokenizer is None and any(sample.is_text for task in job.samples for sample in task):
        tokenizer = load_tokenizer(base.name)
    model = base.model
    if isinstance(model, str):
        model = load_base(model, base.dtype, base.device, base.device_map)
    worn, notes = _load_adapters(model, [task.folder for task in adapters], options)
    network, rows = prepare(job.teachers(model, worn), job.samples, options, tokenizer)
    return replace(job.run(network, worn, rows, options, notes), task_type=TASK_TYPE)


def prepare(
    teachers: Teachers,
    samples: Sequence[Sequence[TextSample]],
    options: TextOptions,
    tokenizer: Any = None,
) -> tuple[Network, list[list[Sample]]]:
    """Return the network to merge in, and the samples of each task as its rows.

    Args:
        teachers: The tasks' teachers, who answer samples without a target.
        samples: Samples of each task.
        options: Settings with which texts are read.
        tokenizer: Tokenizer of the base model; None if all samples are token ids.

    Raises:
        CalibrationError: A sample cannot be used.
    """
    model = teachers.model
    vocabulary = model.get_input_embeddings().num_embeddings
    encoded = [encode(task, tokenizer, options.max_length, vocabulary) for task in samples]
    paths = {path for adapter in teachers.adapters for path in adapter.deltas}
    runs_decoder = not all(map(in_encoder, paths))
    has_texts = any(sample.is_text for task in samples for sample in task)
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


def _check_lengths(model: Any, samples: Sequence[Encoded], fill_to: int | None) -> None:
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


def _load_adapters(
    model: nn.Module, folders: Sequence[Path], options: TextOptions
) -> tuple[list[Adapter], list[Note]]:
    """Return the part of the adapters that is merged, and a note about the omitted rest."""
    adapters = [load_adapter(model, Path(folder)) for folder in folders]
    if options.modules == "all":
        return adapters, []
    parts = [adapter.select(in_encoder) for adapter in adapters]
    left_out = sum(
        len(whole.deltas) - len(part.deltas) for whole, part in zip(adapters, parts, strict=True)
    )
    note = f"{left_out} deltas of the decoder are left out of the merge (modules='encoder')"
    return parts, [Note("left_out", note)] if left_out else []
