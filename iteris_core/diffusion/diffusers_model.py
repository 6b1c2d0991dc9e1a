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

# At the noisy end of zero-terminal-SNR schedules, as diffusers' Euler scheduler has it.
_SMALLEST_ALPHA = 2.0**-24
# Settings of UNets that read more than latents and text.
_OTHER_INPUTS = (
    "addition_embed_type",
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim_type",
)
_PIXELS = 8  # of a picture per latent, in each direction
_POOLED = "pooled_output"  # of a prompt, among what the UNet of SDXL reads besides the tokens


class DiffusersModel:
    """A `diffusers` model as the core's `DiffusionHost`; its weights are never changed.

    With one text encoder it is Stable Diffusion 1.5, with two it is SDXL. As in ComfyUI, and by
    trainers, an empty prompt is encoded, where diffusers' pipeline of SDXL reads zeros if no
    negative prompt is given (``force_zeros_for_empty_prompt``).

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
    ):
        self.unet_model = unet.eval()
        texts = (text_encoder, text_encoder_2)
        self.text_models = [model.eval() for model in texts if model is not None]
        self.tokenizer = tokenizer
        tokenizers = [read for read in (tokenizer, tokenizer_2) if read is not None]
        self.fills: list[int] = [read.pad_token_id for read in tokenizers]
        _check(unet, self.family, scheduler)
        self.prediction_type: str = scheduler.config.prediction_type
        alphas = scheduler.alphas_cumprod.to("cpu", torch.float64).clamp_min(_SMALLEST_ALPHA)
        self.training_sigmas = ((1 - alphas) / alphas).sqrt()  # (training timesteps,), rising

    @classmethod
    def of(cls, pipeline: Any) -> DiffusersModel:
        """Return the model of a `StableDiffusionPipeline` or `StableDiffusionXLPipeline`.

        Raises:
            ConfigError: See the class.
        """
        parts = ("unet", "text_encoder", "tokenizer", "scheduler", "text_encoder_2", "tokenizer_2")
        return cls(**{part: getattr(pipeline, part, None) for part in parts})

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
        lengths = (model.config.max_position_embeddings for model in self.text_models)
        return int(min(self.tokenizer.model_max_length, *lengths))

    def tokenize(self, caption: str) -> list[Tensor]:
        """Return a caption's token ids (text encoders, length), in as many pieces of one length as
        it needs, each with start and end.
        """
        length = self.piece_length
        ids = self.tokenizer(caption, add_special_tokens=False)["input_ids"]
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        words = (ids[i : i + length - 2] for i in range(0, max(len(ids), 1), length - 2))
        pieces = [[start, *piece, end] for piece in words]
        return [
            torch.tensor([piece + [fill] * (length - len(piece)) for fill in self.fills])
            for piece in pieces
        ]

    def token_positions(self, text: str) -> list[int]:
        """Return the positions of the tokens of a text's words in its context, without start, end
        and padding.
        """
        words = self.piece_length - 2  # of each piece
        count = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return [i // words * self.piece_length + 1 + i % words for i in range(count)]

    @contextmanager
    def text_encoder(self) -> Iterator[Network]:
        """Open the text encoders; rows are token ids (text encoders, length), its forward returns
        what they write for each.
        """
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
    def denoiser(self, levels: int) -> Iterator[Network]:
        """Open the UNet; rows are `DenoiserRow`, its forward returns estimates of the clean latents
        (rows, channels, h, w).
        """
        yield self._network(lambda path: not self.is_text_module(path), self._denoise)

    def sigmas(self, steps: int) -> Tensor:
        """Return noise levels at evenly spaced training timesteps, (steps + 1,), falling to 0."""
        levels = self.training_sigmas
        timesteps = torch.linspace(len(levels) - 1, 0, steps, dtype=torch.float64).round().long()
        return torch.cat([levels[timesteps], levels.new_zeros(1)]).float()

    def timesteps(self, sigmas: Tensor) -> Tensor:
        """Return the training timesteps with the nearest noise levels, (n,); levels above 0."""
        logarithms = sigmas.to("cpu", torch.float64).log()[:, None]
        distances: Tensor = logarithms - self.training_sigmas.log()
        return distances.abs().argmin(1)

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise * (1 + sigma**2).sqrt()

    def noised(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return clean + sigma * noise

    def latent_shape(self, resolution: int, frames: int = 1) -> tuple[int, int, int]:
        side = resolution // _PIXELS
        return self.unet_model.config.in_channels, side, side

    def _network(
        self, belongs: Callable[[str], bool], forward: Callable[[Sequence[Any]], Any]
    ) -> Network:
        modules = {path: module for path, module in self.modules.items() if belongs(path)}
        return Network(modules, forward, _stream)

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
        height, width = (side * _PIXELS for side in rows[0].latents.shape[-2:])
        pooled = torch.stack([row.prompt.others[_POOLED] for row in rows])
        sizes = torch.tensor([[height, width, 0, 0, height, width]] * len(rows))
        read = {"text_embeds": pooled, "time_ids": sizes}
        model = self.unet_model
        return {name: part.to(device_of(model), model.dtype) for name, part in read.items()}


def _text_path(part: str, path: str) -> str:
    if path == "text_projection":
        return f"{part}.{path}"
    # a level that transformers 5 leaves out of some classes, and LoRA files do not
    return f"{part}.text_model.{path.removeprefix('text_model.')}"


def _stream(path: str) -> str:
    is_unet = path.startswith(UNET_PREFIX)
    return stream_of(path, UNET_TEXT_LAYERS) if is_unet else TEXT_STREAM


def _check(unet: Any, family: Family, scheduler: Any) -> None:
    """Refuse a UNet or scheduler of another kind than the family's."""
    config = unet.config
    wanted: dict[str, Any] = dict.fromkeys(_OTHER_INPUTS) | {"in_channels": config.out_channels}
    if family.name == "SDXL":  # with fewer blocks it is cut down, like SSD-1B, Vega or KOALA
        wanted["addition_embed_type"] = "text_time"
        wanted |= {"layers_per_block": 2, "mid_block_type": "UNetMidBlock2DCrossAttn"}
    for setting, value in wanted.items():
        if (found := getattr(config, setting, None)) != value:
            raise ConfigError(
                f"the UNet has {setting} {found!r} where {family.name}'s has {value!r}; choose a "
                f"plain {family.name} model that draws from text. The merged LoRA works on its "
                "inpainting models, too"
            )
    found = getattr(scheduler.config, "prediction_type", None)
    has_levels = isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor)
    if not has_levels or found not in ("epsilon", "v_prediction", "sample"):
        raise ConfigError(
            f"{type(scheduler).__name__} predicts {found!r} and has "
            f"{'its' if has_levels else 'no'} alphas_cumprod; use a DDPM, DDIM or Euler scheduler "
            "that predicts 'epsilon', 'v_prediction' or 'sample'"
        )
