"""A CLIP as the text encoders of the core's `DiffusionHost`."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...iteris_core import CalibrationError, Network
from ...iteris_core.adapters import sha256_of_tensors
from ...iteris_core.diffusion.model import Encoded
from ...iteris_core.files.groups import split_key
from ...iteris_core.network import TEXT_STREAM
from ..keys import HostKeys, is_text
from .server import heed_cancel

# Bases of keys for a T5, and for a text encoder that is a language model.
_OF_LANGUAGE_MODEL = re.compile(
    r"(?:en|de)coder[._]block[._]\d+[._]layer[._]\d|"
    r"^(?:lora_te\d?_|text_encoders?(?:_\d)?\.)(?:\w+\.transformer\.)?(?:model[._])?"
    r"layers[._]\d+[._](?:self_attn|mlp)"
)
# What an encoder writes for one piece: its hidden states (77, width), and its pooled output.
Written = tuple[Tensor, Tensor | None]


class TextEncoders:
    """The text encoders of a CLIP. Those that can be merged read rows of 77 tokens; all others
    encode caption by caption, as the host does, and what they wrote is remembered.

    Args:
        clip: CLIP; never changed.
        swept: Names, among its tokens, of the text encoders that can be merged.
        memory_required: Bytes that the merge of the text encoders takes besides their weights.
    """

    def __init__(self, clip: Any, swept: Sequence[str], memory_required: float = 0.0) -> None:
        self.clip = clip
        self.memory_required = memory_required
        of_tokens = {name: _part(clip.cond_stage_model, name) for name in clip.tokenize("")}
        self.encoders = {
            name: encoder for name, encoder in of_tokens.items() if encoder is not None
        }
        self.swept = [name for name in swept if name in self.encoders]
        # what text encoders that cannot be merged wrote, and all prompts where none can
        self._written: dict[str, dict[Any, Any]] = {name: {} for name in self.encoders}
        self._encoded: dict[str, Encoded] = {}

    def is_swept(self, path: str) -> bool:
        """Whether a module of the CLIP is in a text encoder that can be merged."""
        return any(path.startswith(f"clip_{name}.") for name in self.swept)

    def leaves_out(self, key: str, keys: HostKeys) -> bool:
        """Whether a LoRA's key changes a text encoder that is never merged: one of this CLIP, or a
        T5 or language model that it does not have.
        """
        base, role = split_key(key) or ("", "")
        if not role:
            return False
        place = keys.place_of(base)
        if place is None:
            return _OF_LANGUAGE_MODEL.search(base) is not None
        return is_text(place.path) and not self.is_swept(place.path)

    def tokenize(self, caption: str) -> list[Mapping[str, Any]]:
        """Return a caption's pieces: each the tokens of every text encoder that can be merged.

        Raises:
            CalibrationError: The text encoders cut it into different numbers of pieces.
        """
        tokens = self._tokens(caption)
        counts = {name: len(tokens[name]) for name in self.swept}
        if len(set(counts.values())) > 1:
            pieces = ", ".join(f"{count} for {name}" for name, count in counts.items())
            raise CalibrationError(
                f"the prompt {caption[:40]!r}... has {pieces} pieces of 75 tokens, and the text "
                "encoders must read the same ones. It probably names an embedding that one of them "
                "does not have; write the prompt without it"
            )
        rows = zip(*(tokens[name] for name in self.swept), strict=True)
        return [dict(zip(self.swept, row, strict=True)) for row in rows]

    def _tokens(self, caption: str) -> dict[str, list[list[tuple[Any, float]]]]:
        """Return all tokens without emphasis, which would add rows to the batch."""
        return {
            name: [[(token, 1.0) for token, *_ in piece] for piece in pieces]
            for name, pieces in self.clip.tokenize(caption).items()
        }

    def length(self, caption: str) -> Hashable:
        """Return how many tokens each text encoder reads of a caption."""
        return tuple((name, *map(len, pieces)) for name, pieces in self._tokens(caption).items())

    def token_positions(self, text: str) -> list[int]:
        """Return the positions of the tokens of a text's words, without start, end and padding."""
        pieces = self.clip.tokenize(text, return_word_ids=True)[self.swept[0]]
        words = [word for piece in pieces for _, _, word in piece]
        return [position for position, word in enumerate(words) if word]

    @contextmanager
    def open(self) -> Iterator[Network]:
        """Open the text encoders that can be merged; a row's output is name -> `Written`."""
        clip = self.clip
        clip.cond_stage_model.reset_clip_options()
        if clip.layer_idx is not None:
            clip.cond_stage_model.set_clip_options({"layer": clip.layer_idx})
        comfy.model_management.load_models_gpu([clip.patcher], memory_required=self.memory_required)
        clip.cond_stage_model.set_clip_options({"execution_device": clip.patcher.load_device})
        yield Network(
            dict(clip.cond_stage_model.named_modules()), self._write, lambda path: TEXT_STREAM
        )

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Written]]:
        heed_cancel()
        device = comfy.model_management.intermediate_device()
        written: list[dict[str, Written]] = [{} for _ in rows]
        for name in self.swept:
            pieces = [[token for token, _ in row[name]] for row in rows]
            hidden, pooled = self.encoders[name].encode(pieces)[:2]
            for i, of_row in enumerate(written):
                of_pooled = None if pooled is None else pooled[i].to(device)
                of_row[name] = (hidden[i].to(device), of_pooled)
        return written

    def encoded(self, caption: str, outputs: Sequence[Mapping[str, Written]]) -> Encoded:
        """Return a caption as the host's text encoders together write it.

        Args:
            outputs: What `open` returned for its pieces.
        """
        if caption in self._encoded:
            return self._encoded[caption]
        heed_cancel()
        with ExitStack() as answering:
            for name, encoder in self.encoders.items():
                if name in self.swept:
                    known = _joined([output[name] for output in outputs])
                    answering.enter_context(_with(encoder, "encode", lambda _, known=known: known))
                elif hasattr(encoder, "encode"):
                    remembered = _remembering(encoder.encode, self._written[name])
                    answering.enter_context(_with(encoder, "encode", remembered))
            made = self.clip.encode_from_tokens(self._tokens(caption), return_dict=True)
        encoded = Encoded(made.pop("cond")[0], made)
        if not self.swept:
            self._encoded[caption] = encoded
        return encoded


