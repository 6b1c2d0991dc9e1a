"""T5 and FLAN-T5 (and BART): PEFT adapters of an encoder-decoder, merged on texts.

The decoder is teacher-forced: teacher rows and student rows read the same decoder tokens, so that a
layer's inputs depend only on the layers before it. They are the sample's target, or what the task's
own teacher generates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter
from ..config import MergeConfig
from ..devices import with_smaller_calls
from ..errors import CalibrationError
from ..files.pretrained import generation_settings, load_adapter, load_model, load_tokenizer
from ..network import Network
from ..report.records import Note
from ..rows.wearing import wearing
from ..tasks import Sample
from .job import PRESERVE_WEIGHT, PeftMergeResult, StageProgress, merge_job
from .text_samples import (
    DECODER_STREAM,
    ENCODER_STREAM,
    Encoded,
    TextOptions,
    TextSample,
    TokenRow,
    check_fits,
    encode,
    padded,
    token_samples,
    until_end,
)

TEACHER_STAGE = "Teachers' answers"
TASK_TYPE = "SEQ_2_SEQ_LM"
_KINDS = ("t5", "mt5", "bart")
_IN_ENCODER = re.compile(r"(.*\.)?encoder\..*")
_READS_ENCODER = re.compile(r".*\.((EncDecAttention\.[kv])|(encoder_attn\.[kv]_proj))")


def load_base(source: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> nn.Module:
    """Load a T5, FLAN-T5 or BART from a folder or by its name on the hub; see
    `base_models.load_model`.
    """
    from transformers import AutoModelForSeq2SeqLM

    return load_model(AutoModelForSeq2SeqLM, _KINDS, source, dtype, device)


def stream_of(path: str) -> str:
    """Return whose tokens a layer reads: keys and values of cross-attention read the encoder's."""
    return (
        ENCODER_STREAM
        if _IN_ENCODER.fullmatch(path) or _READS_ENCODER.fullmatch(path)
        else DECODER_STREAM
    )


def in_encoder(path: str) -> bool:
    """Tell the encoder's module paths from the decoder's."""
    return _IN_ENCODER.fullmatch(path) is not None


