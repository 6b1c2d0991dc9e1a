"""What an adapter is, read from its file alone: no base model is needed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapters import LowRankDelta
from ..errors import AdapterError
from . import kohya, peft
from .kinds import delta_of_group
from .peft_kinds import meaning_of, refusal
from .tensors import read_tensors
from .trigger_words import trigger_words

_PLAIN_ROLES = {"up", "down", "mid", "alpha", "diff", "diff_b", "w_norm", "b_norm"}
_LOHA_ROLES = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"}
# Role of a tensor -> kind of adapter that has it; the first that is found names a module's kind.
_KINDS = {
    "dora_scale": "DoRA",
    "magnitude": "DoRA",
    "hada_w1_a": "LoHa",
    "oft_blocks": "OFT",
    "glora_a1": "GLoRA",
    "mid": "LoCon",
    **{f"lokr_{name}": "LoKr" for name in ("w1", "w2", "w1_a", "w2_a", "t2")},
    "up": "LoRA",
    "down": "LoRA",
    "diff": "full difference",
    "set_weight": "replaced weight",
    "diff_b": "bias",
    "w_norm": "norm",
    "b_norm": "norm",
}
_WRITERS = {
    r"lora_(unet|te|te1|te2|transformer|prior)_": "kohya",
    r"lycoris_": "LyCORIS",
    r"base_model\.model\.": "PEFT",
    r"(unet|text_encoder|text_encoder_2|transformer)\.": "diffusers",
    r"diffusion_model\.": "ComfyUI",
}
# Base family -> a pattern that only its keys have.
_FAMILIES = {
    "Flux": r"double_blocks|single_transformer_blocks|single_blocks",
    "SD3": r"joint_blocks",
    "a video model": r"temporal|motion_modules",
    "T5": r"EncDecAttention|DenseReluDense|encoder\.block\.\d+\.layer\.0\.SelfAttention",
    "BLIP": r"text_decoder\.bert\.",
    "BART": r"model\.decoder\.layers\.\d+\.encoder_attn",
}
# Names of modules that have more than one part, or that no dot divides from the rest of a key.
_MODULES = re.compile(
    r"(to_[qkv]|to_out[._]0|ff[._]net[._]0[._]proj|ff[._]net[._]2|[qkv]_proj|out_proj|proj_in|proj_out|fc[12]|conv_in|conv_out|"
    r"conv_shortcut|conv[12]|conv|time_emb_proj|linear_[12])$"
)
_CONTEXT_WIDTHS = {768: "SD1.x", 1024: "SD2.x", 2048: "SDXL"}


@dataclass(frozen=True)
class BlockFacts:
    """How many layers of a block are changed, and their ranks (least, most)."""

    layers: int
    ranks: tuple[int, int]


@dataclass(frozen=True)
class AdapterFacts:
    """What an adapter is.

    Args:
        path: Of the file or folder.
        format: Who writes such keys, such as ``kohya``.
        kinds: Kind of adapter -> number of modules.
        base: What it was trained for, as far as the file tells.
        targets: Number of modules that it changes.
        modules: What they are called, such as ``q`` or ``to_k`` -> how many of them.
        peft: Of a PEFT adapter: ``r``, ``alpha`` and ``rslora`` of its settings; else empty.
        blocks: Block of the model -> what is changed in it.
        trigger_words: Most likely first, from the metadata.
        norm: Frobenius norm of all deltas together; only of deltas that can be measured without the
            base.
        largest: Module -> norm of its delta, the largest few.
        problems: What would not load, and why.
        metadata: Of the file, without the long lists.
    """

    path: str
    format: str
    kinds: Mapping[str, int]
    base: str
    targets: int
    modules: Mapping[str, int]
    peft: Mapping[str, Any]
    blocks: Mapping[str, BlockFacts]
    trigger_words: tuple[str, ...]
    norm: float
    largest: Mapping[str, float]
    problems: tuple[str, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


def inspect_adapter(path: Path) -> AdapterFacts:
    """Return what a LoRA file, or a PEFT adapter's folder or weights, is.

    Raises:
        AdapterError: It cannot be read at all, or is no adapter but a model.
    """
    folder = path.parent if path.name in (peft.WEIGHTS_FILE, peft.CONFIG_FILE) else path
    settings: Mapping[str, Any] = {}
    if folder.is_dir():
        settings = peft.read_settings(folder)
        peft.check_weights(folder)
        path = folder
        file = folder / peft.WEIGHTS_FILE
    else:
        file = path
    tensors, metadata = read_tensors(file)
    groups, unknown = _groups(tensors)
    if unknown and not groups and not settings:
        raise AdapterError(
            f"{path.name}: none of its {len(unknown)} tensors, such as {unknown[0]!r}, is an "
            "adapter's: this is a model, or part of one. Give the file or folder of an adapter"
        )
    deltas, problems = (
        _peft_deltas(path.name, tensors, settings) if settings else _deltas(path.name, groups)
    )
    if settings:
        problems += [f"{key!r} {meaning_of(key)}" for key in unknown]
    else:
        problems += [f"{key!r} is of no known kind" for key in unknown]
    norms = {
        base: delta.squared_norm().clamp_min(0).sqrt().item() for base, delta in deltas.items()
    }
    return AdapterFacts(
        path=str(path),
        format=_format(tensors),
        kinds=dict(Counter(_kind(group) for group in groups.values()).most_common()),
        base=base_family(tensors, metadata, settings),
        targets=len(groups),
        modules=dict(Counter(map(_module_name, groups)).most_common()),
        peft=_peft_facts(settings),
        blocks=_blocks(deltas),
        trigger_words=trigger_words(metadata).words,
        norm=sum(norm**2 for norm in norms.values()) ** 0.5,
        largest=dict(sorted(norms.items(), key=lambda item: -item[1])[:3]),
        problems=tuple(problems),
        metadata={key: value for key, value in metadata.items() if len(value) <= 200},
    )


def _groups(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    groups: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        parts = kohya.split_key(key)
        if parts is None:
            unknown.append(key)
        else:
            groups.setdefault(parts[0], {})[parts[1]] = tensor
    return groups, unknown


def _kind(group: Mapping[str, Tensor]) -> str:
    if "down" in group and group["down"].shape[2:].numel() > 1 and "dora_scale" not in group:
        return "LoCon"
    return next((kind for role, kind in _KINDS.items() if role in group), "unknown")


def _deltas(
    name: str, groups: Mapping[str, Mapping[str, Tensor]]
) -> tuple[dict[str, LowRankDelta], list[str]]:
    """Return the deltas that need no base weight, and what is wrong with the others."""
    deltas = {}
    problems = []
    for base, group in groups.items():
        if not (set(group) <= _PLAIN_ROLES or set(group) <= _LOHA_ROLES):
            continue  # needs the base weight or the host; whoever holds those reads it
        try:
            delta = delta_of_group(name, base, base, group, _own_shape(group), None)
        except AdapterError as error:
            problems.append(str(error))
            continue
        if delta is not None:
            deltas[base] = delta
    return deltas, problems


def _own_shape(group: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return the (d_out, d_in) that a group's own tensors imply; what is missing is found later, by
    name.
    """
    if "diff" in group:
        return group["diff"].shape[0], group["diff"][0].numel()
    up, down = ("up", "down") if "up" in group or "down" in group else ("hada_w1_a", "hada_w1_b")
    if up not in group or down not in group or not group[up].ndim or group[down].ndim < 2:
        return 0, 0
    kernel = group["mid"].shape[2:].numel() if "mid" in group else 1
    return group[up].shape[0], group[down].flatten(1).shape[1] * kernel


