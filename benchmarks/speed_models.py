"""The measured models of the real shapes with random weights, random LoRAs, and samples."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iteris_core import (
    Adapter,
    LowRankDelta,
    MergeConfig,
    MergeResult,
    Network,
    Sample,
    Task,
    merge,
)
from iteris_core.config import Target

os.environ.setdefault("HF_HUB_OFFLINE", "1")
SAMPLES_PER_CHUNK = 8


@dataclass(frozen=True)
class Case:
    """One merge to measure, and how large the ratio to its plain forward may be."""

    name: str
    size: str
    network: Network
    adapters: Sequence[Adapter]
    tasks: Sequence[Task]
    aim: float = 1.5
    target: Target = "delta"

    def sweep(self) -> MergeResult:
        config = MergeConfig(target=self.target, samples_per_chunk=SAMPLES_PER_CHUNK)
        return merge(self.network, self.adapters, self.tasks, config)

    @torch.no_grad()
    def plain_forward(self) -> None:
        """Run the sweep's teacher and student rows, in the sweep's chunks, through the base
        model.
        """
        samples = [sample for task in self.tasks for sample in task.samples]
        for start in range(0, len(samples), SAMPLES_PER_CHUNK):
            part = samples[start : start + SAMPLES_PER_CHUNK]
            self.network.forward(
                [sample.teacher for sample in part] + [sample.student_reads for sample in part]
            )


def built(make: Callable[[], nn.Module], device: str = "cpu") -> nn.Module:
    """Return a model with random weights of 0.02, without the library's own, slow
    initialisation.
    """
    with torch.device("meta"):
        model = make()
    model = model.to_empty(device=device).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.02)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    for (
        name,
        buffer,
    ) in model.named_buffers():  # what the libraries keep in buffers are position numbers
        assert name.endswith("position_ids"), name
        buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return model


def loras(model: nn.Module, count: int, rank: int, wanted: Callable[[str], bool]) -> list[Adapter]:
    """Return random LoRAs on all Linear and Conv2d layers whose path is wanted."""
    shapes = {
        path: tuple(layer.weight.flatten(1).shape)
        for path, layer in model.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and wanted(path)
    }
    return [
        Adapter(
            f"lora{k}",
            {
                path: LowRankDelta(
                    0.02 * torch.randn(d_out, rank), torch.randn(rank, d_in) / d_in**0.5
                )
                for path, (d_out, d_in) in shapes.items()
            },
        )
        for k in range(count)
    ]


def own_tasks(
    adapters: Sequence[Adapter], samples: int, make: Callable[[], Any], *, preserve: bool = False
) -> list[Task]:
    """Return one task per adapter, and a preserve task if asked for, with as many samples each."""
    tasks = [
        Task(adapter.name, [Sample(make()) for _ in range(samples)], {k: 1.0})
        for k, adapter in enumerate(adapters)
    ]
    return (
        [*tasks, Task("preserve", [Sample(make()) for _ in range(samples)], {})]
        if preserve
        else tasks
    )


def columns(rows: Sequence[tuple[Tensor, ...]], device: str) -> list[Tensor]:
    """Stack what rows read, thing by thing."""
    return [torch.stack(part).to(device) for part in zip(*rows, strict=True)]


def sd15(device: str, quick: bool) -> list[Case]:
    """SD1.5's text encoder (rows of 77 tokens) and UNet; LoRAs on what kohya trains by default, and
    a preserve task.
    """
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    side, samples = (64, 16) if device == "cuda" else (16, 1) if quick else (32, 2)
    prompts = 1 if quick else 4 * samples
    # what Stable Diffusion 1.5 has: openai/clip-vit-large-patch14's text encoder
    shape = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    clip = built(lambda: CLIPTextModel(shape), device)
    names = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    text_loras = loras(clip, 2, 16, lambda path: path.endswith(names))
    reads = own_tasks(
        text_loras, prompts, lambda: (torch.randint(1000, 40000, (77,)),), preserve=True
    )
    text = Network(
        dict(clip.named_modules()), lambda rows: clip(*columns(rows, device)).last_hidden_state
    )

    unet = built(
        lambda: UNet2DConditionModel(
            cross_attention_dim=768, attention_head_dim=8, sample_size=side
        ),
        device,
    )
    unet_loras = loras(unet, 2, 16, lambda path: ".attentions." in path)
    views = own_tasks(
        unet_loras,
        samples,
        lambda: (torch.randn(4, side, side), torch.randint(0, 1000, ()), torch.randn(77, 768)),
        preserve=True,
    )
    pictures = Network(
        dict(unet.named_modules()),
        lambda rows: unet(*columns(rows, device)).sample,
        lambda path: "text" if path.endswith(("attn2.to_k", "attn2.to_v")) else "image",
    )
    return [
        Case("SD1.5 CLIP", f"3 x {prompts} samples, 77 tokens", text, text_loras, reads, 1.25),
        Case(
            "SD1.5 UNet",
            f"3 x {samples} samples, {side} x {side} latents",
            pictures,
            unet_loras,
            views,
            1.25,
        ),
    ]


def t5(size: str, device: str, quick: bool) -> list[Case]:
    """A whole T5, LoRAs of rank 8 on every q and v, decoder inputs teacher-forced."""
    from transformers import T5Config, T5Model

    shapes = {
        "base": {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
        "large": {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
    }
    samples = 2 if quick else 16 if size == "base" else 8
    model = built(lambda: T5Model(T5Config(**shapes[size], d_kv=64, use_cache=False)), device)
    adapters = loras(model, 2, 8, lambda path: path.endswith((".q", ".v")))
    make = lambda: (torch.randint(2, 32000, (64,)), torch.randint(2, 32000, (8,)))  # noqa: E731

    def forward(rows: Sequence[tuple[Tensor, ...]]) -> Tensor:
        read, written = columns(rows, device)
        return model(input_ids=read, decoder_input_ids=written, use_cache=False).last_hidden_state

    network = Network(dict(model.named_modules()), forward, lambda path: path.split(".")[0])
    description = f"2 x {samples} samples, 64 + 8 tokens"
    return [Case(f"T5-{size}", description, network, adapters, own_tasks(adapters, samples, make))]


def blip(device: str, quick: bool) -> list[Case]:
    """BLIP-base captioning: the whole of it, and its text decoder alone, on picture features that
    were made before.
    """
    from transformers import BlipConfig, BlipForConditionalGeneration

    side, samples = (96, 2) if quick else (384, 3)
    shape = BlipConfig(text_config={"use_cache": False}, vision_config={"image_size": side})
    model = built(lambda: BlipForConditionalGeneration(shape), device)
    adapters = loras(
        model,
        2,
        16,
        lambda path: "text_decoder" in path and path.endswith(("query", "key", "value")),
    )
    caption = lambda: torch.randint(1000, 30000, (32,))  # noqa: E731
    features = (side // 16) ** 2 + 1

    def whole(rows: Sequence[tuple[Tensor, ...]]) -> Tensor:
        pictures, captions = columns(rows, device)
        return model(pixel_values=pictures, input_ids=captions).logits

    def decoder(rows: Sequence[tuple[Tensor, ...]]) -> Tensor:
        seen, captions = columns(rows, device)
        return model.text_decoder(captions, encoder_hidden_states=seen).logits

    def stream(path: str) -> str:
        reads_image = "crossattention" in path and path.endswith(("key", "value"))
        return "image" if reads_image else "text"

    modules = dict(model.named_modules())
    per_task = f"2 x {samples} samples, 32 tokens"
    pictures = own_tasks(adapters, samples, lambda: (torch.randn(3, side, side), caption()))
    seen = own_tasks(adapters, samples, lambda: (torch.randn(features, 768), caption()))
    return [
        Case(
            "BLIP-base",
            f"{per_task}, {side} x {side} pixels",
            Network(modules, whole, stream),
            adapters,
            pictures,
        ),
        Case(
            "BLIP-base, decoder only",
            f"{per_task}, {features} features",
            Network(modules, decoder, stream),
            adapters,
            seen,
        ),
    ]


CASES: dict[str, Callable[[str, bool], list[Case]]] = {
    "sd15": sd15,
    "t5-base": lambda device, quick: t5("base", device, quick),
    "t5-large": lambda device, quick: t5("large", device, quick),
    "blip": blip,
}


def t5_encoder(samples: int, tokens: int, device: str) -> Case:
    """The encoder of T5-base, LoRAs of rank 8 on q and v."""
    from transformers import T5Config, T5EncoderModel

    shape = T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12, use_cache=False)
    model = built(lambda: T5EncoderModel(shape), device)
    adapters = loras(model, 2, 8, lambda path: path.endswith((".q", ".v")))
    network = Network(
        dict(model.named_modules()), lambda rows: model(*columns(rows, device)).last_hidden_state
    )
    tasks = own_tasks(adapters, samples, lambda: (torch.randint(2, 32000, (tokens,)),))
    return Case(
        "T5-base encoder", f"2 x {samples} samples, {tokens} tokens", network, adapters, tasks
    )


def small_unet(samples: int, side: int, width: int, device: str) -> Case:
    """A UNet of SD1.5's kind with 3 levels of 1, 2 and 4 times `width` channels; LoRAs of rank 8 on
    all of its attentions.
    """
    from diffusers import UNet2DConditionModel

    model = built(
        lambda: UNet2DConditionModel(
            sample_size=side,
            block_out_channels=(width, 2 * width, 4 * width),
            layers_per_block=1,
            cross_attention_dim=256,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        ),
        device,
    )
    adapters = loras(model, 2, 8, lambda path: ".attentions." in path)
    make = lambda: (torch.randn(4, side, side), torch.randint(0, 1000, ()), torch.randn(77, 256))  # noqa: E731
    network = Network(
        dict(model.named_modules()),
        lambda rows: model(*columns(rows, device)).sample,
        lambda path: "text" if path.endswith(("attn2.to_k", "attn2.to_v")) else "image",
    )
    return Case(
        f"small UNet, {width} channels",
        f"2 x {samples} samples, {side} x {side} latents",
        network,
        adapters,
        own_tasks(adapters, samples, make),
    )


class Block(nn.Module):
    """A transformer layer."""

    def __init__(self, width: int):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.layer_norm(x, x.shape[-1:])
        x = x + self.o(nn.functional.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h)))
        return x + self.down(nn.functional.gelu(self.up(nn.functional.layer_norm(x, x.shape[-1:]))))


def transformer(samples: int, adapters: int, rank: int, width: int, device: str) -> Case:
    """Four transformer layers, LoRAs on all of their weights, 64 tokens a sample."""
    model = built(lambda: nn.Sequential(*(Block(width) for _ in range(4))), device)
    worn = loras(model, adapters, rank, lambda path: True)
    network = Network(dict(model.named_modules()), lambda rows: model(*columns(rows, device)))
    tasks = own_tasks(worn, samples, lambda: (torch.randn(64, width),))
    return Case("transformer", f"{adapters} x {samples} samples", network, worn, tasks)
