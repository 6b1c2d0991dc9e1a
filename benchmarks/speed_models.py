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
from iteris_core.memory import Room

os.environ.setdefault("HF_HUB_OFFLINE", "1")
SAMPLES_PER_CHUNK = 8


@dataclass(frozen=True)
class Case:
    """One merge to measure."""

    name: str
    size: str
    network: Network
    adapters: Sequence[Adapter]
    tasks: Sequence[Task]

    def sweep(self, **settings: Any) -> MergeResult:
        room = Room(SAMPLES_PER_CHUNK)
        config = MergeConfig(**settings)
        return merge(self.network, self.adapters, self.tasks, config, room=room)

    @torch.no_grad()
    def plain_forward(self) -> None:
        """Run the sweep's rows, teachers and students, in its chunks through the base model."""
        samples = [sample for task in self.tasks for sample in task.samples]
        for start in range(0, len(samples), SAMPLES_PER_CHUNK):
            part = samples[start : start + SAMPLES_PER_CHUNK]
            self.network.forward(
                [sample.teacher for sample in part] + [sample.student_reads for sample in part]
            )


def built(make: Callable[[], nn.Module], device: str = "cpu") -> nn.Module:
    """Return a model with random weights of 0.02, not by the library's slow initialisation."""
    with torch.device("meta"):
        model = make()
    model = model.to_empty(device=device).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.02)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    for name, buffer in model.named_buffers():
        assert name.endswith("position_ids"), name  # all that these libraries keep in buffers
        buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return model


def loras(model: nn.Module, count: int, rank: int, wanted: Callable[[str], bool]) -> list[Adapter]:
    """Return random LoRAs on all Linear and Conv2d layers whose path is wanted."""
    shapes = {
        path: tuple(layer.weight.flatten(1).shape)
        for path, layer in model.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and wanted(path)
    }

    def delta(d_out: int, d_in: int) -> LowRankDelta:
        return LowRankDelta(0.02 * torch.randn(d_out, rank), torch.randn(rank, d_in) / d_in**0.5)

    return [
        Adapter(f"lora{k}", {path: delta(*shape) for path, shape in shapes.items()})
        for k in range(count)
    ]


def case(
    name: str,
    model: nn.Module,
    forward: Callable[..., Tensor],
    adapters: Sequence[Adapter],
    make: Callable[[], tuple[Tensor, ...]],
    *,
    samples: int,
    stream: Callable[[str], str] = lambda path: "tokens",
    preserve: bool = False,
) -> Case:
    """Return a merge of adapters on so many random samples each.

    Args:
        name: Name in the tables.
        model: The model.
        forward: Function that runs it on what rows read, stacked thing by thing.
        adapters: The adapters.
        make: Function that makes what one row reads.
        samples: Samples of each task.
        stream: Path of a layer -> the stream that it reads.
        preserve: Whether there is a preserve task, too.
    """
    device = next(model.parameters()).device

    def run(rows: Sequence[Any]) -> Tensor:
        return forward(*(torch.stack(part).to(device) for part in zip(*rows, strict=True)))

    mixes = [{k: 1.0} for k in range(len(adapters))] + ([{}] if preserve else [])
    tasks = [
        Task(f"task {k}", [Sample(make()) for _ in range(samples)], mix)
        for k, mix in enumerate(mixes)
    ]
    shapes = ", ".join("x".join(map(str, part.shape)) for part in make() if part.shape)
    size = f"{len(tasks)} x {samples} samples of {shapes}; {len(adapters[0].deltas)} layers"
    return Case(name, size, Network(dict(model.named_modules()), run, stream), adapters, tasks)


def unet_case(name: str, unet: Any, side: int, samples: int, rank: int, *, preserve: bool) -> Case:
    """Return a merge of two LoRAs on all attention blocks of a UNet."""
    width = unet.config.cross_attention_dim

    def make() -> tuple[Tensor, ...]:
        return torch.randn(4, side, side), torch.randint(0, 1000, ()), torch.randn(77, width)

    def stream(path: str) -> str:
        return "text" if path.endswith(("attn2.to_k", "attn2.to_v")) else "image"

    adapters = loras(unet, 2, rank, lambda path: ".attentions." in path)
    run = lambda *read: unet(*read).sample  # noqa: E731
    return case(name, unet, run, adapters, make, samples=samples, stream=stream, preserve=preserve)


