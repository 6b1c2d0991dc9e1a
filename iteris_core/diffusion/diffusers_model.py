"""A Stable Diffusion or SDXL model of `diffusers` as the core's `DiffusionHost`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..devices import device_of
from ..errors import ConfigError
from ..files.diffusers import TEXT_ENCODERS, UNET_PREFIX, ldm_names, model_keys
from ..files.families import FAMILIES, Family
from ..files.model_keys import ModelKeys
from ..network import TEXT_STREAM, Network
from .model import UNET_TEXT_LAYERS, DenoiserRow, Encoded, stream_of

_PREDICTIONS = ("epsilon", "v_prediction", "sample")
# At the noisy end of zero-terminal-SNR schedules, as diffusers' Euler scheduler has it.
_SMALLEST_ALPHA = 2.0**-24
# Settings of UNets -> what they read besides latents and text.
_OTHER_INPUTS = {
    "addition_embed_type": "picture sizes and pooled texts",
    "class_embed_type": "class labels",
    "num_class_embeds": "class labels",
    "encoder_hid_dim_type": "picture embeddings",
}
_POOLED = "pooled_output"  # of a prompt, among what the UNet of SDXL reads besides the tokens
_DEPTH = 2  # resnets of each block of SDXL's UNet; models that were cut down have fewer


class DiffusersModel:
    """A `diffusers` model as the core's `DiffusionHost`; its modules are run, never changed.

    With one text encoder it is Stable Diffusion 1.5, with two it is SDXL. As in ComfyUI, an empty
    prompt is one that the text encoders read. diffusers' pipeline of SDXL puts zeros in the place
    of a negative prompt that is not given (``force_zeros_for_empty_prompt``), but encodes one that
    is given as "". Most pictures are drawn with a prompt that was encoded, and trainers encode the
    empty captions, which teach LoRAs to do without a prompt.

    Args:
        unet: `UNet2DConditionModel`; any number of channels and width of contexts.
        text_encoder: `CLIPTextModel`. The contexts are its last hidden states; of SDXL, the last
            but one of both text encoders.
        tokenizer: Tokenizer of `transformers`, or one with the same interface.
        scheduler: Scheduler with the noise levels (``alphas_cumprod``) and the meaning of the
            UNet's output (``prediction_type``).
        text_encoder_2: `CLIPTextModelWithProjection` of SDXL, whose projected output is pooled.
        tokenizer_2: Its tokenizer, used only for the padding token. The words are those of
            the first, as in ComfyUI: in diffusers, a "!" of a prompt is a padding token here.
        vae_scale_factor: Pixels of a picture per latent, in each direction.

    Raises:
        ConfigError: Another kind of model, or parts that do not fit together.
    """

    has_text_layers = True
    picture_tokens = None
    loader = None  # a merge here is not followed by diffusers' own loader

    def __init__(
        self,
        unet: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Any,
        *,
        text_encoder_2: Any = None,
        tokenizer_2: Any = None,
        vae_scale_factor: int = 8,
    ):
        self.unet_model = unet
        self.text_models = [model for model in (text_encoder, text_encoder_2) if model is not None]
        self.tokenizer = tokenizer
        tokenizers = [read for read in (tokenizer, tokenizer_2) if read is not None]
        _check_texts(self.text_models, tokenizers)
        self.fills: list[int] = [read.pad_token_id for read in tokenizers]
        _check_unet(unet, self.family)
        _check_scheduler(scheduler)
        self.prediction_type: str = scheduler.config.prediction_type
        self.vae_scale_factor = vae_scale_factor
        alphas = (
            scheduler.alphas_cumprod.detach().to("cpu", torch.float64).clamp_min(_SMALLEST_ALPHA)
        )
        self.training_sigmas = ((1 - alphas) / alphas).sqrt()  # (training timesteps,), rising

    @classmethod
    def of(cls, pipeline: Any, vae_scale_factor: int = 8) -> DiffusersModel:
        """Return the model of a `StableDiffusionPipeline` or `StableDiffusionXLPipeline`.

        Raises:
            ConfigError: See the class.
        """
        return cls(
            pipeline.unet,
            pipeline.text_encoder,
            pipeline.tokenizer,
            pipeline.scheduler,
            text_encoder_2=getattr(pipeline, "text_encoder_2", None),
            tokenizer_2=getattr(pipeline, "tokenizer_2", None),
            vae_scale_factor=vae_scale_factor,
        )

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Module path -> module, as adapters name them; all parts."""
        text = {
            _text_path(part, path): module
            for part, model in zip(TEXT_ENCODERS, self.text_models, strict=False)
            for path, module in model.named_modules()
            if path
        }
        return text | {
            UNET_PREFIX + path: module for path, module in self.unet_model.named_modules() if path
        }

    @cached_property
    def keys(self) -> ModelKeys:
        """Names of the modules in files."""
        return model_keys(self.modules, self.family, self.prediction_type)

    def own_path(self, path: str) -> str:
        """Return a module's path as ComfyUI has it: in the UNet, the original code's path."""
        if self.is_text_module(path):
            return path
        name = path.removeprefix(UNET_PREFIX)
        return f"diffusion_model.{self._original_names.get(name, name)}"

    @cached_property
    def _original_names(self) -> dict[str, str]:
        return ldm_names(path for path, _ in self.unet_model.named_modules())

    @property
    def family(self) -> Family:
        return FAMILIES["SD1.5" if len(self.text_models) == 1 else "SDXL"]

    def is_text_module(self, path: str) -> bool:
        return not path.startswith(UNET_PREFIX)

    @property
    def piece_length(self) -> int:
        """Tokens that the text encoders read at once, start and end included."""
        lengths: list[int] = [model.config.max_position_embeddings for model in self.text_models]
        lengths.append(self.tokenizer.model_max_length)
        return min(lengths)

    def tokenize(self, caption: str) -> list[Tensor]:
        """Return a caption's token ids (text encoders, length), in as many pieces of one length as
        it needs, each with start and end.
        """
        length = self.piece_length
        return [
            torch.tensor([piece + [fill] * (length - len(piece)) for fill in self.fills])
            for piece in self._pieces(caption)
        ]

    def _pieces(self, caption: str) -> list[list[int]]:
        """Return the token ids of each piece, without padding."""
        length = self.piece_length
        whole = self.tokenizer(caption)["input_ids"]
        if len(whole) <= length:
            return [whole]
        ids = self.tokenizer(caption, add_special_tokens=False)["input_ids"]
        pieces = [ids[i : i + length - 2] for i in range(0, len(ids), length - 2)]
        start = self.tokenizer.bos_token_id
        return [[start, *piece, self.tokenizer.eos_token_id] for piece in pieces]

    def token_positions(self, text: str) -> list[int]:
        """Return the positions of the tokens of a text's words in its context, without start, end
        and padding.
        """
        length = self.piece_length
        read = self.tokenizer(
            text,
            padding="max_length",
            max_length=length,
            truncation=False,
            return_special_tokens_mask=True,
        )
        if len(read["input_ids"]) <= length:
            return [
                position
                for position, special in enumerate(read["special_tokens_mask"])
                if not special
            ]
        words = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return [i // (length - 2) * length + 1 + i % (length - 2) for i in range(words)]

    @contextmanager
    def text_encoder(self) -> Iterator[Network]:
        """Open the text encoders; rows are token ids (text encoders, length), its forward returns
        what they write for each.
        """
        with _evaluating(*self.text_models):
            yield self._network(self.is_text_module, self._write)

    def _write(self, pieces: Sequence[Tensor]) -> list[Encoded]:
        ids = torch.stack(list(pieces)).to(device_of(self.text_models[0]))
        if len(self.text_models) == 1:
            return [Encoded(row) for row in self.text_models[0](ids[:, 0]).last_hidden_state]
        written = [
            model(ids[:, i], output_hidden_states=True) for i, model in enumerate(self.text_models)
        ]
        tokens = torch.cat([output.hidden_states[-2] for output in written], -1)
        return [
            Encoded(row, {_POOLED: pooled})
            for row, pooled in zip(tokens, written[-1].text_embeds, strict=True)
        ]

    def encoded(self, caption: str, outputs: Sequence[Encoded]) -> Encoded:
        """Return a caption as the UNet reads it; of several pieces, the first one's pooled output
        counts, as in ComfyUI.
        """
        return Encoded(torch.cat([output.tokens for output in outputs]), outputs[0].others)

    @contextmanager
    def denoiser(self) -> Iterator[Network]:
        """Open the UNet; rows are `DenoiserRow`, its forward returns estimates of the clean latents
        (rows, channels, h, w).
        """
        with _evaluating(self.unet_model):
            yield self._network(lambda path: not self.is_text_module(path), self._denoise)

    def sigmas(self, steps: int) -> Tensor:
        """Return noise levels at evenly spaced training timesteps, (steps + 1,), falling to 0."""
        last = len(self.training_sigmas) - 1
        timesteps = torch.linspace(last, 0, steps, dtype=torch.float64).round().long()
        return torch.cat(
            [self.training_sigmas[timesteps], self.training_sigmas.new_zeros(1)]
        ).float()

    def timesteps(self, sigmas: Tensor) -> Tensor:
        """Return the training timesteps whose noise levels are nearest, (n,); sigmas: (n,), above
        0.
        """
        logarithms = sigmas.to("cpu", torch.float64).log()[:, None]
        distances: Tensor = logarithms - self.training_sigmas.log()
        return distances.abs().argmin(1)

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise * (1 + sigma**2).sqrt()

    def noised(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return clean + sigma * noise

    def latent_shape(self, resolution: int, frames: int = 1) -> tuple[int, int, int]:
        side = resolution // self.vae_scale_factor
        return self.unet_model.config.in_channels, side, side

    def _network(
        self, belongs: Callable[[str], bool], forward: Callable[[Sequence[Any]], Any]
    ) -> Network:
        return Network(
            {path: module for path, module in self.modules.items() if belongs(path)},
            forward,
            _stream,
        )

    def _denoise(self, rows: Sequence[DenoiserRow]) -> Tensor:
        model = self.unet_model
        device = device_of(model)
        precise = torch.promote_types(model.dtype, torch.float32)
        x = torch.stack([row.latents for row in rows]).to(device, precise)
        levels = torch.stack([row.sigma for row in rows])
        context = torch.stack([row.prompt.tokens for row in rows]).to(device, model.dtype)
        sigma = levels.to(device, precise)[:, None, None, None]
        # of x_t on this variance-exploding scale, over that on the model's own
        scale = (1 + sigma**2).sqrt()
        timesteps = self.timesteps(levels).to(device)
        output: Tensor = model(
            (x / scale).to(model.dtype),
            timesteps,
            encoder_hidden_states=context,
            added_cond_kwargs=self._added_conditions(rows),
        ).sample.to(precise)
        if self.prediction_type == "epsilon":
            return x - sigma * output
        if self.prediction_type == "v_prediction":
            return x / scale**2 - output * sigma / scale
        return output

    def _added_conditions(self, rows: Sequence[DenoiserRow]) -> dict[str, Tensor] | None:
        """Return what SDXL reads besides the tokens: pooled outputs, and the sizes of pictures that
        were neither scaled nor cropped.
        """
        if len(self.text_models) == 1:
            return None
        model = self.unet_model
        pooled = torch.stack([row.prompt.others[_POOLED] for row in rows])
        height, width = (side * self.vae_scale_factor for side in rows[0].latents.shape[-2:])
        sizes = torch.tensor([[height, width, 0, 0, height, width]] * len(rows), dtype=model.dtype)
        return {
            "text_embeds": pooled.to(device_of(model), model.dtype),
            "time_ids": sizes.to(device_of(model)),
        }


def _text_path(part: str, path: str) -> str:
    if path == "text_projection":
        return f"{part}.{path}"
    # a level that transformers 5 leaves out of some classes, and LoRA files do not
    return f"{part}.text_model.{path.removeprefix('text_model.')}"


def _stream(path: str) -> str:
    is_unet = path.startswith(UNET_PREFIX)
    return stream_of(path, UNET_TEXT_LAYERS) if is_unet else TEXT_STREAM


@contextmanager
def _evaluating(*models: Any) -> Iterator[None]:
    """Turn dropout off, and put every module back into its former mode."""
    training = [module for model in models for module in model.modules() if module.training]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check_texts(models: Sequence[Any], tokenizers: Sequence[Any]) -> None:
    if any(getattr(model.config, "use_attention_mask", False) for model in models):
        raise ConfigError(
            "the text encoder masks padding, which Stable Diffusion's does not; choose an SD1.5 or "
            "SDXL model"
        )
    if any(tokenizer.get_vocab() != tokenizers[0].get_vocab() for tokenizer in tokenizers[1:]):
        raise ConfigError(
            "the two tokenizers have different words, so that they cut prompts differently; they "
            "do not belong together. Choose a plain SDXL model"
        )


def _check_unet(unet: Any, family: Family) -> None:
    config = unet.config
    _check_conditions(config, family)
    if config.in_channels != config.out_channels:
        what = {(9, 4): "an inpainting", (8, 4): "a picture-editing"}.get(
            (config.in_channels, config.out_channels), "another"
        )
        raise ConfigError(
            f"the UNet is of {what} model: it reads {config.in_channels} channels and answers "
            f"{config.out_channels}. Choose a text-to-image model; the merged LoRA works on both"
        )
    if family.name == "SDXL" and (
        config.layers_per_block != _DEPTH or not getattr(unet.mid_block, "attentions", None)
    ):
        raise ConfigError(
            "the UNet has fewer blocks than SDXL's, like SSD-1B, Vega or KOALA; merging is not "
            "tested on these. Choose a plain SDXL model"
        )


def _check_conditions(config: Any, family: Family) -> None:
    """Refuse a UNet whose inputs besides latents and text differ from its family's."""
    own = {"addition_embed_type": "text_time"} if family.name == "SDXL" else {}
    for setting, inputs in _OTHER_INPUTS.items():
        found = getattr(config, setting, None)
        if found != own.get(setting):
            reads = "does not read" if found is None else "also reads"
            raise ConfigError(
                f"the UNet {reads} {inputs}, unlike {family.name}'s; choose a plain "
                f"{family.name} model"
            )


def _check_scheduler(scheduler: Any) -> None:
    name = type(scheduler).__name__
    if not isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor):
        raise ConfigError(
            f"{name} has no alphas_cumprod to read noise levels from; use a DDPM, DDIM or "
            "Euler scheduler"
        )
    found = getattr(scheduler.config, "prediction_type", None)
    if found not in _PREDICTIONS:
        raise ConfigError(
            f"{name} has the prediction_type {found!r}; it can be "
            f"{', '.join(map(repr, _PREDICTIONS))}"
        )
