"""Folders of PEFT adapters (``adapter_config.json``, ``adapter_model.safetensors``), read and
written without the library `peft`.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapters import Adapter, LowRankDelta
from ..errors import AdapterError, NameTakenError
from ..settings import shown
from .adapter_kinds import PEFT_DORA, lora_factors, low_rank, peft_dora
from .groups import PEFT_ENDINGS, Group, factors_by_key, grouped
from .limits import SETTINGS_BYTES, json_value
from .recognition import base_of
from .roles import DOWN, MAGNITUDE, UP, Shape, check_delta, told_of
from .tensors import read_tensors
from .writing import taken, write_tensors, write_text

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
WeightAt = Callable[[str], Tensor]  # module path -> the base model's weight there, (d_out, ...)
_DEFAULT_RANK_AND_ALPHA = 8  # PEFT's own
_ESCAPED = re.compile(r"\\(\W)")
_NO_WORD = re.compile(r"\W|_")
_SPECIAL = re.compile(r"[\\^$|?*+()\[\]{}]")
# Settings that change the meaning of the factors, or add weights to them.
_REFUSED = (
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "megatron_config",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
# Initialisations that change the base weights, so that the factors do not fit the original ones.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the settings in an adapter's folder.

    Raises:
        AdapterError: The file is missing, or is not what PEFT writes.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        found = f"the folder has no {CONFIG_FILE}" if folder.is_dir() else "there is no such folder"
        raise AdapterError(
            f"{folder.name}: {found} ({folder}); give the folder that PEFT's save_pretrained wrote"
        )
    try:
        with path.open("rb") as file:
            settings = json_value(file.read(SETTINGS_BYTES).decode("utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("it is not an object")
    except (ValueError, OSError) as error:
        raise AdapterError(
            f"{folder.name}: {CONFIG_FILE} cannot be read ({error}); download it again"
        ) from error
    return settings


def _check_plain(settings: Mapping[str, Any]) -> None:
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"of PEFT's kind {shown(kind)}; only LORA can be merged")
    for setting in _REFUSED:
        if settings.get(setting):
            raise AdapterError(
                f"trained with {setting}, which is more than the two factors of each layer and "
                "would be lost in the merge. Train a plain LoRA without it"
            )
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise AdapterError(
            f"a LoRA that began as {shown(start)} and was saved without conversion, so that it "
            "fits only the changed base model of its training run. Save it with "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )


_Places = dict[str, tuple[int, float]]  # pattern -> its place among the patterns, and its value


def _number(setting: str, value: Any) -> float:
    with contextlib.suppress(OverflowError):
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    raise _no_scale(setting, value, "a number")


def _places(setting: str, patterns: Any) -> _Places:
    """Return the values of patterns of layers.

    PEFT compiles patterns as regular expressions, ``(.*\\.)?(pattern)$``. A stranger's could keep
    a machine busy for ever. Programs write paths and ends of paths, some with ``^`` before a whole
    one. These are read, and compared as texts.

    Raises:
        AdapterError: There is another one; begins with the predicate.
    """
    if not isinstance(patterns, Mapping):
        raise _no_scale(setting, patterns, "an object, pattern -> number")
    places: _Places = {}
    for number, (pattern, value) in enumerate(patterns.items()):
        if special := _SPECIAL.search(_ESCAPED.sub("", pattern.removeprefix("^"))):
            raise AdapterError(
                f"has no scale: {CONFIG_FILE} holds the pattern {pattern[:60]!r}, a regular "
                f"expression ({special[0]!r}). Names of layers and ends of their paths are read; "
                "write each layer's path there"
            )
        places.setdefault(_ESCAPED.sub(r"\1", pattern), (number, _number(setting, value)))
    return places


def _no_scale(setting: str, found: Any, expected: str) -> AdapterError:
    return AdapterError(
        f"has no scale: {CONFIG_FILE} gives {shown(found)} as its {setting}; it must be {expected}"
    )


@dataclass(frozen=True)
class Scales:
    """The factor of each layer's ``up @ down`` in PEFT's settings, whose names the fields have."""

    r: float
    lora_alpha: float
    rank_pattern: _Places
    alpha_pattern: _Places
    use_rslora: bool
    use_dora: bool

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Scales:
        """Return the factors that settings announce.

        Raises:
            AdapterError: Numbers are missing, or patterns of layers cannot be read; begins with the
                predicate, so that the caller can put the place before it.
        """
        return cls(
            _number("r", settings.get("r", _DEFAULT_RANK_AND_ALPHA)),
            _number("lora_alpha", settings.get("lora_alpha", _DEFAULT_RANK_AND_ALPHA)),
            _places("rank_pattern", settings.get("rank_pattern") or {}),
            _places("alpha_pattern", settings.get("alpha_pattern") or {}),
            bool(settings.get("use_rslora")),
            bool(settings.get("use_dora")),
        )

    def at(self, path: str, rank: int) -> float:
        """Return the factor of a layer: alpha / rank, with rsLoRA alpha / sqrt(rank).

        Raises:
            AdapterError: The settings announce another rank than the factors have; begins with the
                predicate.
        """
        announced = _of_layer(self.rank_pattern, path, self.r)
        if announced != rank or not rank:
            raise AdapterError(
                f"has rank {rank}, but {CONFIG_FILE} says {announced:g}; config and weights are "
                "not of one adapter. Download it again"
            )
        alpha = _of_layer(self.alpha_pattern, path, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _of_layer(places: _Places, path: str, default: float) -> float:
    """Return the value of the first pattern that is a layer's path or its end after a dot."""
    fitting = [places[text] for text in (f"^{path}", *_ends(path)) if text in places]
    return min(fitting)[1] if fitting else default


