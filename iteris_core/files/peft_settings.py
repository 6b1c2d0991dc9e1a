"""Settings of PEFT adapters (``adapter_config.json``): read, refused, and made for a merged one."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..adapters import Adapter
from ..errors import AdapterError
from ..settings import shown
from .limits import SETTINGS_BYTES, json_value

CONFIG_FILE = "adapter_config.json"
_DEFAULT_RANK_AND_ALPHA = 8  # PEFT's own
_ESCAPED = re.compile(r"\\(\W)")
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
        found = f"the folder has no {CONFIG_FILE}" if folder.is_dir() else "there is no such folder"
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
        raise AdapterError(f"{folder.name}: {CONFIG_FILE} is not an object; download it again")
    return settings


def refusal(settings: Mapping[str, Any]) -> str | None:
    """Return why an adapter cannot be merged, as the end of "it is", and the next step; None if it
    can.
    """
    kind = settings.get("peft_type")
    if kind != "LORA":
        return f"of PEFT's kind {shown(kind)}; only LORA can be merged"
    for setting in _REFUSED:
        if settings.get(setting):
            return (
                f"trained with {setting}, which is more than the two factors of each layer and "
                "would be lost in the merge. Train a plain LoRA without it"
            )
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        return (
            f"a LoRA that began as {shown(start)} and was saved without conversion, so that it "
            "fits only the changed base model of its training run. Save it with "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    return None


def _places_of(patterns: Any) -> Any:
    """Return pattern -> its place and value.

    PEFT compiles patterns as regular expressions, ``(.*\\.)?(pattern)$``. A stranger's could keep
    a machine busy for ever. Programs write paths and ends of paths, some with ``^`` before a whole
    one. These are read, and compared as texts.

    Raises:
        AdapterError: There is another one; begins with the predicate.
    """
    if patterns and not isinstance(patterns, Mapping):
        return patterns  # which is not a dictionary, as the model tells
    places: dict[str, tuple[int, Any]] = {}
    for number, (pattern, value) in enumerate((patterns or {}).items()):
        special = _SPECIAL.search(_ESCAPED.sub("", pattern.removeprefix("^")))
        if special:
            raise AdapterError(
                f"has no scale: {CONFIG_FILE} holds the pattern {pattern[:60]!r}, a regular "
                f"expression ({special[0]!r}). Names of layers and ends of their paths are read; "
                "write each layer's path there"
            )
        places.setdefault(_ESCAPED.sub(r"\1", pattern), (number, value))
    return places


_Number = Annotated[float, Field(allow_inf_nan=False)]
_Patterns = Annotated[dict[str, tuple[int, _Number]], BeforeValidator(_places_of)]


class Scales(BaseModel):
    """The factor of each layer's ``up @ down`` in PEFT's settings, whose names the fields have."""

    model_config = ConfigDict(frozen=True, strict=True)
    r: _Number = _DEFAULT_RANK_AND_ALPHA
    lora_alpha: _Number = _DEFAULT_RANK_AND_ALPHA
    rank_pattern: _Patterns = Field(default_factory=dict)
    alpha_pattern: _Patterns = Field(default_factory=dict)
    use_rslora: Any = False
    use_dora: Any = False

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Scales:
        """Return the factors that settings announce.

        Raises:
            AdapterError: Numbers are missing, or patterns of layers cannot be read; begins with the
                predicate, so that the caller can put the place before it.
        """
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            wrong = error.errors(include_url=False)[0]
            if isinstance(cause := wrong.get("ctx", {}).get("error"), AdapterError):
                raise cause from error
            what = "an object, pattern -> number" if "dict" in wrong["type"] else "a number"
            raise AdapterError(
                f"has no scale: {CONFIG_FILE} gives {shown(wrong['input'])} as its "
                f"{wrong['loc'][0]}; it must be {what}"
            ) from error

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


def _of_layer(places: Mapping[str, tuple[int, float]], path: str, default: float) -> float:
    """Return a layer's value by PEFT's rule: the value of the first pattern that is the path or its
    end after a dot, else the default.
    """
    fitting = [places[text] for text in (f"^{path}", *_ends(path)) if text in places]
    return min(fitting)[1] if fitting else default


def _ends(path: str) -> list[str]:
    """Return a path and its ends after each dot."""
    names = path.split(".")
    return [".".join(names[start:]) for start in range(len(names))]


def settings_of(
    adapter: Adapter, base_model_name_or_path: str, task_type: str | None
) -> dict[str, Any]:
    """Return the settings of an adapter that has deltas, with alpha = rank everywhere. Layers of
    another rank than the commonest have patterns.

    Args:
        task_type: PEFT's name of the model's task, such as ``SEQ_2_SEQ_LM``; None: a plain
            `PeftModel`.
    """
    ranks = {path: delta.rank for path, delta in adapter.deltas.items()}
    common = Counter(ranks.values()).most_common(1)[0][0]
    patterns = {path: rank for path, rank in ranks.items() if rank != common}
    read = {_with_dots(path): rank for path, rank in patterns.items()}
    if any(
        read.get(end, rank) != rank
        for path, rank in ranks.items()
        for end in _ends(_with_dots(path))
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


def _with_dots(path: str) -> str:
    """Return a path with dots for all but letters and numbers: a dot fits any of them in PEFT."""
    return re.sub(r"\W|_", ".", path)
