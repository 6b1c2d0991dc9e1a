"""Files that a stranger could give: small ones of every kind, and what can be wrong with them.

A case is a number: `mutated` makes the same file of it each time.
"""

from __future__ import annotations

import functools
import io
import json
import math
import random
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from iteris_core import MergeConfig
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.lora_use import LoraUse
from iteris_core.files.kinds import ENDINGS

# Modules of a small Stable Diffusion, by their paths in diffusers.
MODULES: dict[str, nn.Module] = {
    "unet.conv_in": nn.Conv2d(4, 8, 3),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": nn.Linear(12, 8),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0": nn.Linear(8, 8),
    "unet.down_blocks.0.attentions.0.norm": nn.GroupNorm(2, 8),
    "unet.down_blocks.0.attentions.0.proj_in": nn.Conv2d(8, 8, 1),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": nn.Linear(6, 6),
    "text_encoder.text_model.encoder.layers.0.layer_norm1": nn.LayerNorm(6),
}
CONV, LINEAR, OUT, NORM, POINT, TEXT, TEXT_NORM = MODULES


def kohya(path: str) -> str:
    """Return the base of a module's keys in kohya's style."""
    unet = "lora_unet_" + path.removeprefix("unet.").replace(".", "_")
    return (
        "lora_te_" + path.removeprefix("text_encoder.").replace(".", "_")
        if "text" in path
        else unet
    )


def factors(base: str, d_out: int, d_in: int, kernel: tuple[int, ...] = (), rank: int = 2) -> Any:
    return {
        f"{base}.lora_up.weight": torch.randn(d_out, rank, *(1 for _ in kernel)),
        f"{base}.lora_down.weight": torch.randn(rank, d_in, *kernel),
        f"{base}.alpha": torch.tensor(1.0),
    }


def seeds() -> dict[str, dict[str, Tensor]]:
    """Return the tensors of a small file of every kind."""
    linear, conv, out, text = map(kohya, (LINEAR, CONV, OUT, TEXT))
    plain = {**factors(linear, 8, 12), **factors(conv, 8, 4, (3, 3)), **factors(text, 6, 6)}

    def loha(base: str, d_out: int, d_in: int) -> dict[str, Tensor]:
        shapes = {"a": (d_out, 2), "b": (2, d_in)}
        return {
            f"{base}.hada_w{i}_{part}": torch.randn(*shapes[part]) for i in (1, 2) for part in "ab"
        }

    tucker = {
        f"{conv}.{name}": torch.randn(*shape)
        for name, shape in {
            "hada_t1": (2, 2, 3, 3),
            "hada_w1_a": (2, 8),
            "hada_w1_b": (2, 4),
            "hada_t2": (2, 2, 3, 3),
            "hada_w2_a": (2, 8),
            "hada_w2_b": (2, 4),
        }.items()
    }
    lokr = {
        f"{linear}.lokr_w1": torch.randn(2, 3),
        f"{linear}.lokr_w2_a": torch.randn(4, 2),
        f"{linear}.lokr_w2_b": torch.randn(2, 4),
        f"{linear}.alpha": torch.tensor(1.0),
        f"{conv}.lokr_w1": torch.randn(2, 2),
        f"{conv}.lokr_w2_a": torch.randn(2, 4),
        f"{conv}.lokr_w2_b": torch.randn(2, 2),
        f"{conv}.lokr_t2": torch.randn(2, 2, 3, 3),
    }
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
        "loha": {**loha(linear, 8, 12), **loha(conv, 8, 36), f"{linear}.alpha": torch.tensor(1)},
        "loha_tucker": tucker,
        "lokr": lokr,
        "difference": {
            f"{linear}.diff": torch.randn(8, 12),
            f"{linear}.diff_b": torch.randn(8),
            f"{conv}.diff": torch.randn(8, 4, 3, 3),
            f"{kohya(NORM)}.w_norm": torch.randn(8),
            f"{kohya(NORM)}.b_norm": torch.randn(8),
            f"{kohya(TEXT_NORM)}.diff": torch.randn(6),
        },
        "dora": {**plain, f"{linear}.dora_scale": torch.rand(8, 1) + 0.5},
        "dora_peft": {**peft, f"{LINEAR}.lora_magnitude_vector": torch.rand(8) + 0.5},
        "oft": {
            f"{linear}.oft_blocks": torch.randn(2, 4, 4) * 0.1,
            f"{out}.oft_blocks": torch.randn(2, 2, 4, 4) * 0.1,
            f"{out}.rescale": torch.rand(8, 1) + 0.5,
            f"{out}.alpha": torch.tensor(0.0),
        },
        "glora": {
            f"{linear}.a1.weight": torch.randn(12, 2),
            f"{linear}.a2.weight": torch.randn(2, 12),
            f"{linear}.b1.weight": torch.randn(8, 2),
            f"{linear}.b2.weight": torch.randn(2, 12),
            f"{linear}.alpha": torch.tensor(1.0),
        },
        "replacement": {f"{linear}.set_weight": torch.randn(8, 12)},
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


