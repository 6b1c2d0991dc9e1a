"""Folders of PEFT adapters (``adapter_config.json``, ``adapter_model.safetensors``), read and
written without the library `peft`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapters import Adapter, LowRankDelta
from ..errors import AdapterError
from ..settings import shown
from .families import base_of
from .kinds import (
    DOWN,
    MAGNITUDE,
    PEFT_DORA,
    UP,
    Group,
    Shape,
    WrongShape,
    check_delta,
    grouped,
    lora_factors,
    low_rank,
    peft_dora,
    peft_key_of,
)
from .limits import SETTINGS_BYTES, json_value
from .tensors import read_tensors
from .writing import FolderKind, blocks_of, check_replaceable, put, whole_folder

CONFIG_FILE = "adapter_config.json"
_DEFAULT_RANK_AND_ALPHA = 8  # PEFT's own
_ESCAPED = re.compile(r"\\(\W)")
_SPECIAL = re.compile(r"[\\^$|?*+()\[\]{}]")
# Settings that change the meaning of the factors, or add weights beside them: setting -> what such
# an adapter is, and what to do.
_REFUSED = {
    "modules_to_save": "trained with whole modules in addition to its LoRA (modules_to_save), "
    "which the merge would lose. Train it without",
    "trainable_token_indices": "trained with token embeddings of its own "
    "(trainable_token_indices). Train it without",
    "target_parameters": "a LoRA on bare parameters (target_parameters); only those on whole "
    "layers can be merged",
    "layer_replication": "for a model with replicated layers (layer_replication); its layers are "
    "not those of the base model",
    "megatron_config": "a Megatron adapter, whose factors are spread over devices. Export it as a "
    "plain LoRA",
    "alora_invocation_tokens": "an aLoRA, active only after its invocation tokens. Train a plain "
    "LoRA",
    "use_qalora": "a QALoRA, whose factors act on pooled inputs. Train a plain LoRA",
    "use_bdlora": "a block-diagonal LoRA. Train a plain LoRA",
    "arrow_config": "a router over other adapters. Give those adapters themselves",
    "kasa_config": "a KaSA adapter, which has singular values of its own. Train a plain LoRA",
    "monteclora_config": "a MonteCLoRA, which draws its factors at random. Train a plain LoRA",
}
# Initialisations that take something out of the base weights, so that the factors do not fit the
# original base.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the settings in an adapter's folder.

    Raises:
        AdapterError: The file is missing, or is not what PEFT writes.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        found = (
            "there is no such folder" if not folder.is_dir() else f"the folder has no {CONFIG_FILE}"
        )
        raise AdapterError(
            f"{folder.name}: {found} ({folder}); give the folder that PEFT's save_pretrained wrote"
        )
    try:
        with path.open("rb") as file:
            content = file.read(SETTINGS_BYTES + 1)
        if len(content) > SETTINGS_BYTES:
            raise ValueError(f"it has more than {SETTINGS_BYTES} bytes")
        settings = json_value(content.decode("utf-8"))
    except (ValueError, OSError) as error:
        raise AdapterError(
            f"{folder.name}: {CONFIG_FILE} cannot be read ({error}); download it again"
        ) from error
    if not isinstance(settings, dict):
        raise AdapterError(
            f"{folder.name}: {CONFIG_FILE} is a {type(settings).__name__}, not an object; download "
            "it again"
        )
    return settings


def refusal(settings: Mapping[str, Any]) -> str | None:
    """Return the reason why an adapter cannot be merged, and the next step; None if it can.

    Args:
        settings: Settings, as `read_settings` returns them.

    Returns:
        Phrase that continues "it is".
    """
    kind = settings.get("peft_type")
    if kind != "LORA":
        return f"of PEFT's kind {shown(kind)}; only LORA can be merged"
    for setting, problem in _REFUSED.items():
        if settings.get(setting):
            return problem
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        return (
            f"a LoRA that began as {shown(start)} and was saved without conversion, so that it "
            "fits only the changed base model of its training run. Save it with "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    return None


def meaning_of(key: str) -> str:
    """Return a phrase that continues a tensor's key: the meaning of a tensor that is not a
    factor of a LoRA, and the next step.
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


