"""Small flow-matching transformers with joint attention of image and text, as the worlds "flow" and
"single" train them, and their face towards the product.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from iteris_core.diffusion.model import DenoiserRow, Encoded, PictureTokens
from iteris_core.files.families import Family
from iteris_core.files.kohya import ModelKeys
from iteris_core.network import IMAGE_STREAM, TEXT_STREAM, Network

CELLS = 8  # latents are (27, 8, 8); each cell is a token
CHANNELS = 27
LENGTH = 28  # tokens of a caption
NOISIEST = 0.98  # the time at which sampling begins
TRANSFORMER_PREFIX = "transformer."
TEXT_PREFIX = "text_encoder."
_STREAMS = ("img_mlp", "txt_mlp")
LORA_LAYERS = {
    "attention": [
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    ],
    "feed_forward": [f"{mlp}.net.{layer}" for mlp in _STREAMS for layer in ("0.proj", "2")],
    "convolution": [],  # there are none
}
# the layers of a block that read the text's tokens alone
_TEXT_LAYERS = (
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "txt_mlp", "txt_mod"),
    *("ff_context", "norm1_context"),
)


@dataclass(frozen=True)
class FlowModel:
    """A `QwenImageTransformer2DModel` and a CLIP text model without pooled output."""

    transformer: Any
    text_encoder: Any
    tokenizer: Any
    transformer_class = "QwenImageTransformer2DModel"
    pipeline_class = "QwenImagePipeline"
    lora_names: ClassVar[Mapping[str, Sequence[str]]] = LORA_LAYERS

    @property
    def parts(self) -> nn.ModuleDict:
        """Return what is trained."""
        return nn.ModuleDict({"transformer": self.transformer, "text_encoder": self.text_encoder})

    def tokens(self, captions: list[str]) -> Tensor:
        """Return token ids (captions, length)."""
        return self.tokenizer(
            captions,
            padding="max_length",
            max_length=LENGTH,
            truncation=True,
            return_tensors="pt",
        ).input_ids

    def velocity(self, x: Tensor, times: Tensor, context: Tensor) -> Tensor:
        """Return noise minus picture, as predicted from x = (1 - t) picture + t noise, (n, 27, 8,
        8).
        """
        n = len(x)
        output = self.transformer(
            hidden_states=x.flatten(2).mT,
            encoder_hidden_states=context,
            timestep=times,
            img_shapes=[(1, CELLS, CELLS)] * n,
        ).sample
        return output.mT.reshape(n, CHANNELS, CELLS, CELLS)

    def loss(
        self, clean: Tensor, tokens: Tensor, chance: torch.Generator, weights: Tensor | None = None
    ) -> Tensor:
        """Return the mean squared error of the velocity, at times around the middle."""
        times = torch.sigmoid(0.4 + 1.2 * torch.randn(len(clean), generator=chance))
        t = times.view(-1, 1, 1, 1)
        noise = torch.randn(clean.shape, generator=chance)
        context = self.text_encoder(tokens).last_hidden_state
        found = self.velocity((1 - t) * clean + t * noise, times, context)
        errors = (found - (noise - clean)).pow(2).flatten(1).mean(1)
        return errors.mean() if weights is None else (errors * weights).sum() / weights.sum()

    def save(self, folder: Path) -> None:
        for name in ("transformer", "text_encoder", "tokenizer"):
            getattr(self, name).save_pretrained(folder / name)

    def lora_layers(self, kinds: Sequence[str], *, text: bool) -> dict[str, list[str]]:
        """Return part -> names of its layers of these kinds; the text model has none."""
        return {"transformer": [name for kind in kinds for name in self.lora_names[kind]]}

    def save_loras(self, folder: Path, name: str) -> None:
        """Save the LoRAs that PEFT has put into the parts."""
        import diffusers
        from peft.utils import get_peft_model_state_dict

        getattr(diffusers, self.pipeline_class).save_lora_weights(
            folder,
            transformer_lora_layers=get_peft_model_state_dict(self.transformer),
            weight_name=name,
        )


@dataclass(frozen=True)
class SingleModel(FlowModel):
    """A `FluxTransformer2DModel`: blocks of two streams, then blocks of a single one."""

    transformer_class = "FluxTransformer2DModel"
    pipeline_class = "FluxPipeline"
    lora_names: ClassVar[Mapping[str, Sequence[str]]] = {
        "attention": LORA_LAYERS["attention"],
        "feed_forward": [
            f"{part}.net.{layer}" for part in ("ff", "ff_context") for layer in ("0.proj", "2")
        ],
        "convolution": [],
    }

    def velocity(self, x: Tensor, times: Tensor, context: Tensor) -> Tensor:
        cells = torch.arange(CELLS)
        places = torch.stack(
            [torch.zeros(CELLS, CELLS), *torch.meshgrid(cells, cells, indexing="ij")], dim=-1
        )
        output = self.transformer(
            hidden_states=x.flatten(2).mT,
            encoder_hidden_states=context,
            pooled_projections=context.new_zeros(len(x), 1),
            timestep=times,
            img_ids=places.flatten(0, 1),
            txt_ids=torch.zeros(LENGTH, 3),
        ).sample
        return output.mT.reshape(x.shape)


def new_flow_model(tokenizer: Any, *, heads: int = 4, blocks: int = 4) -> FlowModel:
    """Return an untrained model of width 32 times the heads."""
    from diffusers import QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        **_sizes(heads),
        num_layers=blocks,
    )
    return FlowModel(_blank(transformer), _new_text_encoder(tokenizer), tokenizer)


def new_single_model(tokenizer: Any, *, heads: int = 4, blocks: int = 4) -> SingleModel:
    """Return an untrained model of width 32 times the heads, half of its blocks of each kind."""
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        **_sizes(heads),
        num_layers=blocks // 2,
        num_single_layers=blocks - blocks // 2,
        pooled_projection_dim=1,
    )
    return SingleModel(_blank(transformer), _new_text_encoder(tokenizer), tokenizer)


def _sizes(heads: int) -> dict[str, Any]:
    return {
        "patch_size": 1,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "attention_head_dim": 32,
        "num_attention_heads": heads,
        "joint_attention_dim": 64,
        "axes_dims_rope": (8, 12, 12),
    }


def _blank(transformer: Any) -> Any:
    """Return a transformer whose output is 0."""
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    return transformer


def _new_text_encoder(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def load_flow_model(folder: Path, kind: type[FlowModel] = FlowModel) -> FlowModel:
    """Return a trained model of a kind from its folder."""
    import diffusers
    from transformers import CLIPTextModel, PreTrainedTokenizerFast

    model = kind(
        getattr(diffusers, kind.transformer_class).from_pretrained(folder / "transformer"),
        CLIPTextModel.from_pretrained(folder / "text_encoder"),
        PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
    )
    model.parts.requires_grad_(False).eval()
    return model


def stream_of(path: str) -> str:
    """Return the stream that a layer of the transformer reads."""
    return TEXT_STREAM if any(f".{name}" in path for name in _TEXT_LAYERS) else IMAGE_STREAM


class FlowStableDiffusion:
    """The model with the interface of `iteris_core.diffusion.model.DiffusionHost`.

    The product's latents are picture + sigma * noise; the model's are these over 1 + sigma, at the
    time sigma / (1 + sigma).
    """

    def __init__(self, model: FlowModel, memory: dict[str, Any] | None = None) -> None:
        self.model = model
        self.memory = memory

    @functools.cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Return module path -> module, as adapters name them."""
        return {
            prefix + path: module
            for prefix, part in (
                (TRANSFORMER_PREFIX, self.model.transformer),
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
    def denoiser(self) -> Iterator[Network]:
        yield self._network(TRANSFORMER_PREFIX, self._denoise, stream_of)

    def sigmas(self, steps: int) -> Tensor:
        """Return noise levels at evenly spaced times, (steps + 1,), falling to 0."""
        times = torch.linspace(NOISIEST, 0, steps + 1, dtype=torch.float64)
        return (times / (1 - times)).float()

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
        return Network(modules, forward, stream, self.memory)

    def _denoise(self, rows: Sequence[DenoiserRow]) -> Tensor:
        latents = torch.stack([row.latents for row in rows]).float()
        sigma = torch.stack([row.sigma for row in rows]).float()
        context = torch.stack([row.prompt.tokens for row in rows]).float()
        times = sigma / (1 + sigma)
        x = latents / (1 + sigma).view(-1, 1, 1, 1)
        return x - times.view(-1, 1, 1, 1) * self.model.velocity(x, times, context)
