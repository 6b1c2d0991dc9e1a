"""Folders of PEFT adapters (``adapter_config.json``, ``adapter_model.safetensors``), read and
written without the library `peft`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ..adapters import Adapter, LowRankDelta
from ..errors import AdapterError, NameTakenError
from .adapter_kinds import PEFT_DORA, lora_factors, low_rank, peft_dora
from .groups import PEFT_ENDINGS, Group, factors_by_key, grouped
from .peft_settings import CONFIG_FILE, Scales, read_settings, refusal, settings_of
from .recognition import base_of
from .roles import DOWN, MAGNITUDE, UP, Shape
from .tensor_checks import check_delta, told_of
from .tensors import read_tensors
from .writing import blocks_of, taken, whole_files


def with_name(path: Path) -> Path:
    """Return a path that ends with a name, also where it was given as ``.`` or ``..``."""
    return path if path.name.strip(".") else path.resolve()


def meaning_of(key: str) -> str:
    """Return what a tensor is that is not a factor of a LoRA, as the end of a sentence that begins
    with its key, and the next step.
    """
    if "lora_embedding_" in key:
        return (
            "changes an embedding; only Linear and Conv2d layers can be merged. Train the adapter "
            "without embeddings"
        )
    if key.endswith(".base_layer.weight"):
        return (
            "is a copy of the base model's weight, which PEFT adds for heads and embeddings. Save "
            "the adapter again with save_pretrained(..., save_embedding_layers=False)"
        )
    if key.endswith(".bias"):
        return (
            "is a trained bias, which the merge would lose. Train the adapter with bias='none' and "
            "lora_bias=false"
        )
    return (
        "is not a factor of a LoRA, and the merge would lose it. Train the adapter without "
        "modules_to_save"
    )


WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
WeightAt = Callable[[str], Tensor]  # module path -> the base model's weight there, (d_out, ...)


def load(folder: Path, shapes: Mapping[str, Shape], weight_at: WeightAt | None = None) -> Adapter:
    """Read a PEFT adapter, with alpha / rank (or alpha / sqrt(rank) of rsLoRA) folded into ``up``.

    The delta of a DoRA is what it changes in the base weight, ``m (W + up down) / ||W + up down|| -
    W``, of full rank.

    Args:
        shapes: Module path -> (d_out, d_in) of the base model's weights that can be merged.
        weight_at: Function that returns the base model's weights; only a DoRA needs them.

    Raises:
        AdapterError: The folder is incomplete, of another kind or for another base model; names the
            file and what to do.
    """
    folder = with_name(folder)
    name = folder.name
    settings = read_settings(folder)
    tensors, metadata = read_weights(folder)
    problem = refusal(settings)
    if problem:
        raise AdapterError(f"{name}: it is {problem}")
    groups, others = grouped(tensors)
    others += strange_keys(groups.values())
    if others:
        raise AdapterError(f"{name}: {others[0]!r} {meaning_of(others[0])}")
    by_path = {group.base.removeprefix(PREFIX): group for group in groups.values()}
    if len(by_path) < len(groups):
        twice = next(path for path in by_path if path in groups and PREFIX + path in groups)
        raise AdapterError(
            f"{name}: {twice!r} is described twice; the file mixes two adapters and is damaged. "
            "Download it again"
        )
    # PEFT names modules exactly, so each of them has to be there
    foreign = [path for path in by_path if path not in shapes]
    base = base_of(settings) or "another model"
    if foreign or not by_path:
        example = f"; there is no layer {foreign[0]!r} that can be merged" if foreign else ""
        raise AdapterError(
            f"{name}: {len(by_path) - len(foreign)} of its {len(by_path)} layers are in this model"
            f"{example}. Perhaps it was trained for {base!r}: choose that as the base"
        )
    with told_of(f"{name}: {next(iter(by_path))!r}"):
        scales = Scales.of(settings)
    cause = f"The adapter was trained for {base!r}; choose that as the base"
    deltas = {}
    for path, group in by_path.items():
        with told_of(f"{name}: {path!r}", lambda: cause):
            deltas[path] = _delta(path, group, scales, shapes[path], weight_at)
    return Adapter(name, deltas, metadata=metadata)


def strange_keys(groups: Iterable[Group]) -> list[str]:
    """Return the keys of tensors that PEFT gives neither to a LoRA nor to a DoRA."""
    own = (UP, DOWN, MAGNITUDE)
    return [key for group in groups for role, key in group.keys.items() if role not in own]


def read_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata in an adapter's folder.

    Raises:
        AdapterError: There are no weights, or they cannot be read.
    """
    if (folder / WEIGHTS_FILE).exists():
        with told_of(f"{folder.name}:"):
            return read_tensors(folder / WEIGHTS_FILE)
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


