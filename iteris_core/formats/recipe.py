"""What a merged LoRA says about how it was made: enough to make it again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..report import MergeReport
from ..version import __version__
from .files import storable

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
        prompts_from: The metadata field whose trigger words the prompts are made of; empty: the user wrote them.
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
    kind: str = "subject"


def with_recipe(report: MergeReport, loras: Sequence[UsedLora], **more: str) -> MergeReport:
    """Return the report with what is needed to make the merge again: the LoRAs, our version, torch's, and more."""
    notes = [
        f"{lora.name}: prompts made of the file's trigger words ({lora.prompts_from}): {'; '.join(lora.prompts)}"
        for lora in loras
        if lora.prompts_from
    ]
    used = [{**asdict(lora), "prompts": list(lora.prompts)} for lora in loras]
    versions = {"iteris_version": __version__, "torch_version": str(torch.__version__)}
    settings = {**report.settings, "loras": used, **versions, **more}
    return replace(report, settings=settings, notes=(*report.notes, *notes))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of what a safetensors file of these tensors alone would be."""
    return hashlib.sha256(save(storable(tensors))).hexdigest()
