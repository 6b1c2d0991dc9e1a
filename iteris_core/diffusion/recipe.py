"""What a merged LoRA says about how it was made: enough to make it again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ..config import MergeConfig
from ..errors import ConfigError
from ..report.records import MergeReport, Note
from ..settings import from_json, shown
from ..version import __version__
from .calibration import Calibration
from .scenes import Kind

METADATA_KEY = "iteris.recipe"  # of a file's metadata: the report's settings, as JSON


@dataclass(frozen=True)
class UsedLora:
    """A LoRA as it went into a merge.

    Args:
        name: In the report.
        file: Its file's name; None: it came from no file.
        sha256: Of the file, or of its tensors.
        strength_model: At which its UNet part was used.
        strength_clip: At which its text encoder part was used.
        prompts: On which it was measured.
        prompts_from: The metadata field whose trigger words the prompts are made of; empty: the
            user wrote them.
        weight: Of its task.
        trigger: What it is called in captions with other LoRAs; empty: chosen from the prompts.
        kind: A subject, or a style.
    """

    name: str
    file: str | None
    sha256: str
    strength_model: float
    strength_clip: float
    prompts: tuple[str, ...]
    prompts_from: str = ""
    weight: float = 1.0
    trigger: str = ""
    kind: Kind = "subject"


@dataclass(frozen=True)
class Recipe:
    """How a file was made.

    Args:
        loras: That went into it.
        calibration: On which samples they were measured.
        config: How layers were solved.
        is_corrected: Whether its strength was corrected by what the check on unseen samples
            measured.
        made_on: The base model and the versions, as far as they are known.
    """

    loras: tuple[UsedLora, ...]
    calibration: Calibration
    config: MergeConfig
    is_corrected: bool
    made_on: dict[str, Any]


def read_recipe(name: str, text: str) -> Recipe:
    """Return a recipe from a file's metadata, which anybody may have edited.

    Args:
        name: The file's name, for errors.
        text: JSON, as `with_recipe` leaves it in a report's settings.

    Raises:
        ConfigError: Says where something is wrong, what stands there, and what may.
    """
    place = f"{name}: its recipe"
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{place} is no JSON ({error}); it was changed by hand. Merge the LoRAs anew"
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
    config = recipe["config"]
    if not isinstance(loras, list) or not loras:
        raise ConfigError(
            f"{place}: loras is {shown(loras)}; it must be a list with one LoRA or more"
        )
    if isinstance(config, dict):
        config = {"target": "delta", **config}  # what it was before there was a choice
    return Recipe(
        tuple(
            from_json(f"{place}: LoRA {number}", lora, UsedLora)
            for number, lora in enumerate(loras, 1)
        ),
        from_json(f"{place}: calibration", recipe["calibration"], Calibration),
        from_json(f"{place}: config", config, MergeConfig),
        "strength_correction" in recipe,
        {key: value for key, value in recipe.items() if key == "base" or key.endswith("_version")},
    )


def with_recipe(report: MergeReport, loras: Sequence[UsedLora], **more: str) -> MergeReport:
    """Return the report with what is needed to make the merge again: the LoRAs, our version,
    torch's, and more.
    """
    notes = [
        Note(
            "prompts",
            f"{lora.name}: prompts made of the file's trigger words ({lora.prompts_from}): "
            f"{'; '.join(lora.prompts)}",
        )
        for lora in loras
        if lora.prompts_from
    ]
    used = [{**asdict(lora), "prompts": list(lora.prompts)} for lora in loras]
    versions = {"iteris_version": __version__, "torch_version": str(torch.__version__)}
    settings = {**report.settings, "loras": used, **versions, **more}
    return replace(report, settings=settings, notes=(*report.notes, *notes))