def _recipe() -> Any:
    lora = LoraUse(
        name="a",
        file="a.safetensors",
        sha256="1f",
        strength_model=1.0,
        strength_clip=1.0,
        prompts=("a sks dog",),
    )
    parts = {
        "loras": [asdict(lora)],
        "calibration": asdict(Calibration()),
        "config": MergeConfig().to_dict(),
    }
    return json.loads(json.dumps(parts))


RECIPE = _recipe()
METADATA = {
    "iteris.recipe": json.dumps(RECIPE),
    "ss_tag_frequency": json.dumps({"10_sks dog": {"sks dog": 12, "grass": 3}}),
    "modelspec.trigger_phrase": "a sks dog",
    "trained_words": '["sks dog", "grass"]',
    "modelspec.architecture": "stable-diffusion-v1/lora",
    "ss_base_model_version": "sd_v1",
    "lora_adapter_metadata": json.dumps(
        {
            "unet.r": 2,
            "unet.lora_alpha": 4,
            "unet.rank_pattern": {"to_k": 2},
            "unet.alpha_pattern": {},
        }
    ),
}
PEFT_SETTINGS = {
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
STACK = [("a.safetensors", 1.0, 0.5), {"lora": "b", "strength": 0.3}, "<lora:c:1.0:0.5>"]
SAMPLES = (
    [{"input": "a text", "target": "another"}, {"input": "a second"}],
    [{"image": "a.png", "caption": "a dog"}, {"image": "b.png"}],
    ["a photo of {concepts}", "{concepts} on a beach"],
)
_TEXTS = (
    "",
    "a" * 5000,
    "a." * 2000,
    "_1" * 2000,
    "[" * 20000,
    '{"a":' * 2000,
    "(a+)+$",
    "([a-zA-Z.0-9]+)+X",
    "^" + ".*a" * 20,
    "\u0000",
    "\u202e\U0001f600",
    "\\",
    "NaN",
    "1e999",
    "../../etc/passwd",
    "{trigger}",
    "<lora:a:1:2:3:4>",
    json.dumps({"1_a": {str(i): i for i in range(2000)}}),
    json.dumps({f"{i}_b{i}": {f"b{i}": 1} for i in range(2000)}),
    '{"a": {"b": 1e400}}',
    '["a", ["b"], 3, null]',
    "\ud800",
    "9" * 6000,
    "<lora:a:1>a," + "\u3000" * 3900 + "b",
    " ," * 2000,
    "{first}" * 600,
    "{" * 3000,
    "1," * 2000,
    "<lora:" * 700,
    '"' * 3001,
    "__a" * 1300,
    "-" * 3000,
    "*a" * 2000,
)
_NUMBERS = (0, -1, 1, 2, 3, 10**9, 10**400, -(10**30), 0.0, -0.0, 0.5, 1e308, math.inf, math.nan)
_DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
_SIDES = (0, 1, 2, 3, 4, 8, 12, 36, 97, 600, 3000)
_MOST_NUMBERS = 200_000  # of a made tensor


@dataclass
class Case:
    """A file, or a folder of files, and what else a reader takes.

    Args:
        name: The kind of file it was made of, and what was done to it.
        tensors: Bytes of a safetensors file.
        settings: Bytes of a PEFT adapter's settings.
        text: A text file.
        value: A value of JSON's kinds, as other nodes and recipes have them.
        picture: A picture in any of Pillow's formats.
    """

    name: str
    tensors: bytes = b""
    settings: bytes = b"{}"
    text: bytes = b""
    value: Any = field(default=None)
    picture: bytes = b""

    @property
    def size(self) -> int:
        parts = (self.tensors, self.settings, self.text, self.picture)
        return sum(map(len, parts))


@functools.cache
def pictures() -> list[bytes]:
    """Return small pictures in many formats, those that are read more often, and two that are small
    as files alone.
    """
    rows = [(x * 16, y * 16, 99, 255) for y in range(16) for x in range(16)]
    picture = Image.new("RGBA", (16, 16))
    picture.putdata(rows)
    read = [_saved(picture, "PNG"), _saved(picture, "WEBP"), _saved(picture, "BMP")]
    read += [_saved(picture.convert("RGB"), "JPEG"), _saved(picture.convert("P"), "PNG")]
    large = [_saved(Image.new("1", (side, side)), "PNG") for side in (13_300, 14_500)]
    others = ("EPS", "GIF", "TIFF", "ICO", "PPM", "PCX", "TGA", "DDS", "SGI", "PDF", "JPEG2000")
    return [*3 * read, *large, *(_saved(picture.convert("RGB"), kind) for kind in others)]


def _saved(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def mutated(number: int) -> Case:
    """Return the case of a number."""
    dice = random.Random(number)
    torch.manual_seed(number)
    made = seeds()
    name = dice.choice([*made, "kohya", "peft", "peft", "peft", "token_ids"])
    tensors = made[name]
    metadata = dict(METADATA) if dice.random() < 0.6 else {}
    done = [name]
    for _ in range(dice.choice((0, 0, 1, 1, 1, 2, 2, 3, 6))):
        change = dice.choice((_shape, _numbers, _key, _remove, _double, _type, _metadata, _rank))
        done.append(change.__name__)
        change(dice, tensors, metadata)
    content = save(tensors, {key: _plain(text) for key, text in metadata.items()})
    if dice.random() < 0.3:
        change_bytes = dice.choice((_header, _bytes, _cut))
        done.append(change_bytes.__name__)
        content = change_bytes(dice, content)
    settings = json.dumps(_tree(dice, PEFT_SETTINGS, dice.choice((0, 0, 1, 1, 2)))).encode()
    value = _tree(dice, dice.choice((RECIPE, STACK)), dice.choice((0, 1, 1, 2, 4)))
    samples = _tree(dice, dice.choice(SAMPLES), dice.choice((0, 1, 1, 2)))
    lines = samples if isinstance(samples, list) else [samples]
    text = "\n".join(map(json.dumps, lines)).encode()
    if dice.random() < 0.2:
        settings = _bytes(dice, settings)
        text = _bytes(dice, text)
    picture = dice.choice(pictures())
    if dice.random() < 0.8:
        picture = dice.choice((_bytes, _cut))(dice, picture)
    return Case(" ".join(done), content, settings, text, value, picture)


def _shape(dice: random.Random, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    key = dice.choice(list(tensors))
    shape: list[int] = []
    for _ in range(dice.choice((0, 1, 2, 2, 3, 4, 4, 5, 12, 60))):
        side = dice.choice(_SIDES) if len(shape) < 6 else 1
        so_far = math.prod(length or 1 for length in shape)
        shape.append(side if side * so_far <= _MOST_NUMBERS else 1)
    tensors[key] = torch.randn(shape).to(tensors[key].dtype)


def _rank(dice: random.Random, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Make one side of a module's tensors, which they have in common, larger."""
    key = dice.choice(list(tensors))
    base = key.partition(".")[0]
    old = dice.choice([*tensors[key].shape, 2])
    new = dice.choice(_SIDES[1:])
    for other, tensor in tensors.items():
        if other.startswith(base) and old in tensor.shape:
            shape = [new if side == old else side for side in tensor.shape]
            if math.prod(side or 1 for side in shape) <= _MOST_NUMBERS:
                tensors[other] = torch.randn(shape).to(tensor.dtype)


def _numbers(dice: random.Random, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    key = dice.choice(list(tensors))
    tensor = tensors[key].clone().double()
    if tensor.numel():
        bad = dice.choice((math.nan, math.inf, -math.inf, 1e38, 1e-45, 0.0, -1.0))
        tensor.view(-1)[dice.randrange(tensor.numel())] = bad
    tensors[key] = tensor.to(tensors[key].dtype)


def _key(dice: random.Random, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    key = dice.choice(list(tensors))
    tensor = tensors.pop(key)
    base, dot, ending = key.partition(".")
    endings = dice.choice(list(ENDINGS.values()))
    new = dice.choice(
        (
            base + dice.choice(endings),
            dice.choice(endings),
            base + "." + _plain(dice.choice(_TEXTS)),
            _plain(dice.choice(_TEXTS)) + dot + ending,
            kohya(dice.choice(list(MODULES))) + dice.choice(endings),
            dice.choice(list(MODULES)) + dice.choice(endings),
            "attn2" + "to_k" * 300,
        )
    )
    tensors[new] = tensor


def _remove(dice: random.Random, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    if len(tensors) > 1:
        del tensors[dice.choice(list(tensors))]


def _double(dice: random.Random, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Add the tensors of another kind of file."""
    other = dice.choice(list(seeds().values()))
    for key, tensor in other.items():
        tensors.setdefault(key, tensor)


def _type(dice: random.Random, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    key = dice.choice(list(tensors))
    tensors[key] = tensors[key].nan_to_num().to(dice.choice(_DTYPES))


def _metadata(dice: random.Random, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    key = dice.choice([*METADATA, "modelspec.title"])
    metadata[key] = dice.choice((dice.choice(_TEXTS), json.dumps(_tree(dice, _value_of(key), 2))))


def _value_of(key: str) -> Any:
    return json.loads(METADATA[key]) if METADATA.get(key, "").startswith(("{", "[")) else key


def _plain(text: str) -> str:
    """Return a text that a safetensors file can hold."""
    return text.encode("utf-8", "replace").decode()


def _header(dice: random.Random, content: bytes) -> bytes:
    """Change the header as JSON, and keep its length right."""
    length = int.from_bytes(content[:8], "little")
    header = _tree(dice, json.loads(content[8 : 8 + length]), dice.choice((1, 1, 2)))
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + content[8 + length :]


def _bytes(dice: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 5, 50))):
        if changed:
            changed[dice.randrange(min(len(changed), 4000))] = dice.randrange(256)
    return bytes(changed)


def _cut(dice: random.Random, content: bytes) -> bytes:
    return content[: dice.randrange(len(content))] + bytes(dice.choice((0, 0, 1, 100)))


def _tree(dice: random.Random, value: Any, changes: int) -> Any:
    """Return a value of JSON's kinds with so many places changed."""
    value = json.loads(json.dumps(value))
    for _ in range(changes):
        value = _changed(dice, value)
    return value


def _changed(dice: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and dice.random() < 0.85:
        key = dice.choice(list(value))
        if dice.random() < 0.1:
            return {**value, dice.choice(_TEXTS): value[key]}
        if dice.random() < 0.1:
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: _changed(dice, value[key])}
    if isinstance(value, list) and value and dice.random() < 0.85:
        place = dice.randrange(len(value))
        return [*value[:place], _changed(dice, value[place]), *value[place + 1 :]]
    deep: Any = []
    for _ in range(dice.choice((3, 60, 400))):
        deep = [deep]
    return dice.choice(
        (
            None,
            True,
            [],
            {},
            [value] * 3,
            {"a": value},
            deep,
            dice.choice(_TEXTS),
            dice.choice(_NUMBERS),
        )
    )