def sd15(device: str) -> list[Case]:
    """SD1.5's text encoder (77 tokens) and UNet; LoRAs as kohya's, and a preserve task."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    side, samples = (64, 16) if device == "cuda" else (32, 2)
    # what Stable Diffusion 1.5 has: openai/clip-vit-large-patch14's text encoder
    shape = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    clip = built(lambda: CLIPTextModel(shape), device)
    names = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    unet = built(
        lambda: UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8), device
    )
    return [
        case(
            "SD1.5 CLIP",
            clip,
            lambda ids: clip(ids).last_hidden_state,
            loras(clip, 2, 16, lambda path: path.endswith(names)),
            lambda: (torch.randint(1000, 40000, (77,)),),
            samples=4 * samples,
            preserve=True,
        ),
        unet_case("SD1.5 UNet", unet, side, samples, 16, preserve=True),
    ]


def _is_q_or_v(path: str) -> bool:
    return path.endswith((".q", ".v"))


def t5(device: str) -> list[Case]:
    """T5-base, LoRAs of rank 8 on every q and v, decoder inputs teacher-forced."""
    from transformers import T5Config, T5Model

    shape = T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12, use_cache=False)
    model = built(lambda: T5Model(shape), device)
    return [
        case(
            "T5-base",
            model,
            lambda read, written: (
                model(input_ids=read, decoder_input_ids=written, use_cache=False).last_hidden_state
            ),
            loras(model, 2, 8, _is_q_or_v),
            lambda: (torch.randint(2, 32000, (64,)), torch.randint(2, 32000, (8,))),
            samples=16,
            stream=lambda path: path.split(".")[0],
        )
    ]


def blip(device: str) -> list[Case]:
    """BLIP-base captioning, and its text decoder alone on picture features made before."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    side = 384
    shape = BlipConfig(text_config={"use_cache": False}, vision_config={"image_size": side})
    model = built(lambda: BlipForConditionalGeneration(shape), device)
    names = ("query", "key", "value")
    adapters = loras(model, 2, 16, lambda path: "text_decoder" in path and path.endswith(names))
    caption = lambda: torch.randint(1000, 30000, (32,))  # noqa: E731
    features = (side // 16) ** 2 + 1

    def stream(path: str) -> str:
        reads_image = "crossattention" in path and path.endswith(("key", "value"))
        return "image" if reads_image else "text"

    return [
        case(
            "BLIP-base",
            model,
            lambda pixels, ids: model(pixel_values=pixels, input_ids=ids).logits,
            adapters,
            lambda: (torch.randn(3, side, side), caption()),
            samples=3,
            stream=stream,
        ),
        case(
            "BLIP-base, decoder only",
            model,
            lambda seen, ids: model.text_decoder(ids, encoder_hidden_states=seen).logits,
            adapters,
            lambda: (torch.randn(features, 768), caption()),
            samples=3,
            stream=stream,
        ),
    ]


CASES: dict[str, Callable[[str], list[Case]]] = {"sd15": sd15, "t5-base": t5, "blip": blip}


def t5_encoder(device: str) -> Case:
    """The encoder of T5-base, LoRAs of rank 8 on q and v."""
    from transformers import T5Config, T5EncoderModel

    shape = T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12, use_cache=False)
    model = built(lambda: T5EncoderModel(shape), device)
    return case(
        "T5-base encoder",
        model,
        lambda read: model(read).last_hidden_state,
        loras(model, 2, 8, _is_q_or_v),
        lambda: (torch.randint(2, 32000, (128,)),),
        samples=12,
    )


def small_unet(device: str) -> Case:
    """A UNet of SD1.5's kind with 3 levels of 64, 128 and 256 channels; LoRAs of rank 8."""
    from diffusers import UNet2DConditionModel

    unet = built(
        lambda: UNet2DConditionModel(
            block_out_channels=(64, 128, 256),
            layers_per_block=1,
            cross_attention_dim=256,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        ),
        device,
    )
    return unet_case("small UNet", unet, 32, 8, 8, preserve=False)
