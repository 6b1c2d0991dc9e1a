"""What fits on which card: `python -m benchmarks.memory` counts, and writes results/memory.json.

The real models are built on torch's meta device, where tensors have sizes and no numbers. A sample
runs through each, pauses at every layer that LoRAs change, and what it holds there is counted by
the code that parks rows in a merge. `memory.share_out` then decides for each card as the node
would.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from iteris_core import Adapter, LowRankDelta, MergeConfig, Network
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.lora_use import LoraUse
from iteris_core.diffusion.samples import SampleSpec, make_samples, tasks_of
from iteris_core.engines.layer_sums import layer_bytes
from iteris_core.engines.shared_inputs import Readers
from iteris_core.files.families import FAMILIES
from iteris_core.memory import LayerBytes, Room, share_out
from iteris_core.rows import parking as parking_module
from iteris_core.rows.lockstep import pause, run_in_lockstep
from iteris_core.rows.parking import HostMemory, Parking
from iteris_core.rows.wearing import layer_hooks

from .pictures_models import SDXL_UNET
from .results import RESULTS, Table, command_of, machine, write

CARDS = (6, 8, 12, 16, 24)  # GiB
NOT_FREE = 0.6 * 2**30  # of a card, which the driver, PyTorch and the screen take
LORAS = (2, 4, 8)
MOST_SAMPLES = 16  # of a call, as in nodes/host/diffusion_model.py
ROWS = 2  # of a sample
HALF = 2  # bytes
PCIE = 12e9  # bytes a second between device and host that a card of these years really copies
WAN_FRAMES = 3  # in latents, of the 9 that a merge measures


def samples_of(family: str, resolution: int, loras: int) -> tuple[list[SampleSpec], Calibration]:
    """Return the samples of a merge, and their calibration."""
    calibration = Calibration(resolution=resolution).for_family(FAMILIES[family])
    uses = [
        LoraUse(
            name=f"lora{k}",
            file=None,
            sha256="",
            strength_model=1.0,
            strength_clip=1.0,
            prompts=(f"a photo of <s{k}> dog",),
        )
        for k in range(loras)
    ]
    return make_samples(uses, calibration, None), calibration


@dataclass(frozen=True)
class Model:
    """A model in half precision on torch's meta device, what a call reads, and LoRAs' layers."""

    module: nn.Module
    inputs: Callable[[int], Mapping[str, Any]]
    paths: Sequence[str]


@dataclass(frozen=True)
class Case:
    """A family at a resolution.

    Args:
        name: Name in the tables.
        family: Name in `FAMILIES`, which knows the guidance.
        resolution: Side of a picture in pixels.
        factor: ``memory_usage_factor`` of ComfyUI's class, in its ``supported_models.py``.
        make: Resolution -> the model.
        weight_bytes: Bytes of one weight.
        frames: Latent frames of a sample.
    """

    name: str
    family: str
    resolution: int
    factor: float
    make: Callable[[int], Model]
    weight_bytes: int = HALF
    frames: int = 1

    def formula(self, samples: int) -> float:
        """Return what ComfyUI's ``memory_required`` asks for, with PyTorch's attention."""
        area = ROWS * samples * self.frames * (self.resolution // 8) ** 2
        return area * HALF * 0.01 * self.factor * 2**20

    def samples(self, loras: int) -> int:
        return len(samples_of(self.family, self.resolution, loras)[0])

    def tasks(self, loras: int) -> int:
        samples, _ = samples_of(self.family, self.resolution, loras)
        return len(tasks_of(samples))


@dataclass(frozen=True)
class Counted:
    """What was counted of a case.

    Args:
        case: The case.
        model: Bytes of the whole model.
        at_layers: Bytes that one sample holds while it waits, by layer.
        modules: The model's modules.
        copied: Bytes that one sample may take on the device -> bytes of it that are copied.
    """

    case: Case
    model: int
    at_layers: Mapping[str, int]
    modules: Mapping[str, nn.Module]
    copied: Callable[[int], int]

    @property
    def widest(self) -> int:
        return max(self.at_layers.values())

    def layers(self, loras: int) -> Mapping[str, LayerBytes]:
        """Bytes that each layer takes on a card for games, whose sums and factors are in float32."""
        deltas = {}
        for path in self.at_layers:
            d_out, d_in = self.modules[path].weight.flatten(1).shape
            deltas[path] = LowRankDelta(torch.zeros(d_out, 1), torch.zeros(1, d_in))
        adapters = [Adapter("lora", deltas)]
        tasks = self.case.tasks(loras)
        slow = mock.patch("iteris_core.devices.has_slow_float64", lambda device: True)
        coarse = mock.patch("iteris_core.engines.layer_sums.in_float32", lambda *_: True)
        with slow, coarse:
            return layer_bytes(self.modules, adapters, tasks, MergeConfig(), torch.device("cpu"))

    def room(self, card: float, loras: int) -> Room:
        """Return how the node shares out a card of so many GiB."""
        return share_out(
            self.case.formula,
            self.case.samples(loras),
            MOST_SAMPLES,
            card * 2**30 - NOT_FREE - self.model,
            LayerBytes.most(self.layers(loras).values()),
        )

    def copied_in(self, room: Room, loras: int) -> int:
        """Return the bytes of waiting rows that a merge copies, out and back."""
        samples = self.case.samples(loras)
        fits = samples * self.widest <= room.waiting_bytes
        return 0 if fits else samples * self.copied(room.waiting_bytes // samples)


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        answer = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, answer)
        return answer

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.empty_like, ctx.saved_tensors[:3]))


def flash_attention() -> AbstractContextManager[Any]:
    """Let attention hold its output alone, as the kernels on a card do; and for a gradient what it
    has read, too, but no products of tokens.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        return _FlashAttention.apply(query, key, value)

    return mock.patch("torch.nn.functional.scaled_dot_product_attention", attend)


