"""PEFT adapter folders, ``adapter_config.json`` and ``adapter_model.safetensors``, in our own code:
`peft` is not needed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters import Adapter, LowRankDelta
from ..errors import AdapterError
from .kinds import peft_dora
from .peft_kinds import meaning_of, refusal
from .peft_settings import CONFIG_FILE, matching_pattern, read_settings, scale_at
from .tensors import check_replaceable, read_tensors, whole_folder, write_tensors

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
MAGNITUDES = "magnitude_vector"  # of a DoRA, one per output
_FACTOR = re.compile(
    rf"(?P<path>.+)\.lora_(?P<role>[AB](?=(?:\.default)?\.weight$)|{MAGNITUDES})(?:\.default)?(?:\.weight)?"
)
_OWN_FILES = {CONFIG_FILE, WEIGHTS_FILE, "README.md", ".gitattributes"}
WeightAt = Callable[[str], Tensor]  # module path -> the base model's weight there, (d_out, ...)


def load(
    folder: Path, shapes: Mapping[str, tuple[int, int]], weight_at: WeightAt | None = None
) -> Adapter:
    """Read a PEFT adapter folder, with alpha / rank (or alpha / sqrt(rank) of rsLoRA) folded into
    ``up``.

    The delta of a DoRA is what it changes in the base weight, ``m (W + up down) / ||W + up down|| -
    W``, of full rank.

    Args:
        folder: Of the adapter.
        shapes: Module path -> (d_out, d_in) of the base model's weights that can be merged.
        weight_at: See `WeightAt`; only a DoRA needs it.

    Raises:
        AdapterError: The folder is incomplete, of another kind or for another base model; names the
            file and what to do.
    """
    settings = read_settings(folder)
    check_weights(folder)
    tensors, metadata = read_tensors(folder / WEIGHTS_FILE)
    return parse(folder.name, tensors, settings, shapes, metadata, weight_at)


def check_weights(folder: Path) -> None:
    """Refuse an adapter's folder that has no weights that can be read.

    Raises:
        AdapterError: There are none, or a pickle's.
    """
    if (folder / WEIGHTS_FILE).exists():
        return
    if (folder / "adapter_model.bin").exists():
        raise AdapterError(
            f"{folder.name}: its weights are a pickle (adapter_model.bin), which can run code when "
            f"it is opened; IterIS reads only {WEIGHTS_FILE}. Save the adapter again with "
            "save_pretrained(..., safe_serialization=True)"
        )
    raise AdapterError(
        f"{folder.name}: the folder has no {WEIGHTS_FILE} ({folder}); give the folder that PEFT's "
        "save_pretrained wrote"
    )


def parse(
    name: str,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, int]],
    metadata: Mapping[str, str] | None = None,
    weight_at: WeightAt | None = None,
) -> Adapter:
    """Return the adapter that a folder's tensors and settings describe; see `load`."""
    problem = refusal(settings)
    if problem:
        raise AdapterError(f"{name}: it is {problem}")
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = _FACTOR.fullmatch(key)
        if found is None:
            raise AdapterError(f"{name}: {key!r} {meaning_of(key)}")
        path = found["path"].removeprefix(PREFIX)
        role = found["role"]
        if role in pairs.setdefault(path, {}):
            raise AdapterError(
                f"{name}: {path!r} has two tensors lora_{role}; the file mixes two adapters and is "
                "damaged"
            )
        pairs[path][role] = tensor
    foreign = [
        path for path in pairs if path not in shapes
    ]  # PEFT names modules exactly, so each of them has to be there
    if foreign or not pairs:
        which = "none" if len(foreign) == len(pairs) else f"only {len(pairs) - len(foreign)}"
        example = f"; there is no layer {foreign[0]!r} that can be merged" if foreign else ""
        base = settings.get("base_model_name_or_path")
        trained = f"it was trained for {base!r}" if base else "it was trained for another model"
        raise AdapterError(
            f"{name}: {which} of its {len(pairs)} layers are in this model{example}. Perhaps "
            f"{trained}: choose that as the base"
        )
    deltas = {
        path: _delta(name, path, pair, settings, shapes[path], weight_at)
        for path, pair in pairs.items()
    }
    return Adapter(name, deltas, metadata=dict(metadata or {}))


def _delta(
    name: str,
    path: str,
    pair: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    shape: tuple[int, int],
    weight_at: WeightAt | None,
) -> LowRankDelta:
    """Return one layer's delta. ``fan_in_fan_out`` needs no care: it is about how the base weight
    is stored.
    """
    missing = [role for role in "AB" if role not in pair]
    if missing:
        raise AdapterError(
            f"{name}: {path!r} has no lora_{missing[0]} factor; the file is incomplete. Download it "
            "again"
        )
    words = f"factors {tuple(pair['B'].shape)} and {tuple(pair['A'].shape)}"
    if any(pair[role].ndim < 2 or not pair[role].numel() for role in "AB"):
        raise AdapterError(
            f"{name}: {path!r} has {words}, which are no matrices; the file is damaged"
        )
    up = pair["B"].float().flatten(1)
    down = pair["A"].float().flatten(1)
    rank = up.shape[1]
    if rank != down.shape[0]:
        raise AdapterError(
            f"{name}: {path!r} has {words}, which have different ranks; the file is damaged"
        )
    if (up.shape[0], down.shape[1]) != tuple(shape):
        raise AdapterError(
            f"{name}: {path!r} has {words}, but this model's weight there is {shape[0]} x "
            f"{shape[1]}. The adapter was trained for "
            f"{settings.get('base_model_name_or_path') or 'another model'!r}; choose that as the "
            "base"
        )
    if not all(torch.isfinite(tensor).all() for tensor in pair.values()):
        raise AdapterError(
            f"{name}: {path!r} holds NaN or infinite weights; the training run broke. Use an "
            "earlier checkpoint of this adapter"
        )
    delta = LowRankDelta(up * scale_at(name, settings, path, rank), down)
    if settings.get("use_dora") or MAGNITUDES in pair:
        return _dora(name, path, delta, pair.get(MAGNITUDES), settings, weight_at)
    return delta


