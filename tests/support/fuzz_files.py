"""Files that a stranger could give: small ones of every kind, and what can be wrong with them."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor, nn

from iteris_core.files.groups import ENDINGS

Tensors = dict[str, Tensor]

# Modules of a small Stable Diffusion, by their paths in diffusers.
MODULES: dict[str, nn.Module] = {
    "unet.conv_in": nn.Conv2d(4, 8, 3),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": nn.Linear(12, 8),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0": nn.Linear(8, 8),
    "unet.down_blocks.0.attentions.0.norm": nn.GroupNorm(2, 8),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": nn.Linear(6, 6),
    "text_encoder.text_model.encoder.layers.0.layer_norm1": nn.LayerNorm(6),
}
CONV, LINEAR, OUT, NORM, TEXT, TEXT_NORM = MODULES


def kohya(path: str) -> str:
    part, _, name = path.partition(".")
    return {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part] + name.replace(".", "_")


def randoms(base: str, **shapes: tuple[int, ...]) -> Tensors:
    """Return random tensors of a module: ending of the key, with _ for each dot, -> shape."""
    return {f"{base}.{name}": torch.randn(*shape) for name, shape in shapes.items()}


def factors(base: str, d_out: int, d_in: int, kernel: tuple[int, ...] = (), rank: int = 2) -> Any:
    return {
        f"{base}.lora_up.weight": torch.randn(d_out, rank, *(1 for _ in kernel)),
        f"{base}.lora_down.weight": torch.randn(rank, d_in, *kernel),
        f"{base}.alpha": torch.tensor(1.0),
    }


def seeds() -> dict[str, Tensors]:
    """Return the tensors of a small file of every kind."""
    linear, conv, out, text = map(kohya, (LINEAR, CONV, OUT, TEXT))
    plain = {**factors(linear, 8, 12), **factors(conv, 8, 4, (3, 3)), **factors(text, 6, 6)}
    loha = {"hada_w1_a": (8, 2), "hada_w1_b": (2, 12), "hada_w2_a": (8, 2), "hada_w2_b": (2, 12)}
    tucker = {"hada_w1_a": (2, 8), "hada_w1_b": (2, 4), "hada_w2_a": (2, 8), "hada_w2_b": (2, 4)}
    cores = {"hada_t1": (2, 2, 3, 3), "hada_t2": (2, 2, 3, 3)}
    lokr = {"lokr_w1": (2, 3), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 4)}
    lokr_core = {"lokr_w1": (2, 2), "lokr_w2_a": (2, 4), "lokr_w2_b": (2, 2)}
    peft = {
        f"{LINEAR}.lora_A.weight": torch.randn(2, 12),
        f"{LINEAR}.lora_B.weight": torch.randn(8, 2),
        f"{TEXT}.lora_A.weight": torch.randn(2, 6),
        f"{TEXT}.lora_B.weight": torch.randn(6, 2),
    }
    return {
        "kohya": {key: tensor.half() for key, tensor in plain.items()},
        "locon": {**plain, f"{conv}.lora_mid.weight": torch.randn(2, 2, 3, 3)}
        | {f"{conv}.lora_down.weight": torch.randn(2, 4, 1, 1)},
        "loha": {**randoms(linear, **loha), f"{linear}.alpha": torch.tensor(1)},
        "loha_tucker": randoms(conv, **tucker, **cores),
        "lokr": randoms(linear, **lokr) | randoms(conv, **lokr_core, lokr_t2=(2, 2, 3, 3)),
        "difference": randoms(linear, diff=(8, 12), diff_b=(8,))
        | randoms(conv, diff=(8, 4, 3, 3))
        | randoms(kohya(NORM), w_norm=(8,), b_norm=(8,))
        | randoms(kohya(TEXT_NORM), diff=(6,)),
        "dora": {**plain, f"{linear}.dora_scale": torch.rand(8, 1) + 0.5},
        "dora_peft": {**peft, f"{LINEAR}.lora_magnitude_vector": torch.rand(8) + 0.5},
        "oft": randoms(linear, oft_blocks=(2, 4, 4))
        | randoms(out, oft_blocks=(2, 2, 4, 4), rescale=(8, 1)),
        "glora": {
            f"{linear}.{name}.weight": torch.randn(*shape)
            for name, shape in {"a1": (12, 2), "a2": (2, 12), "b1": (8, 2), "b2": (2, 12)}.items()
        },
        "replacement": randoms(linear, set_weight=(8, 12)),
        "reshaping": {**factors(linear, 8, 12), f"{linear}.reshape_weight": torch.tensor([8, 12])},
        "ia3": {f"{linear}.weight": torch.rand(8), f"{linear}.on_input": torch.tensor(0)},
        "diffusers": peft,
        "old_diffusers": {
            f"{LINEAR.replace('.to_', '.processor.to_')}_lora.{side}.weight": tensor
            for side, tensor in (("down", torch.randn(2, 12)), ("up", torch.randn(8, 2)))
        },
        "token_ids": {"input_ids": torch.ones(2, 3, 4, dtype=torch.long)},
        "peft": {f"base_model.model.{key}": tensor for key, tensor in peft.items()},
    }


METADATA: dict[str, Any] = {
    "iteris.recipe": {"loras": [], "calibration": {}, "config": {}},
    "ss_tag_frequency": {"10_sks dog": {"sks dog": 12, "grass": 3}},
    "modelspec.trigger_phrase": "a sks dog",
    "modelspec.architecture": "stable-diffusion-v1/lora",
    "ss_base_model_version": "sd_v1",
    "lora_adapter_metadata": {"unet.r": 2, "unet.lora_alpha": 4, "unet.rank_pattern": {"to_k": 2}},
}
PEFT_SETTINGS: dict[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": "base",
    "r": 2,
    "lora_alpha": 4,
    "rank_pattern": {"to_k": 2, r"^text_encoder\.q_proj": 2},
    "alpha_pattern": {"q_proj": 3},
    "target_modules": ["to_k", "q_proj"],
    "use_rslora": False,
    "use_dora": False,
    "bias": "none",
    "init_lora_weights": True,
}


@dataclass(frozen=True)
class Case:
    """A safetensors file, a PEFT adapter's settings, and trigger words beside it."""

    tensors: bytes
    settings: bytes
    words: Any