def _peft_deltas(
    name: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[dict[str, LowRankDelta], list[str]]:
    problem = refusal(settings)
    if problem:
        return {}, [f"it is {problem}"]
    factors = {key: tensor for key, tensor in tensors.items() if kohya.split_key(key) is not None}
    groups, _ = _groups(factors)
    # a DoRA's delta needs the base weight; whoever holds that reads it
    dora = {
        base for base, group in groups.items() if settings.get("use_dora") and "magnitude" in group
    }
    factors = {
        key: tensor for key, tensor in factors.items() if kohya.split_key(key)[0] not in dora
    }
    shapes = {
        base.removeprefix(peft.PREFIX): _own_shape(group)
        for base, group in groups.items()
        if base not in dora
    }
    if dora and not factors:
        return {}, []
    try:
        return dict(peft.parse(name, factors, settings, shapes).deltas), []
    except AdapterError as error:
        return {}, [str(error)]


def _module_name(base: str) -> str:
    """Return what a module is called, without its place in the model."""
    known = _MODULES.search(base)
    if known:
        return known[1]
    return re.search(r"[^.]+(\.\d+)*$", base)[0] if "." in base else re.split(r"_\d+_", base)[-1]


def _peft_facts(settings: Mapping[str, Any]) -> dict[str, Any]:
    if not settings:
        return {}
    return {
        "r": settings.get("r"),
        "alpha": settings.get("lora_alpha"),
        "rslora": bool(settings.get("use_rslora")),
    }


def _format(keys: Iterable[str]) -> str:
    found = Counter(
        next((writer for start, writer in _WRITERS.items() if re.match(start, key)), "unknown")
        for key in keys
    )
    return " and ".join(writer for writer, _ in found.most_common()) or "empty"


def base_family(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Return what an adapter was trained for, as far as the shapes of its tensors and its metadata
    tell.
    """
    named = [
        (settings or {}).get("base_model_name_or_path"),
        metadata.get("modelspec.architecture"),
        metadata.get("ss_base_model_version"),
    ]
    guess = next(
        (
            family
            for family, pattern in _FAMILIES.items()
            if any(re.search(pattern, key) for key in tensors)
        ),
        None,
    )
    if guess is None:
        widths = {
            t.shape[1]
            for key, t in tensors.items()
            if re.search(r"attn2.*to_[kv].*(down|lora_A)", key) and t.ndim > 1
        }
        guess = next((family for width, family in _CONTEXT_WIDTHS.items() if width in widths), None)
    told = next((name for name in named if name), None)
    return f"{guess} ({told})" if guess and told else guess or told or "unknown"


def _blocks(deltas: Mapping[str, LowRankDelta]) -> dict[str, BlockFacts]:
    ranks: dict[str, list[int]] = {}
    for base, delta in deltas.items():
        numbered = re.match(r"(.*?[._]\d+)(?=[._]|$)", base)
        ranks.setdefault(numbered[1] if numbered else re.split(r"[.]", base)[0], []).append(
            delta.rank
        )
    return {
        block: BlockFacts(len(found), (min(found), max(found))) for block, found in ranks.items()
    }