def _dora(
    name: str,
    path: str,
    delta: LowRankDelta,
    magnitudes: Tensor | None,
    settings: Mapping[str, Any],
    weight_at: WeightAt | None,
) -> LowRankDelta:
    found = 0 if magnitudes is None else magnitudes.numel()
    expected = delta.shape[0] if settings.get("use_dora") else 0
    if found != expected or magnitudes is None:
        raise AdapterError(
            f"{name}: {path!r} has {found} magnitudes of a DoRA where {CONFIG_FILE} and the model "
            f"announce {expected}; config, weights and base are not of one adapter"
        )
    if weight_at is None:
        raise AdapterError(
            f"{name}: it is a DoRA, whose delta depends on the base model's weights; give "
            "`weight_at`, which returns them"
        )
    group = {"up": delta.up, "down": delta.down, "magnitude": magnitudes}
    return LowRankDelta.from_dense(peft_dora(name, path, group, weight_at(path).detach().cpu()))


def to_tensors(
    adapter: Adapter, kernels: Mapping[str, tuple[int, int]] | None = None
) -> dict[str, Tensor]:
    """Return the adapter's factors under PEFT's keys.

    Args:
        adapter: In the precision in which it is to be saved.
        kernels: Module path -> (height, width) of convolutions, whose factors have four dimensions.
    """
    tensors = {}
    for path, delta in adapter.deltas.items():
        kernel = (kernels or {}).get(path, ())
        tensors[f"{PREFIX}{path}.lora_A.weight"] = delta.down.reshape(
            delta.rank, -1, *kernel
        ).contiguous()
        tensors[f"{PREFIX}{path}.lora_B.weight"] = delta.up.reshape(
            *delta.up.shape, *(1 for _ in kernel)
        ).contiguous()
    return tensors


def settings_of(
    adapter: Adapter, base_model_name_or_path: str, task_type: str | None
) -> dict[str, Any]:
    """Return ``adapter_config.json``: alpha = rank everywhere; layers of another rank than most of
    them have patterns.
    """
    ranks = {path: delta.rank for path, delta in adapter.deltas.items()}
    common = Counter(ranks.values()).most_common(1)[0][0]
    patterns = {path: rank for path, rank in ranks.items() if rank != common}
    if any(
        patterns.get(matching_pattern(patterns, path), common) != rank
        for path, rank in ranks.items()
    ):
        # one layer's path is the end of another's: bind the patterns to the start
        patterns = {f"^{re.escape(path)}": rank for path, rank in patterns.items()}
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model_name_or_path,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": patterns,
        "alpha_pattern": dict(patterns),
        "target_modules": sorted(ranks),
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
    }


def save(
    adapter: Adapter,
    folder: Path,
    base_model_name_or_path: str,
    task_type: str | None,
    *,
    overwrite: bool = False,
    kernels: Mapping[str, tuple[int, int]] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a folder that `PeftModel.from_pretrained` loads, in one step: it is there whole or not
    at all.

    Args:
        adapter: In the precision in which it is to be saved.
        folder: Of the adapter; its parent is made if needed.
        base_model_name_or_path: For the config.
        task_type: PEFT's name of the model's task, such as ``SEQ_2_SEQ_LM``; None: a plain
            `PeftModel`.
        overwrite: Replace an adapter that is there.
        kernels: See `to_tensors`.
        metadata: Strings for the safetensors file.

    Raises:
        AdapterError: It has no deltas, or changes that PEFT's format has no place for.
        FileExistsError: The folder is there and `overwrite` is False, or it holds files of others;
            it is untouched.
    """
    if not adapter.deltas or adapter.vectors:
        found = (
            "bias and norm changes, which a PEFT adapter cannot hold"
            if adapter.vectors
            else "no deltas"
        )
        raise AdapterError(
            f"{adapter.name}: it has {found}, so it cannot be saved as a PEFT adapter"
        )
    check_free(folder, overwrite=overwrite)
    with whole_folder(folder) as draft:
        write_tensors(to_tensors(adapter, kernels), draft / WEIGHTS_FILE, metadata or {})
        settings = settings_of(adapter, base_model_name_or_path, task_type)
        (draft / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that `save` would not write to; worth asking before the work, too.

    Raises:
        FileExistsError: See `save`.
    """
    check_replaceable(folder, _OWN_FILES.__contains__, overwrite=overwrite)
