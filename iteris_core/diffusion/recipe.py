"""The recipe in a merged LoRA's metadata, to repeat the merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..config import MergeConfig
from ..errors import ConfigError
from ..files.limits import json_value
from ..files.metadata import RECIPE_KEY, merged_metadata
from ..files.trigger_words import trigger_words
from ..settings import from_json, shown
from ..version import __version__
from .calibration import Calibration
from .loaded_loras import LoadedLora
from .lora_use import LoraUse, check_count


@dataclass(frozen=True)
class Recipe:
    """The inputs and settings of a merge, to make its file again.

    Args:
        made_on: Base model and versions, as far as they are known.
    """

    loras: tuple[LoraUse, ...]
    calibration: Calibration
    config: MergeConfig
    made_on: dict[str, str]


def read_recipe(name: str, text: str) -> Recipe:
    """Return a recipe from a file's metadata, which anybody may have edited.

    Args:
        text: JSON of what `recipe_of` returns.

    Raises:
        ConfigError: Says where something is wrong, what was found, and what may be there.
    """
    place = f"{name}: its recipe"
    try:
        recipe = json_value(text)
    except ValueError as error:
        raise ConfigError(
            f"{place} is not JSON ({error}); it was changed by hand. Merge the LoRAs again"
        ) from None
    if not isinstance(recipe, dict):
        raise ConfigError(
            f"{place} is {shown(recipe)}; it must be an object with loras, calibration and config"
        )
    missing = [part for part in ("loras", "calibration", "config") if part not in recipe]
    if missing:
        raise ConfigError(
            f"{place} has no {missing[0]!r}; it was changed by hand, or made by another version of "
            "IterIS"
        )
    loras = recipe["loras"]
    if not isinstance(loras, list) or not loras:
        raise ConfigError(
            f"{place}: loras is {shown(loras)}; it must be a list with one LoRA or more"
        )
    check_count(len(loras))
    return Recipe(
        tuple(
            from_json(f"{place}: LoRA {number}", lora, LoraUse)
            for number, lora in enumerate(loras, 1)
        ),
        from_json(f"{place}: calibration", recipe["calibration"], Calibration),
        from_json(f"{place}: config", recipe["config"], MergeConfig),
        {
            key: value if isinstance(value, str) else shown(value)
            for key, value in recipe.items()
            if key == "base" or key.endswith("_version")
        },
    )


def recipe_of(
    loras: Sequence[LoraUse],
    calibration: Calibration,
    config: MergeConfig,
    made_on: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the recipe of a merge as JSON values.

    Args:
        made_on: The base model and the host's version, as far as they are known.
    """
    return {
        "calibration": asdict(calibration),
        "config": config.to_dict(),
        "loras": [asdict(lora) for lora in loras],
        "iteris_version": __version__,
        "torch_version": str(torch.__version__),
        **(made_on or {}),
    }


def metadata_of_merge(title: str, loras: Sequence[LoadedLora], recipe: str) -> dict[str, str]:
    """Return the metadata of a merged LoRA's file: its origin, its trigger phrases, and its recipe.

    Args:
        loras: LoRAs of the merge, of whose adapters only the metadata is read.
        recipe: Settings of the merge's report, as JSON.
    """
    adapters = [lora.adapter for lora in loras]
    metadata = merged_metadata(title, adapters, triggers_of(loras))
    return {**metadata, RECIPE_KEY: recipe}


def triggers_of(loras: Sequence[LoadedLora]) -> list[str]:
    """Return the trigger phrases of LoRAs, each once: those that filled their prompts, or those in
    the metadata, or else their names in captions.
    """
    triggers = [
        trigger
        for lora in loras
        for trigger in lora.use.trigger_words
        or trigger_words(lora.adapter.metadata).triggers
        or (lora.use.called,)
        if trigger
    ]
    return list(dict.fromkeys(triggers))
