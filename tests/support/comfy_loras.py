"""Models with LoRAs, and what they draw, by ComfyUI's own classes, loader and sampler."""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.sample
import comfy.sd
import comfy.utils
import torch
import toy
from iteris_pack.nodes.host.diffusion_model import ComfyModel
from torch import Tensor, nn

from iteris_core import Adapter, MergeConfig
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.loaded_loras import LoadedLora
from iteris_core.diffusion.lora_use import LoraUse
from iteris_core.diffusion.model import DenoiserRow, Encoded
from iteris_core.diffusion.sampling import noise
from iteris_core.rows.wearing import wearing

SMALL = Calibration(
    trajectories=4,
    sampling_steps=4,
    resolution=128,
    cfg=3.0,
    preserve_captions=("a street", "a tree", "a red chair in a garden"),
)
EXACT = MergeConfig(
    output_dtype=torch.float32,
    target="delta",
    unit_gain=1,
    tokens_per_dimension=None,
)
CAPTION = "a photo of sks dog on a beach"
Tensors = dict[str, Tensor]


# Spelling -> how its keys begin, best first. "kohya" has fused weights whole, the other in parts.
BEGINNINGS = {
    "kohya": ("lora_unet_", "lora_te1_", "lora_te2_", "lora_te_"),
    "diffusers": ("transformer.", "unet.", "text_encoder.", "text_encoder_2.", "diffusion_model."),
}


def lora_of(host: ComfyModel, seed: int, spelling: str, rank: int = 2) -> Tensors:
    """Return random factors for every layer; all spellings of a seed describe the same change."""
    modules = dict(host.model.model.named_modules()) | dict(
        host.clip.cond_stage_model.named_modules()
    )
    tensors: Tensors = {}
    for weight, bases in bases_of(host).items():
        module = modules.get(weight.removesuffix(".weight"))
        if not isinstance(module, (nn.Linear, nn.Conv3d)) or not may_change(weight, host):
            continue
        generator = torch.Generator().manual_seed(seed * 100_003 + hash_of(weight))
        if isinstance(module, nn.Conv3d):
            kernel = module.kernel_size
            width = module.in_channels * math.prod(kernel)
            up, down = factors(module.out_channels, width, rank, generator)
            down = down.view(rank, -1, *kernel)
            add(tensors, bases[()], spelling, up[..., None, None, None], down)
            continue
        rows = without_overlaps({where: of for where, of in bases.items() if where}, module)
        if not rows:
            up, down = factors(module.out_features, module.in_features, rank, generator)
            add(tensors, bases[()], spelling, up, down)
            continue
        ups, downs = [], []
        for where, of_part in rows.items():
            offset, *function = where
            start, length = (0, module.out_features) if offset is None else offset[1:]
            up, down = factors(length, module.in_features, rank, generator)
            if spelling != "kohya":
                add(tensors, of_part, spelling, up, down)
            placed = torch.zeros(module.out_features, rank)
            placed[start : start + length] = function[0](up) if function else up
            ups.append(placed)
            downs.append(down)
        if spelling == "kohya":
            add(tensors, bases[()], spelling, torch.cat(ups, 1), torch.cat(downs))
    return tensors


def bases_of(host: ComfyModel) -> dict[str, dict[Any, list[str]]]:
    """Return weight -> (offset, function) of a part, () for the whole -> the host's bases for it."""
    table = comfy.lora.model_lora_keys_unet(host.model.model, {})
    table = comfy.lora.model_lora_keys_clip(host.clip.cond_stage_model, table)
    names = comfy.utils.unet_to_diffusers(host.model.model.model_config.unet_config)
    of_diffusers = {
        f"unet.{name.removesuffix('.weight')}": f"diffusion_model.{weight}"
        for name, weight in names.items()
    }
    found: dict[str, dict[Any, list[str]]] = {}
    for base, entry in [*table.items(), *of_diffusers.items()]:
        weight, *where = (entry,) if isinstance(entry, str) else entry
        if weight.endswith(".weight"):
            found.setdefault(weight, {}).setdefault(tuple(where), []).append(base)
    return found


