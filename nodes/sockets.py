"""The socket types of the pack, and the data that travels through them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

if TYPE_CHECKING:
    from torch import Tensor

    from ..iteris_core import Adapter
    from ..iteris_core.diffusion.loaded_loras import LoadedLora
    from ..iteris_core.diffusion.lora_use import LoraUse
    from . import host
    from .keys import HostKeys

LORAS = io.Custom("ITERIS_LORAS")
MERGED = io.Custom("ITERIS_MERGED")
SETTINGS = io.Custom("ITERIS_SETTINGS")
LORA_MODEL = io.Custom("LORA_MODEL")
LORA_STACK = io.Custom("LORA_STACK")
# SHA-256 of LoRAs that are in no file -> their weights.
Loose = Mapping[str, Mapping[str, "Tensor"]]


def advanced(*inputs: io.Input) -> tuple[io.Input, ...]:
    """Mark inputs as advanced, at which ComfyUI looks since 0.10."""
    for item in inputs:
        item.advanced = True
    return inputs


def found_by(*words: str, essential: str | None = None) -> dict[str, Any]:
    """Return the arguments of a node's schema with more words for the search, and its place among
    the host's essential nodes; only what the host knows.
    """
    known = {item.name for item in fields(io.Schema)}
    given = {"search_aliases": list(words), "essentials_category": essential}
    return {name: value for name, value in given.items() if name in known}


@dataclass(frozen=True)
class ChosenLora:
    """One LoRA of the chain.

    Args:
        use: The LoRA as its user wants it merged. Its `sha256` is empty, since the file is read
            with the model.
        tensors: Weights of a LoRA that is in no file, since it was trained in this workflow.
    """

    use: LoraUse
    tensors: Mapping[str, Tensor] | None = None


@dataclass(frozen=True, eq=False)  # each is itself alone, also as a key
class MergedLora:
    """A merged LoRA ready to be saved.

    Args:
        adapter: The merged LoRA, in the precision to save.
        base: The model that the merge got.
        recipe: Recipe of the merge, as JSON.
        loras: The LoRAs that are in it, without their weights.
        loose: Weights of those that are in no file: the tensors of the nodes that they came from,
            not copies, so that they take no memory besides what ComfyUI keeps of these nodes.
        of: What it is of, see `payload.of_merge`.
    """

    adapter: Adapter
    base: host.ComfyModel
    recipe: str
    loras: tuple[LoadedLora, ...] = ()
    loose: Loose = field(default_factory=dict)
    of: Mapping[str, Any] = field(default_factory=dict)

    @property
    def keys(self) -> HostKeys:
        """The names of the model's modules in files."""
        return self.base.keys

    @property
    def measured_cfg(self) -> float:
        """The guidance of its sampling runs; 0: there were none."""
        cfg: float = self._calibration.get("cfg", 0.0)
        return cfg

    @property
    def measured_side(self) -> int:
        """The side of the pictures of its sampling runs in pixels; 0: there were none."""
        side: int = self._calibration.get("resolution", 0)
        return side

    @property
    def _calibration(self) -> dict[str, Any]:
        calibration: dict[str, Any] = json.loads(self.recipe).get("calibration", {})
        return calibration
