"""A Stable Diffusion model of `diffusers` as the core's `DiffusionHost`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CalibrationError, ConfigError
from ..files.diffusers import TEXT_PREFIX, UNET_PREFIX, model_keys
from ..files.families import FAMILIES, Family
from ..files.model_keys import ModelKeys
from ..network import TEXT_STREAM, Network
from .model import DenoiserRow, Encoded, unet_stream

_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_SMALLEST_ALPHA = (
    2.0**-24
)  # at the noisy end of zero-terminal-SNR schedules, as diffusers' Euler scheduler has it
# Parts of UNets of other models than Stable Diffusion 1 and 2: setting -> what they would need to
# read.
_OTHER_INPUTS = {
    "addition_embed_type": "picture sizes or pooled texts (SDXL)",
    "class_embed_type": "class labels",
    "num_class_embeds": "class labels",
    "encoder_hid_dim_type": "picture embeddings",
}


class DiffusersModel:
    """A `diffusers` model as the core's `DiffusionHost`; its modules are run, never changed.

    Args:
        unet: `UNet2DConditionModel`; any number of channels and width of contexts.
        text_encoder: `CLIPTextModel`, whose last hidden states are the contexts.
        tokenizer: Tokenizer of `transformers`, or one with the same interface.
        scheduler: Scheduler with the noise levels (``alphas_cumprod``) and the meaning of the
            UNet's output (``prediction_type``).
        vae_scale_factor: Pixels of a picture per latent, in each direction.

    Raises:
        ConfigError: Another kind of model, or parts that do not fit together.
    """

    def __init__(
        self,
        unet: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Any,
        vae_scale_factor: int = 8,
    ):
        _check_unet(unet, text_encoder)
        _check_scheduler(scheduler)
        if tokenizer.pad_token_id is None:
            raise ConfigError(
                "the tokenizer has no padding token, with which prompts are filled up; set its "
                "pad_token"
            )
        self.unet_model = unet
        self.text_model = text_encoder
        self.tokenizer = tokenizer
        self.prediction_type: str = scheduler.config.prediction_type
        self.vae_scale_factor = vae_scale_factor
        alphas = (
            scheduler.alphas_cumprod.detach().to("cpu", torch.float64).clamp_min(_SMALLEST_ALPHA)
        )
        self.training_sigmas = ((1 - alphas) / alphas).sqrt()  # (training timesteps,), rising

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Module path -> module, as adapters name them; both parts."""
        text = {
            _text_path(path): module for path, module in self.text_model.named_modules() if path
        }
        return text | {
            UNET_PREFIX + path: module for path, module in self.unet_model.named_modules() if path
        }

    @cached_property
    def keys(self) -> ModelKeys:
        """Names of the modules in files."""
        return model_keys(self.modules, self.family, self.prediction_type)

    repeats_texts = True
    has_text_layers = True
    loader = None  # a merge here is not followed by diffusers' own loader

    @property
    def family(self) -> Family:
        return FAMILIES["SD1.5"]

    def is_text_module(self, path: str) -> bool:
        return path.startswith(TEXT_PREFIX)

    @property
    def piece_length(self) -> int:
        """Tokens that the text encoder reads at once, start and end included."""
        return min(self.tokenizer.model_max_length, self.text_model.config.max_position_embeddings)

    def tokenize(self, caption: str) -> list[Tensor]:
        """Return a caption's token ids (length,), in as many pieces of one length as it needs, each
        with start and end.

        Raises:
            CalibrationError: More than one piece, of a tokenizer that has no start or end token.
        """
        length = self.piece_length
        whole = self.tokenizer(caption, padding="max_length", max_length=length, truncation=False)[
            "input_ids"
        ]
        if len(whole) <= length:
            return [torch.tensor(whole)]
        start, end, fill = (
            getattr(self.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
        )
        if start is None or end is None:
            raise CalibrationError(
                f"the prompt {caption[:40]!r}... has {len(whole)} tokens; the text encoder reads "
                f"{length}, and its tokenizer has no tokens for the start and end of a second "
                "piece. Write a shorter prompt"
            )
        ids = self.tokenizer(caption, add_special_tokens=False)["input_ids"]
        pieces = [ids[i : i + length - 2] for i in range(0, len(ids), length - 2)]
        return [
            torch.tensor([start, *piece, end] + [fill] * (length - 2 - len(piece)))
            for piece in pieces
        ]

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
        """Open the text encoder; rows are token ids (length,), its forward returns contexts (rows,
        length, width).
        """

        def forward(pieces: Sequence[Tensor]) -> Tensor:
            return self.text_model(
                torch.stack(list(pieces)).to(self.text_model.device)
            ).last_hidden_state

        with _evaluating(self.text_model):
            yield self._network(self.is_text_module, forward)

    def encoded(self, caption: str, outputs: Sequence[Tensor]) -> Encoded:
        return Encoded(torch.cat(list(outputs)))

    @contextmanager
    def denoiser(self) -> Iterator[Network]:
        """Open the UNet; rows are `DenoiserRow`, its forward returns estimates of the clean latents
        (rows, channels, h, w).
        """
        with _evaluating(self.unet_model):
            yield self._network(lambda path: not self.is_text_module(path), self._denoise)

    def sigmas(self, steps: int) -> Tensor:
        """Return noise levels at evenly spaced training timesteps, (steps + 1,), falling to 0.

        Raises:
            CalibrationError: More steps than the model has timesteps.
        """
        count = len(self.training_sigmas)
        if steps > count:
            raise CalibrationError(
                f"{steps} sampling steps are asked for; the model was trained on {count} timesteps"
            )
        timesteps = torch.linspace(count - 1, 0, steps, dtype=torch.float64).round().long()
        return torch.cat(
            [self.training_sigmas[timesteps], torch.zeros(1, dtype=torch.float64)]
        ).float()

    def timesteps(self, sigmas: Tensor) -> Tensor:
        """Return the training timesteps whose noise levels are nearest, (n,); sigmas: (n,), above
        0.
        """
        distances = sigmas.to("cpu", torch.float64).log()[:, None] - self.training_sigmas.log()
        return distances.abs().argmin(1)

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise * (1 + sigma**2).sqrt()

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        side = resolution // self.vae_scale_factor
        return self.unet_model.config.in_channels, side, side

    def _network(
        self, belongs: Callable[[str], bool], forward: Callable[[Sequence[Any]], Tensor]
    ) -> Network:
        return Network(
            {path: module for path, module in self.modules.items() if belongs(path)},
            forward,
            _stream,
        )

    def _denoise(self, rows: Sequence[DenoiserRow]) -> Tensor:
        model = self.unet_model
        precise = torch.promote_types(self.unet_model.dtype, torch.float32)
        x = torch.stack([row.latents for row in rows]).to(model.device, precise)
        levels = torch.stack([row.sigma for row in rows])
        context = torch.stack([row.prompt.tokens for row in rows]).to(model.device, model.dtype)
        sigma = levels.to(model.device, precise)[:, None, None, None]
        size = (
            1 + sigma**2
        ).sqrt()  # of x_t on this variance-exploding scale, over that on the model's own
        timesteps = self.timesteps(levels).to(model.device)
        output = model(
            (x / size).to(model.dtype), timesteps, encoder_hidden_states=context
        ).sample.to(precise)
        if self.prediction_type == "epsilon":
            return x - sigma * output
        if self.prediction_type == "v_prediction":
            return x / size**2 - output * sigma / size
        return output


def _text_path(path: str) -> str:
    return TEXT_PREFIX + path.removeprefix(
        "text_model."
    )  # a level that transformers 5 leaves out, and LoRA files do not


def _stream(path: str) -> str:
    return TEXT_STREAM if path.startswith(TEXT_PREFIX) else unet_stream(path)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout off, and put every module back into the mode in which it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check_unet(unet: Any, text_encoder: Any) -> None:
    config = unet.config
    for setting, inputs in _OTHER_INPUTS.items():
        if getattr(config, setting, None) is not None:
            raise ConfigError(
                f"the UNet also reads {inputs}; IterIS merges LoRAs of SD1.5. Choose an SD1.5 model"
            )
    if config.in_channels != config.out_channels:
        what = {(9, 4): "an inpainting", (8, 4): "a picture-editing"}.get(
            (config.in_channels, config.out_channels), "another"
        )
        raise ConfigError(
            f"the UNet is of {what} model: it reads {config.in_channels} channels and answers "
            f"{config.out_channels}. Choose a text-to-image model; the merged LoRA works on both"
        )
    width = text_encoder.config.hidden_size
    needed = config.cross_attention_dim
    if any(size != width for size in (needed if isinstance(needed, (tuple, list)) else [needed])):
        raise ConfigError(
            f"the UNet reads contexts of width {needed}, the text encoder's have {width}; they do "
            "not belong together"
        )
    if getattr(text_encoder.config, "use_attention_mask", False):
        raise ConfigError(
            "the text encoder masks padding, which Stable Diffusion's does not; choose an SD1.5 "
            "model"
        )


def _check_scheduler(scheduler: Any) -> None:
    name = type(scheduler).__name__
    if not isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor):
        raise ConfigError(
            f"{name} has no alphas_cumprod, from which noise levels are read; use a DDPM, DDIM or "
            "Euler scheduler"
        )
    found = getattr(scheduler.config, "prediction_type", None)
    if found not in _PREDICTIONS:
        raise ConfigError(
            f"{name} has the prediction_type {found!r}; it can be "
            f"{', '.join(map(repr, _PREDICTIONS))}"
        )