TEXTS = st.text(max_size=30) | st.sampled_from(
    [
        *("a." * 2000, "_1" * 2000, "[" * 20_000, '{"a":' * 2000, "9" * 6000, "1," * 2000),
        *("{" * 3000, "{first}" * 600, "<lora:" * 700, '"' * 3001, "__a" * 1300, " ," * 2000),
        *("(a+)+$", "^" + ".*a" * 20, "\0", "\u202e", "\\", "NaN", "1e999", "../../etc/passwd"),
        *("{trigger}", '{"a": {"b": 1e400}}', '["a", ["b"], 3, null]'),
        json.dumps({f"{i}_b{i}": {f"b{i}": 1} for i in range(2000)}),
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of everything inside a value of JSON's kinds."""
    items = enumerate(value) if isinstance(value, list) else dict(value).items()
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


@st.composite
def edited(draw: st.DrawFn, value: Any) -> Any:
    """Draw an object of JSON's kinds that has something else at up to two places."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(0, 2))):
        *outer, last = draw(st.sampled_from(list(places(value))))
        place = value
        for step in outer:
            place = place[step]
        place[last] = draw(JSON)
    return value


SIDES = st.sampled_from([0, 1, 2, 3, 4, 8, 12, 36, 97, 600, 3000])
BAD = st.sampled_from([math.nan, math.inf, -math.inf, 1e38, 1e-45, 0.0, -1.0])
DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
MOST_NUMBERS = 200_000  # of a made tensor


def reshape(draw: st.DrawFn, tensors: Tensors, key: str) -> None:
    shape = draw(st.lists(SIDES, max_size=5).filter(lambda sides: math.prod(sides) < MOST_NUMBERS))
    tensors[key] = torch.ones(shape).to(tensors[key].dtype)


def change_rank(draw: st.DrawFn, tensors: Tensors, key: str) -> None:
    """Change one side of a module's tensors, which they have in common."""
    base, new = key.partition(".")[0], draw(SIDES)
    old = draw(st.sampled_from([*tensors[key].shape, 2]))
    for other in [other for other in tensors if other.startswith(base)]:
        shape = [new if side == old else side for side in tensors[other].shape]
        if math.prod(shape) < MOST_NUMBERS:
            tensors[other] = torch.ones(shape).to(tensors[other].dtype)


def change_numbers(draw: st.DrawFn, tensors: Tensors, key: str) -> None:
    tensor = tensors[key].clone().double()
    tensor.view(-1)[:1] = draw(BAD)
    tensors[key] = tensor.to(tensors[key].dtype)


def rename(draw: st.DrawFn, tensors: Tensors, key: str) -> None:
    base, dot, ending = key.partition(".")
    text = draw(TEXTS).encode("utf-8", "replace").decode()
    bases = [base, "", text, *map(kohya, MODULES), *MODULES]
    endings = [dot + ending, f".{text}", *itertools.chain(*ENDINGS.values())]
    tensors[draw(st.sampled_from(bases)) + draw(st.sampled_from(endings))] = tensors.pop(key)


def remove(draw: st.DrawFn, tensors: Tensors, key: str) -> None:
    if len(tensors) > 1:
        del tensors[key]


def add_another_kind(draw: st.DrawFn, tensors: Tensors, key: str) -> None:
    for other, tensor in draw(st.sampled_from(list(seeds().values()))).items():
        tensors.setdefault(other, tensor)


def change_type(draw: st.DrawFn, tensors: Tensors, key: str) -> None:
    tensors[key] = tensors[key].nan_to_num().to(draw(st.sampled_from(DTYPES)))


CHANGES = (reshape, change_rank, change_numbers, rename, remove, add_another_kind, change_type)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a safetensors file with another header, with other bytes, or cut off."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    match draw(st.sampled_from(["header", "bytes", "cut"])):
        case "header":
            other = json.dumps(draw(edited(json.loads(header)))).encode()
            return len(other).to_bytes(8, "little") + other + data
        case "bytes":
            changed = bytearray(content)
            for place in draw(st.lists(st.integers(0, len(content) - 1), max_size=9)):
                changed[place] = draw(st.integers(0, 255))
            return bytes(changed)
    return content[: draw(st.integers(0, len(content)))] + bytes(draw(st.integers(0, 100)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    tensors = dict(seeds()[draw(st.sampled_from(sorted(seeds())))])
    for change in draw(st.lists(st.sampled_from(CHANGES), max_size=4)):
        change(draw, tensors, draw(st.sampled_from(sorted(tensors))))
    fields = draw(edited(METADATA) if draw(st.booleans()) else st.just({}))
    texts = {key: v if isinstance(v, str) else json.dumps(v) for key, v in fields.items()}
    own = {key: tensor.clone() for key, tensor in tensors.items()}
    content = save(own, {k: v.encode("utf-8", "replace").decode() for k, v in texts.items()})
    if draw(st.integers(0, 3)) == 0:
        content = draw(damaged(content))
    return Case(content, json.dumps(draw(edited(PEFT_SETTINGS))).encode(), draw(JSON))
