"""LoRA files as kohya's and LyCORIS' trainers write them, and the other spellings of the same
tensors.

A file is a flat list of ``<base><suffix>`` keys. Which module a base names depends on the model, so
the caller brings a table: base -> module path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..adapters import Adapter, LowRankDelta
from ..errors import AdapterError
from .kinds import DenseDelta, delta_of_group, vectors_of_group
from .tensors import read_tensors

# Suffix of a key -> what the tensor is. The same two factors go by many names.
_ROLES: dict[str, str] = {
    ".lora_up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_mid.weight": "mid",
    ".lora_B.default.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B": "up",
    ".lora_A": "down",
    ".lora.up.weight": "up",
    ".lora.down.weight": "down",
    "_lora.up.weight": "up",
    "_lora.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
    ".lora_magnitude_vector.default.weight": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector": "magnitude",
    ".reshape_weight": "reshape_weight",
    ".diff": "diff",
    ".diff_b": "diff_b",
    ".w_norm": "w_norm",
    ".b_norm": "b_norm",
    ".set_weight": "set_weight",
    ".a1.weight": "glora_a1",
    ".a2.weight": "glora_a2",
    ".b1.weight": "glora_b1",
    ".b2.weight": "glora_b2",
    ".oft_blocks": "oft_blocks",
    ".rescale": "rescale",
} | {
    f".{name}": name
    for name in (
        "hada_w1_a",
        "hada_w1_b",
        "hada_w2_a",
        "hada_w2_b",
        "hada_t1",
        "hada_t2",
        "lokr_w1",
        "lokr_w2",
        "lokr_w1_a",
        "lokr_w1_b",
        "lokr_w2_a",
        "lokr_w2_b",
        "lokr_t2",
    )
}
# Role -> the suffix that kohya's and LyCORIS' trainers give it.
_SUFFIXES = {role: suffix for suffix, role in reversed(_ROLES.items())}
_OTHER_MODELS = {
    "SDXL": lambda key: (
        key.startswith(("lora_te2_", "text_encoder_2.")) or "transformer_blocks_9_" in key
    ),
    "Flux": lambda key: "double_blocks" in key or "single_transformer_blocks" in key,
    "SD3": lambda key: "joint_blocks" in key,
    "SD2": lambda key: "text_model_encoder_layers_22_" in key,
    "a video model": lambda key: "temporal" in key or "motion_modules" in key,
}


def split_key(key: str) -> tuple[str, str] | None:
    """Return (base, role) of a key; None if its suffix is unknown."""
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
    *,
    vector_sizes: Mapping[str, int] | None = None,
    dense_delta: DenseDelta | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Adapter:
    """Return the adapter that a file's tensors describe.

    Args:
        name: The file's name, for reports and errors.
        tensors: The file's content.
        module_of_base: Key base -> module path, every spelling that the model knows.
        shapes: Module path -> (d_out, d_in) of the weight; modules that cannot be merged are
            absent.
        metadata: The file's metadata.
        vector_sizes: Parameter path -> size, for biases and norms; others count as unmatched.
        dense_delta: Makes the delta of DoRA, LoKr, GLoRA, OFT and Tucker LoHa; None: they are
            refused.
        progress: Called as ``progress(modules read, modules in all)``; may raise to cancel.

    Raises:
        AdapterError: No key fits the model, a group is incomplete or has a tensor of unknown
            meaning, shapes are wrong, or weights are not finite.
    """
    groups, keys, unmatched = _grouped(name, tensors, module_of_base)
    deltas: dict[str, LowRankDelta] = {}
    vectors: dict[str, Tensor] = {}
    for done, (base, group) in enumerate(groups.items()):
        if progress:
            progress(done, len(groups))
        path = module_of_base[base]
        found = vectors_of_group(path, group)
        misfits = {
            p for p, vector in found.items() if (vector_sizes or {}).get(p) != vector.numel()
        }
        vectors |= {p: vector for p, vector in found.items() if p not in misfits}
        unmatched += [
            key
            for key in keys[base]
            if misfits and split_key(key)[1] in ("diff_b", "w_norm", "b_norm", "diff")
        ]
        delta = delta_of_group(name, base, path, group, shapes.get(path), dense_delta)
        if delta is None:
            continue
        if path in deltas:
            raise AdapterError(
                f"{name}: {path!r} is described twice, the second time as {base!r}; the file is "
                "damaged"
            )
        deltas[path] = delta
    if not deltas and not vectors:
        raise AdapterError(_no_key_fits(name, list(tensors)))
    return Adapter(name, deltas, tuple(unmatched), dict(metadata or {}), vectors)


def _grouped(
    name: str, tensors: Mapping[str, Tensor], module_of_base: Mapping[str, str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, list[str]], list[str]]:
    """Return base -> role -> tensor, base -> its keys, and the keys that belong to no module of the
    model.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    keys: dict[str, list[str]] = {}
    unmatched = []
    for key, tensor in tensors.items():
        parts = split_key(key)
        if parts is None or parts[0] not in module_of_base:
            unmatched.append(key)
            continue
        base, role = parts
        if role in groups.get(base, {}):
            raise AdapterError(
                f"{name}: {base!r} has two tensors for {role!r}; the file mixes two formats and is "
                "damaged"
            )
        groups.setdefault(base, {})[role] = tensor
        keys.setdefault(base, []).append(key)
    for key in unmatched:
        base = next((start for start in _starts(key) if start in groups), None)
        if base is not None and split_key(key) is None:
            raise AdapterError(
                f"{name}: {key!r} changes what the other tensors of {base!r} mean, and IterIS does "
                f"not know how: its ending {key.removeprefix(base)!r} is of no known kind of "
                "adapter. Use a plain LoRA, LoCon, LoHa, LoKr or DoRA"
            )
    return groups, keys, unmatched