def network_of(model: nn.Module, *, decoder: bool = True, head: bool = False) -> Network:
    """Return an encoder-decoder as the engines see it; rows are `TokenRow`, outputs the last hidden
    states or logits.

    Outputs are 0 where a row has padding.

    Args:
        model: As `load_base` returns it.
        decoder: Whether to run the decoder.
        head: Whether to run the layer that makes words of the decoder's outputs, too.
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

    def stacked(rows: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(rows)).to(model.device)

    return Network(dict(model.named_modules()), forward, stream_of)


def with_targets(
    model: nn.Module,
    adapters: Sequence[Adapter],
    samples: Sequence[Encoded],
    mix: Mapping[int, float],
    *,
    max_new_tokens: int = 32,
    samples_per_call: int = 8,
) -> list[Encoded]:
    """Fill in the targets that are missing: what base + mix answers, greedily.

    Args:
        model: The base model.
        adapters: What the mix's indices mean.
        samples: Of one task.
        mix: What the task's teacher wears.
        max_new_tokens: Length of an answer, at most.
        samples_per_call: Rows of one batch.
    """
    missing = [sample for sample in samples if sample.target is None]
    greedy = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1}
    settings = generation_settings(model, max_new_tokens=max_new_tokens, **greedy)
    answers: list[Tensor] = []
    for start in range(0, len(missing), samples_per_call):
        batch = [sample.ids for sample in missing[start : start + samples_per_call]]
        length = max(map(len, batch))
        pad_id = model.config.pad_token_id
        inputs = padded(batch, length, pad_id).to(model.device)
        mask = padded([torch.ones_like(ids) for ids in batch], length, 0).to(model.device)
        with torch.no_grad(), wearing(dict(model.named_modules()), adapters, [mix] * len(batch)):
            written = model.generate(
                input_ids=inputs, attention_mask=mask, generation_config=settings
            )
        answers.extend(
            until_end(row, model.generation_config.eos_token_id) for row in written[:, 1:].cpu()
        )
    left = iter(answers)
    return [
        replace(sample, target=next(left)) if sample.target is None else sample
        for sample in samples
    ]


def merge_t5(
    base: str | nn.Module,
    adapter_folders: Sequence[Path],
    samples: Sequence[Sequence[TextSample]],
    config: MergeConfig | None = None,
    options: TextOptions | None = None,
    *,
    weights: Sequence[float] | None = None,
    preserve: Sequence[TextSample] = (),
    preserve_weight: float = PRESERVE_WEIGHT,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    tokenizer: Any = None,
    progress: StageProgress | None = None,
) -> PeftMergeResult:
    """Merge PEFT adapters of one T5, FLAN-T5 or BART.

    Args:
        base: Folder or hub name, or a loaded model.
        adapter_folders: One or more.
        samples: Per adapter, what its task reads.
        config: How layers are solved; None: the defaults.
        options: How texts are read, and which modules are merged; None: the defaults.
        weights: Per adapter, how much its task counts; None: all the same.
        preserve: Ordinary inputs, on which the base model is to be kept as it is; none: no such
            task.
        preserve_weight: How much that task counts.
        dtype: In which the base runs, if it is loaded here.
        device: Where the base runs, if it is loaded here.
        tokenizer: Of a base that is loaded already; needed for samples that are texts.
        progress: Told about stages and steps; may raise to cancel.

    Raises:
        IterisError: An unusable base, adapter, sample or setting, or what `merge` raises.
    """
    config = config or MergeConfig()
    options = options or TextOptions()
    job = merge_job(base, adapter_folders, samples, weights, preserve, preserve_weight, TASK_TYPE)
    if tokenizer is None and any(sample.is_text for task in job.samples for sample in task):
        tokenizer = load_tokenizer(job.base)
    model = load_base(base, dtype, device) if isinstance(base, str) else base
    adapters, notes = _load_adapters(model, job.folders, options)
    network, rows = prepare(
        model,
        adapters,
        job.samples,
        options,
        tokenizer,
        config.samples_per_chunk,
        progress,
        mixes=job.mixes,
    )
    return job.run(network, adapters, rows, config, asdict(options), notes, progress)


def prepare(
    model: nn.Module,
    adapters: Sequence[Adapter],
    samples: Sequence[Sequence[TextSample]],
    options: TextOptions,
    tokenizer: Any = None,
    samples_per_call: int = 8,
    progress: StageProgress | None = None,
    *,
    mixes: Sequence[Mapping[int, float]] | None = None,
) -> tuple[Network, list[list[Sample]]]:
    """Return the network to merge in, and the samples of each task as its rows.

    Args: See `merge_t5`; `mixes`: per task, what its teacher wears; None: one task per adapter.
    """
    mixes = [{k: 1.0} for k in range(len(samples))] if mixes is None else mixes
    vocabulary = model.get_input_embeddings().num_embeddings
    encoded = [encode(task, tokenizer, options.max_length, vocabulary) for task in samples]
    paths = {path for adapter in adapters for path in adapter.deltas}
    decoder = not all(map(in_encoder, paths))
    texts = any(sample.is_text for task in samples for sample in task)
    fill_to = options.max_length if texts and options.padding == "count" else None
    _check_lengths(model, [sample for task in encoded for sample in task], fill_to)
    if decoder:
        encoded = _answered(
            model, adapters, mixes, encoded, options.max_new_tokens, samples_per_call, progress
        )
    else:
        encoded = [[replace(sample, target=None) for sample in task] for task in encoded]
    shift = model.prepare_decoder_input_ids_from_labels
    rows = token_samples(
        encoded, model.config.pad_token_id, shift, padding=options.padding, fill_to=fill_to
    )
    return network_of(model, decoder=decoder, head="lm_head" in paths), rows


def _check_lengths(model: nn.Module, samples: Sequence[Encoded], fill_to: int | None) -> None:
    """Refuse samples that are too long, before teachers answer them."""
    if fill_to is not None:
        check_fits([sample.ids for sample in samples], fill_to)
    positions = getattr(
        model.config, "max_position_embeddings", None
    )  # T5 has none: its positions are relative
    longest = max(
        [fill_to or 0, *(len(ids) for s in samples for ids in (s.ids, s.target) if ids is not None)]
    )
    if positions is not None and longest > positions:
        raise CalibrationError(
            f"a sample has {longest} tokens, but this model reads {positions}; set max_length to "
            f"{positions}"
        )


def _load_adapters(
    model: nn.Module, folders: Sequence[Path], options: TextOptions
) -> tuple[list[Adapter], list[Note]]:
    adapters = [load_adapter(model, Path(folder)) for folder in folders]
    if options.modules == "all":
        return adapters, []
    parts = [adapter.select(in_encoder) for adapter in adapters]
    left = sum(
        len(whole.deltas) - len(part.deltas) for whole, part in zip(adapters, parts, strict=True)
    )
    note = f"{left} deltas of the decoder are left out of the merge (modules='encoder')"
    return parts, [Note("left_out", note)] if left else []


def _answered(
    model: nn.Module,
    adapters: Sequence[Adapter],
    mixes: Sequence[Mapping[int, float]],
    tasks: Sequence[Sequence[Encoded]],
    max_new_tokens: int,
    size: int,
    progress: StageProgress | None,
) -> list[list[Encoded]]:
    answered = []
    for k, task in enumerate(tasks):

        def write(
            size: int, mix: Mapping[int, float] = mixes[k], task: Sequence[Encoded] = task
        ) -> list[Encoded]:
            return with_targets(
                model, adapters, task, mix, max_new_tokens=max_new_tokens, samples_per_call=size
            )

        answered.append(with_smaller_calls(write, size, "writing the teachers' answers"))
        if progress is not None:
            progress(TEACHER_STAGE, k + 1, len(tasks))
    return answered