@dataclass(frozen=True)
class Scales:
    """The factor of each layer's ``up @ down`` in PEFT's settings.

    Args:
        settings: Settings, as `read_settings` returns them.
        ranks: Layers of another rank than the settings' ``r``; see `_patterns`.
        alphas: Layers of another alpha than the settings' ``lora_alpha``.
    """

    settings: Mapping[str, Any]
    ranks: Mapping[str, tuple[int, Any]]
    alphas: Mapping[str, tuple[int, Any]]

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Scales:
        """Return the factors that settings announce.

        Raises:
            AdapterError: Patterns of layers cannot be read; begins with the predicate.
        """
        return cls(
            settings, _patterns(settings, "rank_pattern"), _patterns(settings, "alpha_pattern")
        )

    def at(self, path: str, rank: int) -> float:
        """Return the factor of a layer: alpha / rank, with rsLoRA alpha / sqrt(rank).

        Args:
            path: The layer.
            rank: The rank of its factors.

        Raises:
            AdapterError: The settings announce another rank, or hold no number; begins with the
                predicate, so that the caller can put the place before it.
        """
        announced = self._setting(self.ranks, "r", path)
        if announced != rank or not rank:
            raise AdapterError(
                f"has rank {rank}, but {CONFIG_FILE} says {announced:g}; config and weights are "
                "not of one adapter"
            )
        alpha = self._setting(self.alphas, "lora_alpha", path)
        return alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)

    def _setting(self, patterns: Mapping[str, tuple[int, Any]], name: str, path: str) -> float:
        """Return a setting of one layer by PEFT's rule: that of the first pattern that is the path
        or its end after a dot, else the default.
        """
        fitting = [patterns[text] for text in (f"^{path}", *_ends(path)) if text in patterns]
        default = self.settings.get(name, _DEFAULT_RANK_AND_ALPHA)
        value = min(fitting, key=itemgetter(0))[1] if fitting else default
        number = _number(value)
        if number is None:
            raise AdapterError(
                f"has no scale: {CONFIG_FILE} gives {shown(value)} as its {name}; it must be a "
                "number"
            )
        return number


def _patterns(settings: Mapping[str, Any], name: str) -> dict[str, tuple[int, Any]]:
    """Return pattern -> its place and value.

    PEFT compiles patterns as regular expressions, ``(.*\\.)?(pattern)$``. A stranger's could keep
    a machine busy for ever. Programs write paths and ends of paths, some with ``^`` before a whole
    one. These are read, and compared as texts.

    Raises:
        AdapterError: There is another one; begins with the predicate.
    """
    patterns = settings.get(name) or {}
    if not isinstance(patterns, Mapping):
        raise AdapterError(
            f"has no scale: {name} of {CONFIG_FILE} is a {type(patterns).__name__}; it must be "
            "an object, pattern -> number"
        )
    read: dict[str, tuple[int, Any]] = {}
    for number, (pattern, value) in enumerate(patterns.items()):
        special = _SPECIAL.search(_ESCAPED.sub("", pattern.removeprefix("^")))
        if special:
            raise AdapterError(
                f"has no scale: {name} of {CONFIG_FILE} holds the pattern {pattern[:60]!r}, a "
                f"regular expression ({special[0]!r}). Names of layers and ends of their paths are "
                "read; write each layer's path there"
            )
        read.setdefault(_ESCAPED.sub(r"\1", pattern), (number, value))
    return read


def _ends(path: str) -> list[str]:
    """Return a path and its ends after each dot."""
    names = path.split(".")
    return [".".join(names[start:]) for start in range(len(names))]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # JSON has whole numbers that no float can hold
        return None


WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
_ROLES = {UP, DOWN, MAGNITUDE}
_FILES = (CONFIG_FILE, WEIGHTS_FILE, "README.md", ".gitattributes")
_FOLDER = FolderKind(
    "a PEFT adapter",
    lambda path: path.name in _FILES and (path.parent / CONFIG_FILE).is_file(),
)
WeightAt = Callable[[str], Tensor]  # module path -> the base model's weight there, (d_out, ...)


