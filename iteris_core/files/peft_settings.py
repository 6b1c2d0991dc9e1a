"""Settings of a PEFT adapter (``adapter_config.json``): whether it can be merged, and its
scales.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AdapterError
from ..settings import shown
from .json_values import json_value
from .layer_patterns import LayerPatterns
from .limits import SETTINGS_BYTES

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


@dataclass(frozen=True)
class Scales:
    """The factor of each layer's ``up @ down`` in PEFT's settings.

    Args:
        settings: Settings, as `read_settings` returns them.
        ranks: Layers of another rank than the settings' ``r``.
        alphas: Layers of another alpha than the settings' ``lora_alpha``.
    """

    settings: Mapping[str, Any]
    ranks: LayerPatterns
    alphas: LayerPatterns

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
        announced = self._setting("rank_pattern", self.ranks, "r", path)
        if announced != rank or not rank:
            raise AdapterError(
                f"has rank {rank}, but {CONFIG_FILE} says {announced:g}; config and weights are "
                "not of one adapter"
            )
        alpha = self._setting("alpha_pattern", self.alphas, "lora_alpha", path)
        return alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)

    def _setting(self, pattern: str, layers: LayerPatterns, default: str, path: str) -> float:
        """Return a setting of one layer by PEFT's rule: that of the first pattern that matches the
        end of the path, else the default.
        """
        matching = layers.first(path)
        if matching is None:
            value = self.settings.get(default, _DEFAULT_RANK_AND_ALPHA)
        else:
            value = self.settings[pattern][matching]
        number = _number(value)
        if number is None:
            raise AdapterError(
                f"has no scale: {CONFIG_FILE} gives {shown(value)} as its {default}; it must be a "
                "number"
            )
        return number


def _patterns(settings: Mapping[str, Any], name: str) -> LayerPatterns:
    patterns = settings.get(name) or {}
    if not isinstance(patterns, Mapping):
        raise AdapterError(
            f"has no scale: {name} of {CONFIG_FILE} is a {type(patterns).__name__}; it must be "
            "an object, pattern -> number"
        )
    try:
        return LayerPatterns.of(patterns)
    except ValueError as error:
        raise AdapterError(
            f"has no scale: {name} of {CONFIG_FILE} holds {error}. Names of layers, ends of their "
            "paths and .* are read; write each layer's path there"
        ) from None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # JSON has whole numbers that no float can hold
        return None
