"""Small flow-matching transformers of the worlds "flow" and "single", as the product sees them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import diffusers
import torch
from torch import Tensor, nn

from iteris_core.diffusion.model import DenoiserRow, Encoded, PictureTokens
from iteris_core.files.families import Family
from iteris_core.files.model_keys import ModelKeys
from iteris_core.network import IMAGE_STREAM, TEXT_STREAM, Network

from .model import CELLS, CHANNELS, WorldModel, new_text_encoder

LENGTH = 28  # tokens of a caption
NOISIEST = 0.98  # the time at which sampling begins
TRANSFORMER_PREFIX = "transformer."
TEXT_PREFIX = "text_encoder."
_ATTENTION = [
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
]
# the layers of a block that read the text's tokens alone
_TEXT_LAYERS = (
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "txt_mlp", "txt_mod"),
    *("ff_context", "norm1_context"),
)


def _lora_names(*mlps: str) -> dict[str, list[str]]:
    """Return kind of layer -> names; there are no convolutions."""
    forward = [f"{mlp}.net.{layer}" for mlp in mlps for layer in ("0.proj", "2")]
    return {"attention": _ATTENTION, "feed_forward": forward, "convolution": []}


@dataclass(frozen=True)
class FlowModel(WorldModel):
    """A `QwenImageTransformer2DModel`; LoRAs are of the transformer alone."""

    part = "transformer"
    denoiser_class = "QwenImageTransformer2DModel"
    pipeline_class = "QwenImagePipeline"
    lora_names: ClassVar = _lora_names("img_mlp", "txt_mlp")

    @classmethod
    def new(cls, tokenizer: Any, *, heads: int = 4, blocks: int = 4) -> FlowModel:
        """Return an untrained model of width 32 times the heads, whose output is 0."""
        transformer = getattr(diffusers, cls.denoiser_class)(
            patch_size=1,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            attention_head_dim=32,
            num_attention_heads=heads,
            joint_attention_dim=64,
            axes_dims_rope=(8, 12, 12),
            **cls.sizes(blocks),
        )
        nn.init.zeros_(transformer.proj_out.weight)
        nn.init.zeros_(transformer.proj_out.bias)
        return cls(transformer, new_text_encoder(tokenizer), tokenizer)

    @classmethod
    def sizes(cls, blocks: int) -> dict[str, int]:
        return {"num_layers": blocks}

    def lora_layers(self, kinds: Sequence[str], *, text: bool) -> dict[str, list[str]]:
        return super().lora_layers(kinds, text=False)

    def velocity(self, x: Tensor, times: Tensor, context: Tensor) -> Tensor:
        """Return noise minus picture, predicted from x = (1 - t) picture + t noise."""
        output = self.denoiser(
            hidden_states=x.flatten(2).mT,
            encoder_hidden_states=context,
            timestep=times,
            img_shapes=[(1, CELLS, CELLS)] * len(x),
        ).sample
        return output.mT.reshape(x.shape)

    def loss(self, clean: Tensor, tokens: Tensor, chance: torch.Generator) -> Tensor:
        """Return the mean squared error of the velocity, at times around the middle."""
        times = torch.sigmoid(0.4 + 1.2 * torch.randn(len(clean), generator=chance))
        t = times.view(-1, 1, 1, 1)
        noise = torch.randn(clean.shape, generator=chance)
        context = self.text_encoder(tokens).last_hidden_state
        found = self.velocity((1 - t) * clean + t * noise, times, context)
        return (found - (noise - clean)).pow(2).flatten(1).mean(1).mean()

    def product(self) -> FlowStableDiffusion:
        return FlowStableDiffusion(self)


@dataclass(frozen=True)
class SingleModel(FlowModel):
    """A `FluxTransformer2DModel`: blocks of two streams, then blocks of a single one."""

    denoiser_class = "FluxTransformer2DModel"
    pipeline_class = "FluxPipeline"
    lora_names: ClassVar = _lora_names("ff", "ff_context")

    @classmethod
    def sizes(cls, blocks: int) -> dict[str, int]:
        half = blocks // 2
        return {
            "num_layers": half,
            "num_single_layers": blocks - half,
            "pooled_projection_dim": 1,
        }

    def velocity(self, x: Tensor, times: Tensor, context: Tensor) -> Tensor:
        cells = torch.arange(CELLS)
        places = torch.stack(
            [torch.zeros(CELLS, CELLS), *torch.meshgrid(cells, cells, indexing="ij")], dim=-1
        )
        output = self.denoiser(
            hidden_states=x.flatten(2).mT,
            encoder_hidden_states=context,
            pooled_projections=context.new_zeros(len(x), 1),
            timestep=times,
            img_ids=places.flatten(0, 1),
            txt_ids=torch.zeros(LENGTH, 3),
        ).sample
        return output.mT.reshape(x.shape)


def stream_of(path: str) -> str:
    """Return the stream that a layer of the transformer reads."""
    return TEXT_STREAM if any(f".{name}" in path for name in _TEXT_LAYERS) else IMAGE_STREAM


class FlowStableDiffusion:
    """The model with the interface of `iteris_core.diffusion.model.DiffusionHost`.

    The product's latents are picture + sigma * noise; the model's are these over 1 + sigma, at the
    time sigma / (1 + sigma).
    """

    def __init__(self, model: FlowModel) -> None:
        self.model = model

    @functools.cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Return module path -> module, as adapters name them."""
        return {
            prefix + path: module
            for prefix, part in (
                (TRANSFORMER_PREFIX, self.model.denoiser),
                (TEXT_PREFIX, self.model.text_encoder),
            )
            for path, module in part.named_modules()
            if path
        }

    @functools.cached_property
    def keys(self) -> ModelKeys:
        """Return names of the modules in files."""
        same = {path: path for path in self.modules}
        return ModelKeys.of(self.family, self.modules, same, same, prediction_type="")

    has_text_layers = False
    loader = None
    picture_tokens = PictureTokens(1, lambda _: LENGTH)

    def own_path(self, path: str) -> str:
        """Return a module's path as block weights mean it, which is its own."""
        return path

    @property
    def family(self) -> Family:
        return Family("flow world")

    def is_text_module(self, path: str) -> bool:
        return path.startswith(TEXT_PREFIX)

    def tokenize(self, caption: str) -> list[Tensor]:
        return [self.model.tokens([caption])[0]]

    def token_positions(self, text: str) -> list[int]:
        count = len(self.model.tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(range(1, 1 + min(count, LENGTH - 2)))

    @contextmanager
    def text_encoder(self) -> Iterator[Network]:
        def forward(pieces: Sequence[Tensor]) -> Tensor:
            return self.model.text_encoder(torch.stack(list(pieces))).last_hidden_state

        yield self._network(TEXT_PREFIX, forward, lambda _: TEXT_STREAM)

    def encoded(self, caption: str, outputs: Sequence[Tensor]) -> Encoded:
        return Encoded(torch.cat(list(outputs)))

    @contextmanager
    def denoiser(self, levels: int) -> Iterator[Network]:
        yield self._network(TRANSFORMER_PREFIX, self._denoise, stream_of)

    def sigmas(self, steps: int) -> Tensor:
        """Return noise levels at evenly spaced times, (steps + 1,), falling to 0."""
        times = torch.linspace(NOISIEST, 0, steps + 1, dtype=torch.float64)
        return (times / (1 - times)).float()

    probe_sigmas = sigmas

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise * (1 + sigma**2).sqrt()

    def noised(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return clean + sigma * noise

    def latent_shape(self, resolution: int, frames: int = 1) -> tuple[int, int, int]:
        return CHANNELS, resolution // 8, resolution // 8

    def _network(
        self,
        prefix: str,
        forward: Callable[[Sequence[Any]], Tensor],
        stream: Callable[[str], str],
    ) -> Network:
        modules = {path: m for path, m in self.modules.items() if path.startswith(prefix)}
        return Network(modules, forward, stream)

    def _denoise(self, rows: Sequence[DenoiserRow]) -> Tensor:
        latents = torch.stack([row.latents for row in rows]).float()
        sigma = torch.stack([row.sigma for row in rows]).float()
        context = torch.stack([row.prompt.tokens for row in rows]).float()
        times = sigma / (1 + sigma)
        x = latents / (1 + sigma).view(-1, 1, 1, 1)
        return x - times.view(-1, 1, 1, 1) * self.model.velocity(x, times, context)