def _delta(
    path: str, group: Group, scales: Scales, shape: Shape, weight_at: WeightAt | None
) -> LowRankDelta:
    group.check()
    up, down = lora_factors(group.tensors, shape)
    delta = LowRankDelta(up * scales.at(path, len(down)), down)
    check_delta(delta)
    if not scales.use_dora and MAGNITUDE not in group.tensors:
        return delta
    found = group.tensors[MAGNITUDE].numel() if MAGNITUDE in group.tensors else 0
    expected = shape[0] if scales.use_dora else 0
    if found != expected:
        raise AdapterError(
            f"has {found} magnitudes of a DoRA where {CONFIG_FILE} and the model announce "
            f"{expected}; config, weights and base are not of one adapter. Download it again, and "
            "choose the base that it was trained for"
        )
    scaled = {UP: delta.up, DOWN: delta.down, MAGNITUDE: group.tensors[MAGNITUDE]}
    weight = None if weight_at is None else weight_at(path).detach().cpu()
    return low_rank(peft_dora(scaled, weight), shape, PEFT_DORA.phrase)


def to_tensors(
    adapter: Adapter, kernels: Mapping[str, tuple[int, ...]] | None = None, prefix: str = PREFIX
) -> dict[str, Tensor]:
    """Return an adapter's factors under PEFT's keys, which begin with a prefix; convolutions, whose
    (height, width) are given by path, have factors of four dimensions.
    """
    tensors: dict[str, Tensor] = {}
    for path, delta in adapter.deltas.items():
        kernel = (kernels or {}).get(path, ())
        tensors |= factors_by_key(prefix + path, delta, kernel, PEFT_ENDINGS)
    return tensors


def save(
    adapter: Adapter,
    folder: Path,
    base_model_name_or_path: str,
    task_type: str | None,
    *,
    overwrite: bool = False,
    kernels: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Write an adapter, in the precision to save, as a folder that `PeftModel.from_pretrained`
    loads: both files or none. Others in the folder stay. For the arguments see `settings_of` and
    `to_tensors`.

    Raises:
        AdapterError: The adapter has no deltas, or changes that PEFT's format cannot hold.
        NameTakenError: See `check_free`.
        SaveError: It cannot be written; names the cause.
    """
    if not adapter.deltas or adapter.vectors:
        found = "bias and norm changes" if adapter.vectors else "no deltas"
        raise AdapterError(
            f"{adapter.name}: it has {found}, so it cannot be saved as a PEFT adapter"
        )
    check_free(folder, overwrite=overwrite)
    settings = settings_of(adapter, base_model_name_or_path, task_type)
    paths = [folder / CONFIG_FILE, folder / WEIGHTS_FILE]
    with whole_files(paths, overwrite=overwrite) as (config, weights):
        config.write(json.dumps(settings, indent=2).encode("utf-8") + b"\n")
        weights.writelines(blocks_of(to_tensors(adapter, kernels), {}))


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that `save` would not write, as before a long merge.

    Raises:
        NameTakenError: It is a file, or it is not empty and `overwrite` is False.
    """
    if folder.exists() and not folder.is_dir():
        raise NameTakenError(f"{folder} is a file; choose another folder")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise taken(folder)
