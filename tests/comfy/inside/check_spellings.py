"""LoRA files in the names that trainers write, for the family CHECKED: read whole, and as ComfyUI's own
loader reads them.

The names come from diffusers' own classes and from ComfyUI's, not from the table of ComfyUI's loader.
What ComfyUI does not read is compared with the same change in names that it reads.
"""

import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.lora_convert
import diffusers
import pytest
import tiny_hosts
import torch
from comfy_loras import loaded
from iteris_pack.nodes.host.diffusion_model import ComfyModel
from iteris_pack.nodes.keys import UNET_PREFIX, HostWeight
from torch import Tensor, nn

from iteris_core import LowRankDelta

NAME = os.environ["CHECKED"]
ROUNDING = 1e-5
Tensors = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]  # module -> shape of its weight
_TWO = {"num_layers": 2, "num_attention_heads": 2}
_OF_128 = {**_TWO, "attention_head_dim": 128}
_READS = {"joint_attention_dim": tiny_hosts.WIDTH}
_FLUX = {**_OF_128, **_READS, "num_single_layers": 2}
_WAN = {**_OF_128, "ffn_dim": 512, "text_dim": tiny_hosts.WIDTH}
_COSMOS = {**_OF_128, "in_channels": 16, "adaln_lora_dim": 32, "extra_pos_embed_type": None}
# Family -> diffusers' class, with the sizes of the tiny model.
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "SD1.5": (
        "UNet2DConditionModel",
        tiny_hosts.table("""block_out_channels=(32,64) layers_per_block=1
            down_block_types=('DownBlock2D','CrossAttnDownBlock2D')
            up_block_types=('CrossAttnUpBlock2D','UpBlock2D') attention_head_dim=4
            cross_attention_dim=24"""),
    ),
    "Flux.1": (
        "FluxTransformer2DModel",
        {**_FLUX, "in_channels": 64, "pooled_projection_dim": 24, "guidance_embeds": True},
    ),
    "Flux.2": ("Flux2Transformer2DModel", {**_FLUX, "in_channels": 128}),
    "Chroma": (
        "ChromaTransformer2DModel",
        _FLUX
        | tiny_hosts.table("""in_channels=64 approximator_num_channels=64 approximator_hidden_dim=128
            approximator_layers=2"""),
    ),
    "SD3.5": (
        "SD3Transformer2DModel",
        _TWO
        | tiny_hosts.table("""attention_head_dim=64 caption_projection_dim=128 pooled_projection_dim=48
            dual_attention_layers=(0,) qk_norm='rms_norm'"""),
    ),
    "Z-Image": (
        "ZImageTransformer2DModel",
        tiny_hosts.table(
            "dim=256 n_layers=2 n_refiner_layers=2 n_heads=2 n_kv_heads=2 cap_feat_dim=WIDTH"
        ),
    ),
    "Qwen-Image": ("QwenImageTransformer2DModel", {**_TWO, **_READS}),
    "AuraFlow": (
        "AuraFlowTransformer2DModel",
        _READS
        | tiny_hosts.table("""num_mmdit_layers=1 num_single_dit_layers=1 attention_head_dim=128 num_attention_heads=2
            caption_projection_dim=256"""),
    ),
    "Wan": ("WanTransformer3DModel", _WAN),
    "Wan 2.1 I2V": (
        "WanTransformer3DModel",
        {**_WAN, "in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 256},
    ),
    "Cosmos Predict2": (
        "CosmosTransformer3DModel",
        {**_COSMOS, "text_embed_dim": tiny_hosts.WIDTH},
    ),
    "LTX-Video": (
        "LTXVideoTransformer3DModel",
        tiny_hosts.table(
            "num_layers=2 num_attention_heads=4 attention_head_dim=32 cross_attention_dim=128 caption_channels=WIDTH"
        ),
    ),
    "Anima": ("CosmosTransformer3DModel", {**_COSMOS, "text_embed_dim": 1024}),
    "ERNIE-Image": (
        "ErnieImageTransformer2DModel",
        {**_TWO, "hidden_size": 256, "ffn_hidden_size": 512, "text_in_dim": tiny_hosts.WIDTH},
    ),
    "LongCat-Image": ("LongCatImageTransformer2DModel", {**_FLUX, "in_channels": 64}),
    # whose trainers write the model's own names, or whose other names only ComfyUI's table has
    "HunyuanVideo": ("", {}),
    "Lumina 2": ("", {}),
    "Chroma Radiance": ("", {}),
}
# Family -> files. Those of which diffusers has another class than ComfyUI have twice as many.
FILES = {"SD1.5": 40, "HunyuanVideo": 36, "Lumina 2": 36, "Chroma Radiance": 36}