class Nowhere(HostMemory):
    """Contents that have no numbers, which wait nowhere."""

    def write(self, storage: torch.UntypedStorage) -> Tensor:
        return torch.empty(storage.nbytes(), dtype=torch.uint8, device="meta")

    def read(self, content: Tensor, storage: torch.UntypedStorage) -> None:
        storage.resize_(content.numel())


def count(case: Case) -> Counted:
    """Count a case on torch's meta device."""
    model = case.make(case.resolution)
    modules = dict(model.module.named_modules())
    read = model.inputs(ROWS)
    tensors = [value for value in tree_leaves(read) if isinstance(value, Tensor)]
    network = Network(modules, lambda rows: model.module(**read, return_dict=False))

    def swept(budget: int, smallest: int) -> tuple[Mapping[str, int], int]:
        parking = Parking(modules.values(), budget=budget, smallest=smallest)
        parking.store = Nowhere()
        parking.keep(*tensors)
        is_first = Readers(network).note
        held = {}

        def at_layer(path: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            if is_first(path, module, x):
                pause(path)
            return y

        def waits(path: str) -> None:
            held[path] = parking.staying_bytes

        hooks = layer_hooks({path: modules[path] for path in model.paths}, at_layer)
        emptied = mock.patch.object(parking_module, "_EMPTIED", {"meta"})
        with torch.no_grad(), torch.device("meta"), flash_attention(), emptied, hooks:
            run_in_lockstep([partial(network.forward, tensors)], waits, parking)
        return held, parking.copied_bytes

    def copied(budget: int) -> int:
        return swept(budget, 1 << 16)[1]

    at_layers, _ = swept(sys.maxsize, 1)
    size = sum(weight.numel() for weight in model.module.parameters()) * case.weight_bytes
    return Counted(case, size, at_layers, modules, copied)


def built(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make().to(torch.half).eval().requires_grad_(False)


def half(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.half, device="meta")


def layers(module: nn.Module, within: str, without: str = "nothing") -> list[str]:
    return [
        path
        for path, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and within in path and without not in path
    ]


def unet(resolution: int, shape: Mapping[str, Any], added: Mapping[str, int]) -> Model:
    """A UNet of Stable Diffusion; LoRAs on what kohya trains by default."""
    from diffusers import UNet2DConditionModel

    model = built(lambda: UNet2DConditionModel(**shape))

    def inputs(rows: int) -> dict[str, Any]:
        return {
            "sample": half(rows, 4, resolution // 8, resolution // 8),
            "timestep": half(rows),
            "encoder_hidden_states": half(rows, 77, shape["cross_attention_dim"]),
            "added_cond_kwargs": {name: half(rows, width) for name, width in added.items()},
        }

    return Model(model, inputs, layers(model, ".attentions."))


def sd15(resolution: int, **smaller: Any) -> Model:
    return unet(resolution, {"cross_attention_dim": 768, "attention_head_dim": 8, **smaller}, {})


sdxl = partial(unet, shape=SDXL_UNET, added={"text_embeds": 1280, "time_ids": 6})


def flux(resolution: int) -> Model:
    """Flux.1's transformer with texts of 256 tokens; LoRAs on all but the modulations."""
    from diffusers import FluxTransformer2DModel

    model = built(lambda: FluxTransformer2DModel(guidance_embeds=True))
    tokens = (resolution // 16) ** 2

    def inputs(rows: int) -> dict[str, Any]:
        return {
            "hidden_states": half(rows, tokens, 64),
            "encoder_hidden_states": half(rows, 256, 4096),
            "pooled_projections": half(rows, 768),
            "timestep": half(rows),
            "guidance": half(rows),
            "img_ids": half(tokens, 3),
            "txt_ids": half(256, 3),
        }

    return Model(model, inputs, layers(model, "transformer_blocks.", "norm"))


def qwen(resolution: int) -> Model:
    """Qwen-Image's transformer with texts of 64 tokens; LoRAs on all but the modulations."""
    from diffusers import QwenImageTransformer2DModel

    model = built(QwenImageTransformer2DModel)
    side = resolution // 16

    def inputs(rows: int) -> dict[str, Any]:
        return {
            "hidden_states": half(rows, side * side, 64),
            "encoder_hidden_states": half(rows, 64, 3584),
            "timestep": half(rows),
            "img_shapes": [[(1, side, side)]] * rows,
        }

    return Model(model, inputs, layers(model, "transformer_blocks.", "_mod"))


def wan(resolution: int) -> Model:
    """The transformer of Wan with 14B, three latent frames and texts of 512 tokens."""
    from diffusers import WanTransformer3DModel

    model = built(WanTransformer3DModel)
    side = resolution // 8

    def inputs(rows: int) -> dict[str, Any]:
        return {
            "hidden_states": half(rows, 16, WAN_FRAMES, side, side),
            "encoder_hidden_states": half(rows, 512, 4096),
            "timestep": half(rows),
        }

    return Model(model, inputs, layers(model, "blocks."))


def z_image(resolution: int) -> Model:
    """Z-Image's transformer with texts of 64 tokens; LoRAs on all but the modulations."""
    from diffusers import ZImageTransformer2DModel

    model = built(ZImageTransformer2DModel)
    side = resolution // 8

    def inputs(rows: int) -> dict[str, Any]:
        return {
            "x": [half(16, 1, side, side)] * rows,
            "cap_feats": [half(64, 2560)] * rows,
            "t": half(rows),
        }

    return Model(model, inputs, layers(model, "layers.", "adaLN"))


CASES = (
    Case("SD1.5", "SD1.5", 512, 1.0, sd15),
    Case("SDXL", "SDXL", 512, 0.8, sdxl),
    Case("SDXL", "SDXL", 768, 0.8, sdxl),
    Case("SDXL", "SDXL", 1024, 0.8, sdxl),
    Case("Flux.1, fp8", "Flux.1", 512, 3.1, flux, 1),
    Case("Flux.1, fp8", "Flux.1", 1024, 3.1, flux, 1),
    Case("Qwen-Image, fp8", "Qwen-Image", 512, 1.8, qwen, 1),
    Case("Z-Image", "Z-Image", 512, 1.7, z_image),
    Case("Wan 14B, fp8", "Wan", 384, 5120 / 2222, wan, 1, WAN_FRAMES),
)


def gb(size: float) -> str:
    return f"{size / 1e9:.1f}"


def verdict(counted: Counted, card: float, loras: int) -> str:
    """Return what happens on a card, in a few words."""
    room = counted.room(card, loras)
    if room.missing > counted.model:
        return "no"
    copied = counted.copied_in(room, loras)
    where = f"{copied / 1e9:.0f} GB are copied, {copied / PCIE:.0f} s" if copied else "fits"
    if room.missing:
        where = f"model {gb(room.missing)} GB too large, {where}"
    return where


def card_row(counted: Counted, loras: int) -> list[str]:
    case = counted.case
    whole = case.samples(loras) * counted.widest
    layer = max(layer.beside(0) for layer in counted.layers(loras).values())
    return [
        case.name,
        f"{case.resolution}",
        f"{loras}",
        f"{ROWS * case.samples(loras)}",
        gb(whole),
        gb(layer),
        *(verdict(counted, card, loras) for card in CARDS),
    ]


TITLE = (
    f"what a card of so many GiB does, {NOT_FREE / 2**30:.1f} of them not free; waits are copies at "
    f"{PCIE / 1e9:.0f} GB a second"
)


def table_of(counts: Sequence[Counted]) -> Table:
    """Return what the node decides for each card."""
    heads = ["model", "pixels", "LoRAs", "rows", "they hold, GB", "the widest layer, GB"]
    heads += [f"{n} GiB" for n in CARDS]
    return Table(TITLE, heads, [card_row(counted, n) for counted in counts for n in LORAS])


def main() -> None:
    torch.set_num_threads(1)
    counts = []
    for case in CASES:
        print(f"{case.name} {case.resolution}", file=sys.stderr, flush=True)
        counts.append(count(case))
    table = table_of(counts)
    print(table)
    write([table], RESULTS / "memory.json", command_of("memory"), machine())


if __name__ == "__main__":
    main()
