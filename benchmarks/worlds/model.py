"""What all worlds share: a denoiser of `diffusers` and a CLIP text model, trained together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
from torch import Tensor, nn
from typing_extensions import Self

CHANNELS = 27  # latents are (27, 8, 8)
CELLS = 8


@dataclass(frozen=True)
class WorldModel(ABC):
    """A model of pictures and captions."""

    denoiser: Any
    text_encoder: Any
    tokenizer: Any
    part: ClassVar[str]  # the denoiser's name in pipelines
    denoiser_class: ClassVar[str]
    pipeline_class: ClassVar[str]
    lora_names: ClassVar[Mapping[str, Sequence[str]]]  # kind of layer -> names
    text_lora_names: ClassVar[Sequence[str]] = ()

    @classmethod
    @abstractmethod
    def new(cls, tokenizer: Any, **sizes: Any) -> Self:
        """Return an untrained model."""

    @abstractmethod
    def loss(self, clean: Tensor, tokens: Tensor, chance: torch.Generator) -> Tensor:
        """Return the loss of clean latents at random noise levels."""

    @abstractmethod
    def product(self) -> Any:
        """Return the model as `iteris_core` sees it."""

    @property
    def text_encoders(self) -> Mapping[str, Any]:
        """Text encoders by the names of their fields, which pipelines and folders use, too."""
        return {"text_encoder": self.text_encoder}

    @property
    def parts(self) -> nn.ModuleDict:
        """What is trained."""
        return nn.ModuleDict({self.part: self.denoiser, **self.text_encoders})

    def tokens(self, captions: list[str]) -> Tensor:
        """Return token ids (captions, length)."""
        return self.tokenizer(
            captions, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids

    def save(self, folder: Path) -> None:
        for name, part in self.parts.items():
            part.save_pretrained(folder / name)
        self.tokenizer.save_pretrained(folder / "tokenizer")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return a trained model from its folder."""
        from transformers import PreTrainedTokenizerFast

        model = cls(
            getattr(diffusers, cls.denoiser_class).from_pretrained(folder / cls.part),
            tokenizer=PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
            **cls.load_text(folder),
        )
        model.parts.requires_grad_(False).eval()
        return model

    @classmethod
    def load_text(cls, folder: Path) -> dict[str, Any]:
        """Return the text encoders by the names of their fields."""
        from transformers import CLIPTextModel

        return {"text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder")}

    def lora_layers(self, kinds: Sequence[str], *, text: bool) -> dict[str, list[str]]:
        """Return part -> names of its layers of these kinds."""
        denoiser = [name for kind in kinds for name in self.lora_names[kind]]
        return {
            name: denoiser if name == self.part else [*self.text_lora_names]
            for name in self.parts
            if text or name == self.part
        }

    def save_loras(self, folder: Path, name: str) -> None:
        """Save the LoRAs that PEFT has put into the parts."""
        from peft.utils import get_peft_model_state_dict

        worn = {
            f"{part}_lora_layers": get_peft_model_state_dict(module)
            for part, module in self.parts.items()
            if hasattr(module, "peft_config")
        }
        pipeline = getattr(diffusers, self.pipeline_class)
        pipeline.save_lora_weights(folder, **worn, weight_name=name)


def new_text_encoder(tokenizer: Any, *, layers: int = 2, projected: bool = False) -> Any:
    """Return an untrained CLIP text model of width 64.

    Args:
        tokenizer: Its tokenizer.
        layers: Its depth.
        projected: It is `CLIPTextModelWithProjection`.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            hidden_act="quick_gelu",
            projection_dim=64,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_tokenizer(core: Any, *, length: int, pad: str) -> Any:
    """Return a tokenizer of `transformers` with ``<start>`` and ``<end>``, padded to a length."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    ends = [(name, core.token_to_id(name)) for name in ("<start>", "<end>")]
    core.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=length,
        bos_token="<start>",
        eos_token="<end>",
        pad_token=pad,
        unk_token="<unknown>",
    )
