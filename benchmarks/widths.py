"""Merges at the true widths of large models: `python -m benchmarks.widths COMFYUI_FOLDER` builds a few
blocks of each in ComfyUI's own classes, in bfloat16 and with weights in fp8, merges two random LoRAs
once, and once more with rows in float32 and solves in float64, and writes results/widths.json.

A CPU runs this in hours; `--only` runs one model. Weights are random, so the figures say what
time and memory a layer of these widths takes, and how much the precision moves its answer.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from iteris_core import Adapter, LowRankDelta, MergeConfig, Network, Sample, Task, merge
from iteris_core.engines.footprint import layer_bytes
from iteris_core.engines.measure import Measurement
from iteris_core.layers import layer_shapes

from .measure import PeakMemory
from .results import RESULTS, Table, command_of, machine, write

RANK = 16
SAMPLES = 2  # of each LoRA
SIDE = 32  # of latents
WORDS = 64  # tokens of a text
PRECISIONS = {"bf16": torch.bfloat16, "fp8 weights": torch.float8_e4m3fn}
Call = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]  # model, latents, times, text


@dataclass(frozen=True)
class Case:
    """A model.

    Args:
        make: Settings of ComfyUI's layers -> the model.
        latents: (channels, ...) of one row.
        text: Width of a text's tokens.
        call: Runs it.
        wanted: What the paths of target layers have in them.
    """

    make: Callable[[Mapping[str, Any]], nn.Module]
    latents: tuple[int, ...]
    text: int
    call: Call
    wanted: Sequence[str]


def sdxl(settings: Mapping[str, Any]) -> Any:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=320,
        num_res_blocks=[1, 1, 1],
        channel_mult=[1, 2, 4],
        transformer_depth=[0, 1, 1],
        transformer_depth_output=[0, 0, 1, 0, 1, 0],
        transformer_depth_middle=1,
        num_heads=-1,
        num_head_channels=64,
        use_spatial_transformer=True,
        use_linear_in_transformer=True,
        context_dim=2048,
        num_classes="sequential",
        adm_in_channels=2816,
        legacy=False,
        use_temporal_attention=False,
        **settings,
    )


def flux(settings: Mapping[str, Any]) -> Any:
    from comfy.ldm.flux.model import Flux

    return Flux(
        in_channels=16,
        out_channels=16,
        vec_in_dim=768,
        context_in_dim=4096,
        hidden_size=3072,
        mlp_ratio=4.0,
        num_heads=24,
        depth=1,
        depth_single_blocks=1,
        axes_dim=[16, 56, 56],
        theta=10000,
        patch_size=2,
        qkv_bias=True,
        guidance_embed=False,
        txt_ids_dims=[],
        **settings,
    )


def z_image(settings: Mapping[str, Any]) -> Any:
    from comfy.ldm.lumina.model import NextDiT

    return NextDiT(
        in_channels=16,
        dim=3840,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=30,
        n_kv_heads=30,
        multiple_of=256,
        ffn_dim_multiplier=8.0 / 3.0,
        qk_norm=True,
        cap_feat_dim=2560,
        axes_dims=[32, 48, 48],
        axes_lens=[1536, 512, 512],
        rope_theta=256.0,
        z_image_modulation=True,
        time_scale=1000.0,
        **settings,
    )


def qwen(settings: Mapping[str, Any]) -> Any:
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(num_layers=1, **settings)


CASES = {
    "SDXL": Case(
        sdxl,
        (4, SIDE, SIDE),
        2048,
        lambda model, x, t, text: model(x, 999 * t, text, y=x.new_zeros(len(x), 2816)),
        ("transformer_blocks.",),
    ),
    "Z-Image": Case(
        z_image,
        (16, SIDE, SIDE),
        2560,
        lambda model, x, t, text: model(x, t, text, WORDS),
        ("layers.",),
    ),
    "Qwen-Image": Case(
        qwen,
        (16, 1, SIDE, SIDE),
        3584,
        lambda model, x, t, text: model(x, t, text),
        ("transformer_blocks.",),
    ),
    "Flux": Case(
        flux,
        (16, SIDE, SIDE),
        4096,
        lambda model, x, t, text: model(x, t, text, y=x.new_zeros(len(x), 768)),
        ("double_blocks.", "single_blocks."),
    ),
}


def loras_of(model: nn.Module, case: Case) -> list[Adapter]:
    """Return two random LoRAs on the layers of the blocks, without the modulations."""
    chance = torch.Generator().manual_seed(1)
    shapes = {
        path: shape
        for path, shape in layer_shapes(dict(model.named_modules())).items()
        if any(part in path for part in case.wanted) and "mod" not in path
    }

    def delta(d_out: int, d_in: int) -> LowRankDelta:
        up = torch.randn(d_out, RANK, generator=chance) * 0.01
        return LowRankDelta(up, torch.randn(RANK, d_in, generator=chance) / d_in**0.5)

    return [Adapter(n, {path: delta(*shape) for path, shape in shapes.items()}) for n in "ab"]


def tasks_of(case: Case) -> list[Task]:
    chance = torch.Generator().manual_seed(2)

    def sample() -> Sample:
        x = torch.randn(case.latents, generator=chance)
        time = torch.rand((), generator=chance)
        return Sample((x, time, torch.randn(WORDS, case.text, generator=chance)))

    return [Task(n, [sample() for _ in range(SAMPLES)], {k: 1.0}) for k, n in enumerate("ab")]


@contextmanager
def solves_timed() -> Iterator[list[float]]:
    """Note the seconds of each layer's solve."""
    seconds: list[float] = []
    solve = Measurement.solve

    def timed(*args: Any) -> Any:
        start = time.perf_counter()
        solved = solve(*args)
        seconds.append(time.perf_counter() - start)
        return solved

    Measurement.solve = timed  # type: ignore[method-assign, assignment]
    try:
        yield seconds
    finally:
        Measurement.solve = solve  # type: ignore[method-assign]