def _ends(path: str) -> list[str]:
    """Return a path and its ends after each dot."""
    names = path.split(".")
    return [".".join(names[start:]) for start in range(len(names))]


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
    folder = folder if folder.name.strip(".") else folder.resolve()  # ``.`` is no name
    name = folder.name
    settings = read_settings(folder)
    tensors, metadata = read_weights(folder)
    with told_of(f"{name}: it is"):
        _check_plain(settings)
    groups, others = grouped(tensors)
    own = (UP, DOWN, MAGNITUDE)
    others += [k for group in groups.values() for role, k in group.keys.items() if role not in own]
    if others:
        raise AdapterError(
            f"{name}: {others[0]!r} is not a factor of a LoRA's layer, and the merge would lose "
            "it. Train the adapter without embeddings and modules_to_save, and with bias='none' "
            "and lora_bias=false; save it with save_embedding_layers=False"
        )
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


def read_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata in an adapter's folder.

    Raises:
        AdapterError: There are no weights, or they cannot be read.
    """
    if (folder / WEIGHTS_FILE).exists():
        with told_of(f"{folder.name}:"):
            return read_tensors(folder / WEIGHTS_FILE)
    raise AdapterError(
        f"{folder.name}: the folder has no {WEIGHTS_FILE} ({folder}); give the folder that PEFT's "
        "save_pretrained wrote. A pickle (adapter_model.bin) is not read, since it can run code"
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


def settings_of(
    adapter: Adapter, base_model_name_or_path: str, task_type: str | None
) -> dict[str, Any]:
    """Return the settings of an adapter that has deltas, with alpha = rank everywhere; where ranks
    differ there are patterns.

    Args:
        task_type: PEFT's name of the model's task, such as ``SEQ_2_SEQ_LM``; None: a plain
            `PeftModel`.
    """
    ranks = {path: delta.rank for path, delta in adapter.deltas.items()}
    common = Counter(ranks.values()).most_common(1)[0][0]
    patterns = {path: rank for path, rank in ranks.items() if rank != common}
    # a dot in PEFT's patterns fits any character
    read = {_NO_WORD.sub(".", path): rank for path, rank in patterns.items()}
    ends = ((end, rank) for path, rank in ranks.items() for end in _ends(_NO_WORD.sub(".", path)))
    if any(read.get(end, rank) != rank for end, rank in ends):
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
        "inference_mode": True,
    }


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
    loads. Others in the folder stay. For the arguments see `settings_of` and
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
    # the settings last: a folder without them is refused
    write_tensors(to_tensors(adapter, kernels), folder / WEIGHTS_FILE, {}, overwrite=overwrite)
    text = json.dumps(settings, indent=2) + "\n"
    write_text(text, folder / CONFIG_FILE, overwrite=overwrite)


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that `save` would not write, as before a long merge.

    Raises:
        NameTakenError: It is a file, or it is not empty and `overwrite` is False.
    """
    if folder.exists() and not folder.is_dir():
        raise NameTakenError(f"{folder} is a file; choose another folder")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise taken(folder)