def load(folder: Path, shapes: Mapping[str, Shape], weight_at: WeightAt | None = None) -> Adapter:
    """Read a PEFT adapter, with alpha / rank (or alpha / sqrt(rank) of rsLoRA) folded into ``up``.

    The delta of a DoRA is what it changes in the base weight, ``m (W + up down) / ||W + up down|| -
    W``, of full rank.

    Args:
        folder: The adapter's folder.
        shapes: Module path -> (d_out, d_in) of the base model's weights that can be merged.
        weight_at: Function that returns the base model's weights; only a DoRA needs them.

    Raises:
        AdapterError: The folder is incomplete, of another kind or for another base model; names the
            file and what to do.
    """
    settings = read_settings(folder)
    tensors, metadata = read_weights(folder)
    return parse(folder.name, tensors, settings, shapes, metadata, weight_at)


def read_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata in an adapter's folder.

    Raises:
        AdapterError: There are no weights, or they cannot be read.
    """
    if (folder / WEIGHTS_FILE).exists():
        try:
            return read_tensors(folder / WEIGHTS_FILE)
        except AdapterError as error:
            raise AdapterError(f"{folder.name}: {error}") from error
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
    shapes: Mapping[str, Shape],
    metadata: Mapping[str, str] | None = None,
    weight_at: WeightAt | None = None,
) -> Adapter:
    """Return the adapter that a folder's tensors and settings describe; see `load`."""
    problem = refusal(settings)
    if problem:
        raise AdapterError(f"{name}: it is {problem}")
    groups, others = grouped(tensors)
    if others:
        raise AdapterError(f"{name}: {others[0]!r} {meaning_of(others[0])}")
    deltas = dict(deltas_of(name, groups.values(), settings, shapes, weight_at))
    return Adapter(name, deltas, metadata=dict(metadata or {}))


def deltas_of(
    name: str,
    groups: Iterable[Group],
    settings: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    weight_at: WeightAt | None = None,
) -> Iterator[tuple[str, LowRankDelta]]:
    """Yield module path and delta of an adapter's groups of tensors.

    Args:
        name: Name of the adapter, for errors.
        groups: Tensors of the adapter, by module.
        settings: Settings, as `read_settings` returns them.
        shapes: See `load`.
        weight_at: See `load`.

    Raises:
        AdapterError: See `load`.
    """
    by_path = _by_path(name, groups)
    # PEFT names modules exactly, so each of them has to be there
    foreign = [path for path in by_path if path not in shapes]
    base = base_of(settings)
    if foreign or not by_path:
        which = "none" if len(foreign) == len(by_path) else f"only {len(by_path) - len(foreign)}"
        example = f"; there is no layer {foreign[0]!r} that can be merged" if foreign else ""
        trained = f"it was trained for {base!r}" if base else "it was trained for another model"
        raise AdapterError(
            f"{name}: {which} of its {len(by_path)} layers are in this model{example}. Perhaps "
            f"{trained}: choose that as the base"
        )
    try:
        scales = Scales.of(settings)
    except AdapterError as error:
        raise AdapterError(f"{name}: {next(iter(by_path))!r} {error}") from error
    for path, group in by_path.items():
        try:
            delta = _delta(path, group, scales, shapes[path], weight_at)
        except WrongShape as error:
            raise AdapterError(
                f"{name}: {path!r} {error}. The adapter was trained for "
                f"{base or 'another model'!r}; choose that as the base"
            ) from error
        except AdapterError as error:
            raise AdapterError(f"{name}: {path!r} {error}") from error
        yield path, delta


def _by_path(name: str, groups: Iterable[Group]) -> dict[str, Group]:
    """Return module path -> its tensors, all of which PEFT gives to a LoRA or a DoRA."""
    by_path: dict[str, Group] = {}
    for group in groups:
        path = group.base.removeprefix(PREFIX)
        strange = [key for role, key in group.keys.items() if role not in _ROLES]
        if strange:
            raise AdapterError(f"{name}: {strange[0]!r} {meaning_of(strange[0])}")
        if path in by_path:
            raise AdapterError(
                f"{name}: {path!r} is described twice; the file mixes two adapters and is damaged"
            )
        by_path[path] = group
    return by_path


