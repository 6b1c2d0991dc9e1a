"""Settings of a PEFT adapter (``adapter_config.json``): whether it can be merged, and its
scales.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import AdapterError

CONFIG_FILE = "adapter_config.json"
_DEFAULT_RANK_AND_ALPHA = 8  # PEFT's own
# Settings that change the meaning of the factors, or add weights beside them: setting -> what such
# an adapter is, and what to do.
_REFUSED = {
    "modules_to_save": "trained with whole modules beside its LoRA (modules_to_save), "
    "which the merge would lose. Train it without",
    "trainable_token_indices": "trained with token embeddings of its own "
    "(trainable_token_indices). Train it without",
    "target_parameters": "a LoRA on bare parameters (target_parameters); only those on whole "
    "layers can be merged",
    "layer_replication": "for a model with replicated layers (layer_replication); its layers are "
    "not those of the base model",
    "megatron_config": "a Megatron adapter, whose factors are spread over devices. Export it as a "
    "plain LoRA",
    "alora_invocation_tokens": "an aLoRA, active only behind its invocation tokens. Train a plain "
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
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
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
        return f"of PEFT's kind {kind!r}; only LORA can be merged"
    for setting, problem in _REFUSED.items():
        if settings.get(setting):
            return problem
    start = str(settings.get("init_lora_weights") or "").lower()
    if start.startswith(_CHANGES_BASE):
        return (
            f"a LoRA that began as {start!r} and was saved without conversion, so that it fits "
            "only the changed base model of its training run. Save it with save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...)"
        )
    return None


def meaning_of(key: str) -> str:
    """Return a phrase that continues a tensor's key: the meaning of a tensor that is no factor of a
    LoRA, and the next step.
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
        "is no factor of a LoRA, and the merge would lose it. Train the adapter without "
        "modules_to_save"
    )


def scale_at(settings: Mapping[str, Any], path: str, rank: int) -> float:
    """Return the factor of one layer's ``up @ down``: alpha / rank, with rsLoRA alpha / sqrt(rank).

    Args:
        settings: Settings, as `read_settings` returns them.
        path: The layer.
        rank: The rank of its factors.

    Raises:
        AdapterError: The settings announce another rank, or hold no number; begins with the
            predicate, so that the caller can put the place before it.
    """
    announced = _setting_at(settings, "rank_pattern", "r", path)
    if announced != rank:
        raise AdapterError(
            f"has rank {rank}, but {CONFIG_FILE} says {announced:g}; config and weights are not of "
            "one adapter"
        )
    alpha = _setting_at(settings, "alpha_pattern", "lora_alpha", path)
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _setting_at(settings: Mapping[str, Any], pattern: str, default: str, path: str) -> float:
    """Return a setting of one layer by PEFT's rule: that of the first pattern that matches the end
    of the path, else the default.
    """
    patterns = settings.get(pattern) or {}
    if not isinstance(patterns, Mapping):
        raise AdapterError(
            f"has no scale: {pattern} of {CONFIG_FILE} is a {type(patterns).__name__}; it must be "
            "an object, pattern -> number"
        )
    try:
        matching = matching_pattern(patterns, path)
    except re.error as error:
        raise AdapterError(
            f"has no scale: {pattern} of {CONFIG_FILE} holds a broken pattern ({error}); repair it"
        ) from error
    if matching is None:
        value = settings.get(default, _DEFAULT_RANK_AND_ALPHA)
    else:
        value = patterns[matching]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise AdapterError(
            f"has no scale: {CONFIG_FILE} gives {value!r} as its {default}; it must be a number"
        )
    return value


def matching_pattern(patterns: Iterable[str], path: str) -> str | None:
    """Return the first pattern that matches a whole path, or its end behind a dot, as PEFT does;
    None if there is none.
    """
    return next((pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", path)), None)