_OTHER_SIZES = {682: 768}  # of Z-Image's feed forward layers, which ComfyUI rounds
# Family -> modules of which the small class of ComfyUI has other sizes than diffusers'.
_OF_OTHER_SIZES = {"AuraFlow": "^time_step_proj|norm", "Z-Image": "^t_embedder"}


# How names begin in the files of trainers. "_": with underscores in the place of points.
POINTS = ("", "transformer.", "diffusion_model.", "base_model.model.")
OWN = (*POINTS, "base_model.model.transformer.", "lora_unet_", "lora_transformer_", "lycoris_")
OF_UNET = ("", "unet.", "base_model.model.", "base_model.model.unet.", "lora_unet_", "lycoris_")


def generator_of(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def factors(name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    d_out, d_in, *kernel = shape
    drawn = generator_of(name)
    up = torch.randn(d_out, 2, *(1 for _ in kernel), generator=drawn)
    return up, torch.randn(2, d_in, *kernel, generator=drawn) / d_in**0.5


def named(up: str, down: str, alpha: bool = False) -> Callable[[str, tuple[int, ...]], Tensors]:
    def make(name: str, shape: tuple[int, ...]) -> Tensors:
        b, a = factors(name, shape)
        more = {".alpha": torch.tensor(3.0)} if alpha else {}
        return {up: b, down: a, **more}

    return make


def lokr(name: str, shape: tuple[int, ...]) -> Tensors:
    d_out, d_in, *kernel = shape
    size = math.gcd(4, math.gcd(d_out, d_in))
    drawn = generator_of(name)
    return {
        ".lokr_w1": torch.randn(size, size, generator=drawn),
        ".lokr_w2": torch.randn(d_out // size, d_in // size, *kernel, generator=drawn),
        ".alpha": torch.tensor(1e10),  # which counts only with factors
    }


def loha(name: str, shape: tuple[int, ...]) -> Tensors:
    d_out, d_in, *kernel = shape
    drawn = generator_of(name)
    found = {".alpha": torch.tensor(1.0)}
    for i in (1, 2):
        found[f".hada_w{i}_a"] = torch.randn(d_out, 2, generator=drawn)
        found[f".hada_w{i}_b"] = torch.randn(2, d_in * math.prod(kernel), generator=drawn)
    return found


def dora(name: str, shape: tuple[int, ...]) -> Tensors:
    scale = torch.rand(shape[0], *(1 for _ in shape[1:]), generator=generator_of(name)) + 0.5
    up, down = factors(name, shape)
    return {".lora_up.weight": up, ".lora_down.weight": down, ".dora_scale": scale}


def difference(name: str, shape: tuple[int, ...]) -> Tensors:
    return {".diff": torch.randn(shape, generator=generator_of(name))}


# Kind -> (name, shape of a weight) -> ending of a key -> tensor. Those of `LIGHT` are written in all
# spellings; the others take longer, and are written in one.
LIGHT: dict[str, Callable[[str, tuple[int, ...]], Tensors]] = {
    "lora_A": named(".lora_B.weight", ".lora_A.weight"),
    "lora_A.default": named(".lora_B.default.weight", ".lora_A.default.weight"),
    "lora_down, alpha": named(".lora_up.weight", ".lora_down.weight", alpha=True),
    "lora.down": named(".lora.up.weight", ".lora.down.weight"),
}
HEAVY = {"lokr": lokr, "loha": loha, "dora": dora, "diff": difference}
_LARGE = 300_000  # numbers of a weight, whose singular values take long
OF_HEAVY = {"diffusers": ("transformer.", "unet."), "own": ("lora_unet_",)}


@dataclass(frozen=True)
class File:
    """One file: whose names its modules have, how they begin, and the kind of its adapters."""

    names: str
    start: str
    kind: str
    shapes: Shapes

    def base(self, module: str) -> str:
        return self.start + (module.replace(".", "_") if self.start.endswith("_") else module)

    def tensors(self) -> Tensors:
        make = (LIGHT | HEAVY)[self.kind]
        return {
            f"{self.base(module)}{ending}": tensor
            for module, shape in self.shapes.items()
            for ending, tensor in make(module, shape).items()
        }


def shapes_of(modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(module.weight.shape)
        for name, module in modules.items()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }


def trained_modules(family: str) -> dict[str, tuple[int, ...]]:
    name, sizes = TRAINED[family]
    if not name:
        return {}
    with torch.device("meta"):
        shapes = shapes_of(dict(getattr(diffusers, name)(**sizes).named_modules()))
    return {
        module: tuple(_OTHER_SIZES.get(size, size) for size in shape)
        for module, shape in shapes.items()
        if not re.search(_OF_OTHER_SIZES.get(family, "^$"), module)
    }


def files(family: str, host: ComfyModel) -> Iterator[File]:
    own = {
        path.removeprefix(UNET_PREFIX): module
        for path, module in host.model.model.named_modules()
        if path.startswith(UNET_PREFIX)
    }
    is_unet = TRAINED[family][0].startswith("UNet")
    of_trainers = [("diffusers", OF_UNET if is_unet else OWN, trained_modules(family))]
    starts = ("diffusion_model.", "lora_unet_") if is_unet else OWN
    of_trainers.append(("own", starts, shapes_of(own)))
    for names, begin, shapes in of_trainers:
        for start in begin if shapes else ():
            for kind in LIGHT | HEAVY:
                if kind in LIGHT:
                    yield File(names, start, kind, shapes)
                elif start in OF_HEAVY[names]:
                    small = {m: shape for m, shape in shapes.items() if math.prod(shape) < _LARGE}
                    yield File(names, start, kind, small)


def made_by_host(host: ComfyModel, tensors: Tensors) -> dict[str, Tensor]:
    converted = comfy.lora_convert.convert_lora(dict(tensors))
    found: dict[str, list[Any]] = {}
    for entry, patch in comfy.lora.load_lora(
        converted, dict(host.keys.host_keys), log_missing=False
    ).items():
        target = HostWeight.of(entry)
        found.setdefault(target.weight, []).append(
            (1.0, patch, 1.0, target.offset, target.function)
        )
    weights = host.model.model.state_dict()
    return {
        weight: comfy.lora.calculate_weight(patches, weights[weight].clone(), weight)
        - weights[weight]
        for weight, patches in found.items()
        if weight in weights and f"{weight.removesuffix('.weight')}" in host.keys.shapes
    }


def error(delta: LowRankDelta, expected: Tensor) -> float:
    flat = expected.flatten(1)
    return ((delta.dense() - flat).norm() / flat.norm()).item()


def base_of(key: str) -> str:
    return key.rpartition(".lora")[0] or key.rpartition(".")[0]


@pytest.fixture(scope="module")
def host():
    return tiny_hosts.host_of(NAME)


def test_files_of_trainers_are_read_whole_and_as_comfyui_reads_them(host):
    # first those that ComfyUI reads, with which the others are compared
    known = ("diffusion_model.", "transformer.", "unet.", "lora_unet_")
    expected = FILES.get(NAME, 72)
    made = sorted(files(NAME, host), key=lambda file: file.start not in known)
    assert len(made) == expected
    before = {}
    all_compared = 0
    for file in made:
        called = (file.names, file.start, file.kind)
        tensors = file.tensors()
        lora = loaded(host, "x", tensors, "x")
        adapter = lora.adapter
        if file.kind == "lora_A":  # the proof knows the names that the host does not
            host.prove_reading(lora.use, adapter, tensors)
        theirs = made_by_host(host, tensors)
        unread = set(map(base_of, adapter.unmatched))
        assert not [module for module in file.shapes if file.base(module) in unread], called
        assert {weight.removesuffix(".weight") for weight in theirs} <= set(adapter.deltas), called
        reference = before.setdefault((file.names, file.kind), adapter)
        for path, delta in adapter.deltas.items():
            of_host = theirs.get(f"{path}.weight")
            right = reference.deltas[path].dense() if of_host is None else of_host
            assert error(delta, right) < ROUNDING, (*called, path)
        all_compared += len(theirs) == len(adapter.deltas)
    # at least the model's own names, in two styles, are ComfyUI's, too
    assert all_compared >= 8