def factors(d_out: int, d_in: int, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    up = torch.randn(d_out, rank, generator=generator) * 0.3 / rank**0.5
    return up, torch.randn(rank, d_in, generator=generator) / d_in**0.5


def may_change(weight: str, host: ComfyModel) -> bool:
    """Whether LoRAs change a weight: no T5, and nothing that the model does not read of a text."""
    if weight.startswith("diffusion_model."):
        return not re.search(r"\.nerf_|\.vision_in\.", weight)
    return host.texts.is_swept(weight) and "layers." in weight


def without_overlaps(rows: Mapping[Any, list[str]], module: nn.Linear) -> dict[Any, list[str]]:
    """Return parts that do not overlap, the smallest first: the host's table names some rows twice."""
    taken = torch.zeros(module.out_features, dtype=torch.bool)
    chosen = {}
    for where in sorted(rows, key=lambda where: math.inf if where[0] is None else where[0][2]):
        start, length = (0, len(taken)) if where[0] is None else where[0][1:]
        if start + length <= len(taken) and not taken[start : start + length].any():
            taken[start : start + length] = True
            chosen[where] = rows[where]
    return chosen


def add(tensors: Tensors, bases: list[str], spelling: str, up: Tensor, down: Tensor) -> None:
    starts = BEGINNINGS[spelling]
    base = next((base for start in starts for base in bases if base.startswith(start)), bases[0])
    if spelling == "kohya":
        tensors[f"{base}.lora_up.weight"] = up
        tensors[f"{base}.lora_down.weight"] = down
        tensors[f"{base}.alpha"] = torch.tensor(float(down.shape[0]))
        return
    tensors[f"{base}.lora_B.weight"] = up
    tensors[f"{base}.lora_A.weight"] = down


def hash_of(text: str) -> int:
    return sum(i * ord(letter) for i, letter in enumerate(text, 1)) % 100_003


def loaded(
    host: ComfyModel, name: str, tensors: Tensors, prompt: str, strength: float = 1.0, **more: Any
) -> LoadedLora:
    use = LoraUse(
        name=name,
        file=f"{name}.safetensors",
        sha256=name,
        strength_model=strength,
        strength_clip=strength,
        prompts=(prompt,),
        **more,
    )
    return LoadedLora(use, host.adapter(use, tensors, {}))


class Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextlib.contextmanager
def messages() -> Iterator[list[str]]:
    handler = Messages()
    logging.getLogger().addHandler(handler)
    try:
        yield handler.texts
    finally:
        logging.getLogger().removeHandler(handler)


def stock(model: Any, clip: Any, tensors: Tensors, start: Any = None) -> ComfyModel:
    """Return the model with a LoRA that the host's own loader has put on it."""
    with messages() as texts:
        patched = comfy.sd.load_lora_for_models(model, clip, dict(tensors), 1.0, 1.0)
    lost = [text for text in texts if "not loaded" in text.lower()]
    assert not lost, lost[:3]
    return ComfyModel(*patched, start=start)


def prompt_of(host: ComfyModel, caption: str, adapter: Adapter | None = None) -> Encoded:
    """Return a caption as rows that wear an adapter encode it."""
    rows = host.tokenize(caption)
    outputs: list[Any] = []
    if rows:
        with host.text_encoder() as network:
            worn = [] if adapter is None else [adapter.split(host.is_text_module)[0]]
            with wearing(network.modules, worn, [{0: 1.0} if worn else {}] * len(rows)):
                outputs = list(network.forward(rows))
    return host.encoded(caption, outputs)


def shape_of(host: ComfyModel, resolution: int = SMALL.resolution) -> tuple[int, ...]:
    return host.latent_shape(resolution, host.family.measured_frames)


def picture_of(host: ComfyModel, prompt: Encoded, adapter: Adapter | None = None) -> Tensor:
    """Return the clean latents that rows that wear an adapter estimate."""
    shape = shape_of(host)
    sigmas = host.sigmas(4).float()
    with host.denoiser(4) as network:
        worn = [] if adapter is None else [adapter.split(host.is_text_module)[1]]
        rows = [
            DenoiserRow(host.start(noise(shape, seed)[None], sigmas[seed])[0], sigmas[seed], prompt)
            for seed in (0, 2)
        ]
        mixes = [{0: 1.0} if worn else {}] * 2
        with wearing(network.modules, worn, mixes, folds_rows=network.folds_rows):
            return network.forward(rows)


def seen(host: ComfyModel, adapter: Adapter | None = None) -> Tensor:
    """Return what a model draws of a caption; with an adapter, as its hooked rows draw."""
    return picture_of(host, prompt_of(host, CAPTION, adapter), adapter)


def same_tensors(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(tensor.cpu(), b[name].cpu()) for name, tensor in a.items()
    )


def largest_difference(a: Adapter, b: Adapter) -> float:
    return toy.largest_error(toy.dense(a), toy.dense(b))