def _part(whole: Any, name: str) -> Any:
    """Return the text encoder or the tokenizer of the tokens of this name; None: there is none."""
    return getattr(whole, f"clip_{name}", None) or getattr(whole, name, None)


@contextmanager
def _with(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Let an object use a function in the place of its class's, or of its own, which others set."""
    own = {name: vars(owner)[name]} if name in vars(owner) else {}
    setattr(owner, name, function)
    try:
        yield
    finally:
        delattr(owner, name)
        vars(owner).update(own)


def _joined(rows: Sequence[Written]) -> Written:
    """Return what a text encoder would have returned for these rows in one call."""
    hidden = torch.stack([row for row, _ in rows])
    pooled = [row for _, row in rows if row is not None]
    return hidden, torch.stack(pooled) if pooled else None


def _token_key(token: Any) -> Any:
    """Return what tells a token from others; embeddings are tensors."""
    return sha256_of_tensors({"": token}) if isinstance(token, Tensor) else repr(token)


def _remembering(encode: Any, written: dict[Any, Any]) -> Any:
    """Return a text encoder's `encode`, made to read every text only once."""

    device = comfy.model_management.intermediate_device()

    def remembered(pieces: Sequence[Sequence[Any]]) -> Any:
        key = tuple(_token_key(token) for piece in pieces for token in [*piece, None])
        if key not in written:
            hidden, pooled, *more = encode(pieces)
            pooled = None if pooled is None else pooled.to(device)
            written[key] = (hidden.to(device), pooled, *more)
        return written[key]

    return remembered