def _starts(key: str) -> Iterator[str]:
    """Yield what comes before each dot of a key, longest first."""
    while "." in key:
        key = key.rpartition(".")[0]
        yield key
        if key.endswith("_lora"):  # old diffusers keys: <base>_lora.up.weight
            yield key.removesuffix("_lora")


def tensors_of_group(base: str, group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a group of tensors by role under the key names of kohya's and LyCORIS' trainers."""
    return {f"{base}{_SUFFIXES[role]}": tensor for role, tensor in group.items()}


def _no_key_fits(name: str, keys: list[str]) -> str:
    looks_like = next(
        (model for model, test in _OTHER_MODELS.items() if any(map(test, keys))), None
    )
    guess = (
        f"it looks like a LoRA for {looks_like}"
        if looks_like
        else "it may be for another model, or no LoRA at all"
    )
    example = f", such as {keys[0]!r}" if keys else ""
    return f"{name}: none of its {len(keys)} keys{example} fits this model; {guess}. Choose a LoRA for SD1.5"


def to_tensors(
    adapter: Adapter,
    base_of_module: Mapping[str, str],
    kernels: Mapping[str, tuple[int, int]] | None = None,
    *,
    whole: bool = False,
) -> dict[str, Tensor]:
    """Return the adapter as ``<base>.lora_up.weight``, ``<base>.lora_down.weight`` and
    ``<base>.alpha`` = rank.

    Where layers have different ranks there are no alphas, which means the same: diffusers would
    read alphas that differ, but give those of attention layers to other modules.

    Args:
        adapter: In the precision in which it is to be saved.
        base_of_module: Module path -> key base.
        kernels: Module path -> (height, width) of convolutions, whose factors have four dimensions.
        whole: Write deltas whose factors are no smaller than the weight as ``<base>.diff`` instead.

    Returns:
        Key -> contiguous tensor, as safetensors wants it.

    Raises:
        AdapterError: A module has no key base.
    """
    modules = [*adapter.deltas, *(parameter.rpartition(".")[0] for parameter in adapter.vectors)]
    nameless = [path for path in modules if path not in base_of_module]
    if nameless:
        raise AdapterError(
            f"{adapter.name}: {nameless[0]!r} has no key name under which other programs would find "
            f"it, so it cannot be saved ({len(nameless)} such modules). Leave it out of the adapter"
        )
    tensors: dict[str, Tensor] = {}
    one_rank = len({delta.rank for delta in adapter.deltas.values()}) == 1
    for path, delta in adapter.deltas.items():
        base = base_of_module[path]
        tail = (kernels or {}).get(path, ())
        if whole and delta.is_oversized:
            weight = delta.to(dtype=torch.float32).dense().to(delta.up.dtype)
            tensors[f"{base}.diff"] = weight.reshape(len(weight), -1, *tail)
            continue
        tensors[f"{base}.lora_up.weight"] = delta.up.reshape(*delta.up.shape, *(1 for _ in tail))
        tensors[f"{base}.lora_down.weight"] = delta.down.reshape(delta.rank, -1, *tail)
        if one_rank:
            tensors[f"{base}.alpha"] = torch.tensor(float(delta.rank))
    for parameter, vector in adapter.vectors.items():
        path, _, kind = parameter.rpartition(".")
        tensors[f"{base_of_module[path]}.{'diff_b' if kind == 'bias' else 'diff'}"] = vector
    return {key: tensor.contiguous() for key, tensor in tensors.items()}


def metadata_of(adapter: Adapter, *, whole: bool = False) -> dict[str, str]:
    """Return the metadata by which other programs recognise an SD1.5 LoRA; `whole` as in
    `to_tensors`.
    """
    ranks = (delta.rank for delta in adapter.deltas.values() if not (whole and delta.is_oversized))
    rank = str(max(ranks, default=0))
    return {
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": adapter.name,
    }


def load(
    path: Path, module_of_base: Mapping[str, str], shapes: Mapping[str, tuple[int, int]], **options
) -> Adapter:
    """Read a LoRA file; see `parse` for the options, and `files.read_tensors` for what is
    refused.
    """
    tensors, metadata = read_tensors(path)
    return parse(path.stem, tensors, module_of_base, shapes, metadata, **options)