@dataclass(frozen=True)
class Built:
    """A case that is built, with what is merged on it."""

    case: Case
    model: nn.Module
    adapters: list[Adapter]

    @classmethod
    def of(cls, case: Case, stored: torch.dtype) -> Built:
        """Build a case with random weights of a dtype."""
        import comfy.ops

        torch.manual_seed(0)
        settings = {"dtype": stored, "device": torch.device("cpu")}
        model = case.make({**settings, "operations": comfy.ops.manual_cast}).eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            drawn = torch.randn(parameter.shape) * 0.02
            parameter.copy_(drawn if parameter.ndim > 1 else 1 + drawn)
        return cls(case, model, loras_of(model, case))

    def forward(self, inputs: Sequence[Any], dtype: torch.dtype) -> Tensor:
        parts = zip(*inputs, strict=True)
        return self.case.call(self.model, *(torch.stack(list(part)).to(dtype) for part in parts))

    def merged(
        self, dtype: torch.dtype, **settings: Any
    ) -> tuple[Mapping[str, LowRankDelta], list[object]]:
        """Return a merge whose rows have a dtype, and what it took."""
        tasks = tasks_of(self.case)
        network = Network(dict(self.model.named_modules()), lambda rows: self.forward(rows, dtype))
        config = MergeConfig(samples_per_chunk=SAMPLES, **settings)
        device = torch.device("cpu")
        layers = layer_bytes(network.modules, self.adapters, len(tasks), config, device)
        room = max(layer.beside(0) for layer in layers.values())
        start = time.perf_counter()
        with torch.no_grad():
            for task in tasks:
                network.forward([sample.teacher for sample in task.samples] * 2)
        plain = time.perf_counter() - start
        with PeakMemory("cpu") as meter, solves_timed() as seconds:
            result = merge(network, self.adapters, tasks, config)
        told = [f"{plain:.1f}", f"{meter.seconds:.1f}", f"{sum(seconds):.1f}"]
        return result.adapter.deltas, [*told, f"{meter.growth / 1e9:.2f}", f"{room / 1e9:.2f}"]


def measured(case: Case, precision: str) -> list[object]:
    """Merge on one model; return a row of the table."""
    built = Built.of(case, PRECISIONS[precision])
    found, told = built.merged(torch.bfloat16)
    print(*told, file=sys.stderr, flush=True)
    exact, _ = built.merged(torch.float32, factorisation="float64")
    distances = [
        ((found[path].dense() - delta.dense()).norm() / delta.dense().norm()).item()
        for path, delta in exact.items()
    ]
    widest = max(delta.shape[1] for delta in exact.values())
    return [len(exact), widest, *told, f"{median(distances):.1e}", f"{max(distances):.1e}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("--only", choices=CASES, help="one model; the others stay as they are")
    parser.add_argument("--precision", choices=PRECISIONS, help="one of them")
    options = parser.parse_args()
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path.insert(0, str(options.comfyui))
    import comfy.options

    comfy.options.enable_args_parsing()
    torch.set_num_threads(1)
    columns = ["layers", "widest", "forward of its rows, s", "merge, s"]
    columns += ["of it solves, s", "memory, GB", "room by the estimate, GB"]
    columns += ["from float32, median", "largest"]
    for name in [options.only] if options.only else CASES:
        for precision in [options.precision] if options.precision else PRECISIONS:
            row = measured(CASES[name], precision)
            table = Table(f"{name}, {precision}: a few blocks, merged once", columns, [row])
            print(table, flush=True)
            arguments = ["COMFYUI_FOLDER", "--only", name, "--precision", precision]
            command = command_of("widths", arguments)
            write([table], RESULTS / "widths.json", command, machine())


if __name__ == "__main__":
    main()