def _delta(
    path: str,
    group: Group,
    scales: Scales,
    shape: Shape,
    weight_at: WeightAt | None,
) -> LowRankDelta:
    """Return one layer's delta. ``fan_in_fan_out`` does not matter, since it concerns the storage
    of the base weight.
    """
    group.check_single()
    up, down = lora_factors(group.tensors, shape)
    delta = LowRankDelta(up * scales.at(path, len(down)), down)
    check_delta(delta)
    is_dora = bool(scales.settings.get("use_dora"))
    if not is_dora and MAGNITUDE not in group.tensors:
        return delta
    found = group.tensors[MAGNITUDE].numel() if MAGNITUDE in group.tensors else 0
    expected = shape[0] if is_dora else 0
    if found != expected:
        raise AdapterError(
            f"has {found} magnitudes of a DoRA where {CONFIG_FILE} and the model announce "
            f"{expected}; config, weights and base are not of one adapter"
        )
    scaled = {UP: delta.up, DOWN: delta.down, MAGNITUDE: group.tensors[MAGNITUDE]}
    weight = None if weight_at is None else weight_at(path).detach().cpu()
    return low_rank(peft_dora(scaled, weight), shape, PEFT_DORA.phrase)


def to_tensors(
    adapter: Adapter, kernels: Mapping[str, tuple[int, int]] | None = None
) -> dict[str, Tensor]:
    """Return an adapter's factors under PEFT's keys.

    Args:
        adapter: The adapter, in the precision in which it is to be saved.
        kernels: Module path -> (height, width) of convolutions, whose factors have four dimensions.
    """
    tensors = {}
    for path, delta in adapter.deltas.items():
        kernel = (kernels or {}).get(path, ())
        base = PREFIX + path
        tensors[peft_key_of(base, DOWN)] = delta.down.reshape(delta.rank, -1, *kernel)
        tensors[peft_key_of(base, UP)] = delta.up.reshape(*delta.up.shape, *(1 for _ in kernel))
    return {key: tensor.contiguous() for key, tensor in tensors.items()}


def settings_of(
    adapter: Adapter, base_model_name_or_path: str, task_type: str | None
) -> dict[str, Any]:
    """Return the settings of an adapter, with alpha = rank everywhere. Layers of another rank than
    the commonest have patterns.

    Args:
        adapter: The adapter; it has deltas.
        base_model_name_or_path: The base model, as its users name it.
        task_type: PEFT's name of the model's task, such as ``SEQ_2_SEQ_LM``; None: a plain
            `PeftModel`.
    """
    ranks = {path: delta.rank for path, delta in adapter.deltas.items()}
    common = Counter(ranks.values()).most_common(1)[0][0]
    patterns = {path: rank for path, rank in ranks.items() if rank != common}
    read = {_in_letters(path): rank for path, rank in patterns.items()}
    if any(
        read.get(end, rank) != rank
        for path, rank in ranks.items()
        for end in _ends(_in_letters(path))
    ):  # one layer's path is the end of another's: bind the patterns to the start
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


def _in_letters(path: str) -> str:
    """Return a path with dots for all but letters and numbers: a dot fits any of them in PEFT."""
    return re.sub(r"\W|_", ".", path)


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
        adapter: The adapter, in the precision in which it is to be saved.
        folder: The adapter's folder; its parent is made if needed.
        base_model_name_or_path: See `settings_of`.
        task_type: See `settings_of`.
        overwrite: Whether an adapter that is there may be replaced.
        kernels: See `to_tensors`.
        metadata: Strings for the safetensors file.

    Raises:
        AdapterError: The adapter has no deltas, or changes for which PEFT's format has no place.
        NameTakenError: The folder is there and `overwrite` is False, or it is not an adapter's or
            holds other files than an adapter's; it is untouched.
        SaveError: It cannot be written; names the cause. What was there is untouched.
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
    with whole_folder(folder, _FOLDER, overwrite=overwrite) as draft:
        put(draft / WEIGHTS_FILE, blocks_of(to_tensors(adapter, kernels), metadata or {}))
        settings = settings_of(adapter, base_model_name_or_path, task_type)
        put(draft / CONFIG_FILE, [json.dumps(settings, indent=2).encode("utf-8") + b"\n"])


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder to which `save` would not write. It can be called before a long merge, too.

    Args:
        folder: The adapter's folder.
        overwrite: Whether an adapter that is there may be replaced.

    Raises:
        NameTakenError: See `save`.
    """
    check_replaceable(folder, _FOLDER, overwrite=overwrite)
