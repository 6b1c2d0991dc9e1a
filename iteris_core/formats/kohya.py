"""LoRA files as kohya's trainers write them, and the other spellings of the same two factors.

A file is a flat list of ``<base>.<role>`` keys. Which module a base names depends on the model, so the caller brings a
table: base -> module path.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..adapters import Adapter, LowRankDelta
from ..errors import AdapterError
from .files import read_tensors

_ROLES: dict[str, str] = {
    ".lora_up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.weight": "down",
    ".lora.up.weight": "up",
    ".lora.down.weight": "down",
    "_lora.up.weight": "up",
    "_lora.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".alpha": "alpha",
}
_OTHER_KINDS: dict[str, str] = {
    ".lora_mid.weight": "a LoCon with a Tucker core",
    ".dora_scale": "a DoRA",
    ".hada_w1_a": "a LoHa",
    ".lokr_w1": "a LoKr",
    ".lokr_w1_a": "a LoKr",
    ".a1.weight": "a GLoRA",
    ".oft_blocks": "an OFT",
    ".diff": "a full weight difference",
}
_OTHER_MODELS: dict[str, Callable[[str], bool]] = {
    "SDXL": lambda key: key.startswith(("lora_te2_", "text_encoder_2.")) or "transformer_blocks_9_" in key,
    "Flux": lambda key: "double_blocks" in key or "single_transformer_blocks" in key,
    "SD3": lambda key: "joint_blocks" in key,
    "SD2": lambda key: "text_model_encoder_layers_22_" in key,
    "a video model": lambda key: "temporal" in key or "motion_modules" in key,
}


def split_key(key: str) -> tuple[str, str] | None:
    """Return (base, role) of a key; None if it is no part of a low-rank pair."""
    for suffix, role in _ROLES.items():
        if key.endswith(suffix):
            return key.removesuffix(suffix), role
    return None


def parse(
    name: str,
    tensors: Mapping[str, Tensor],
    module_of_base: Mapping[str, str],
    shapes: Mapping[str, tuple[int, int]],
    metadata: Mapping[str, str] | None = None,
) -> Adapter:
    """Return the adapter that a file's tensors describe.

    Args:
        name: The file's name, for reports and errors.
        tensors: The file's content.
        module_of_base: Key base -> module path, every spelling that the model knows.
        shapes: Module path -> (d_out, d_in) of the weight; modules that cannot be merged are absent.
        metadata: The file's metadata.

    Raises:
        AdapterError: No key fits the model, a pair is incomplete, shapes are wrong, or weights are not finite.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    unmatched, other = [], {}
    for key, tensor in tensors.items():
        kind = next((kind for suffix, kind in _OTHER_KINDS.items() if key.endswith(suffix)), None)
        parts = split_key(key)
        if kind is not None and _base_of(key) in module_of_base:
            other[key] = kind
        elif parts is None or parts[0] not in module_of_base:
            unmatched.append(key)
        else:
            groups.setdefault(parts[0], {})[parts[1]] = tensor
    if other:
        key, kind = next(iter(other.items()))
        raise AdapterError(f"{name}: {key!r} makes it {kind}, which cannot be merged yet; use plain LoRA files")
    if not groups:
        raise AdapterError(_no_key_fits(name, list(tensors)))
    deltas: dict[str, LowRankDelta] = {}
    for base, group in groups.items():
        path = module_of_base[base]
        if path in deltas:
            raise AdapterError(
                f"{name}: the module {path!r} is described twice, the second time as {base!r}; the file is damaged"
            )
        deltas[path] = _delta(name, base, group, shapes.get(path))
    return Adapter(name, deltas, tuple(unmatched), dict(metadata or {}))


def _base_of(key: str) -> str:
    return next(key.removesuffix(suffix) for suffix in _OTHER_KINDS if key.endswith(suffix))


def _delta(name: str, base: str, group: Mapping[str, Tensor], expected: tuple[int, int] | None) -> LowRankDelta:
    missing = {"up", "down"} - set(group)
    if missing:
        raise AdapterError(f"{name}: {base!r} has no {' and no '.join(sorted(missing))} factor; the file is incomplete")
    up, down = group["up"].float(), group["down"].float()
    found = f"{tuple(up.shape)} and {tuple(down.shape)}"
    if expected is None:
        raise AdapterError(
            f"{name}: {base!r} changes a layer that is neither Linear nor a 1x1 convolution; it cannot be merged yet"
        )
    if any(size != 1 for factor in (up, down) for size in factor.shape[2:]):
        raise AdapterError(f"{name}: {base!r} is a k x k convolution with factors {found}; only 1x1 can be merged yet")
    up, down = up.flatten(1), down.flatten(1)
    if up.shape[1] != down.shape[0] or (up.shape[0], down.shape[1]) != expected:
        raise AdapterError(
            f"{name}: {base!r} has factors {found}, but this model's weight there is {expected[0]} x {expected[1]}. "
            "The LoRA was trained for another model; use one for SD1.5"
        )
    alpha = group.get("alpha")
    scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
    delta = LowRankDelta(up * scale, down)
    if not (torch.isfinite(delta.up).all() and torch.isfinite(delta.down).all()):
        raise AdapterError(
            f"{name}: {base!r} holds NaN or infinite weights; the training run broke. Use an earlier epoch of this LoRA"
        )
    return delta


def _no_key_fits(name: str, keys: list[str]) -> str:
    looks_like = next((model for model, test in _OTHER_MODELS.items() if any(map(test, keys))), None)
    guess = f"it looks like a LoRA for {looks_like}" if looks_like else "it may be for another model, or no LoRA at all"
    example = f", such as {keys[0]!r}" if keys else ""
    return f"{name}: none of its {len(keys)} keys{example} fits this model; {guess}. Choose a LoRA for SD1.5"


def to_tensors(adapter: Adapter, base_of_module: Mapping[str, str], convolutions: Collection[str] = ()) -> dict[str, Tensor]:
    """Return the adapter as ``<base>.lora_up.weight``, ``<base>.lora_down.weight`` and ``<base>.alpha`` = rank.

    Args:
        adapter: In the precision in which it is to be saved.
        base_of_module: Module path -> key base.
        convolutions: Module paths of 1x1 convolutions, whose factors are written as (r, d_in, 1, 1).
    """
    tensors: dict[str, Tensor] = {}
    for path, delta in adapter.deltas.items():
        base, shape = base_of_module[path], (1, 1) if path in convolutions else ()
        tensors[f"{base}.lora_up.weight"] = delta.up.reshape(*delta.up.shape, *shape)
        tensors[f"{base}.lora_down.weight"] = delta.down.reshape(*delta.down.shape, *shape)
        tensors[f"{base}.alpha"] = torch.tensor(float(delta.rank))
    return tensors


def metadata_of(adapter: Adapter) -> dict[str, str]:
    """Return the metadata by which other programs recognise an SD1.5 LoRA."""
    rank = str(max((delta.rank for delta in adapter.deltas.values()), default=0))
    return {
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": adapter.name,
    }


def load(path: Path, module_of_base: Mapping[str, str], shapes: Mapping[str, tuple[int, int]]) -> Adapter:
    """Read a LoRA file; see `parse` and `files.read_tensors` for what is refused."""
    tensors, metadata = read_tensors(path)
    return parse(path.stem, tensors, module_of_base, shapes, metadata)
