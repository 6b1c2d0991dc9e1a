"""The socket types of the pack, and the data that travels through them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

if TYPE_CHECKING:
    from torch import Tensor

    from ..iteris_core import Adapter, MergeReport
    from ..iteris_core.diffusion.calibration import Calibration
    from ..iteris_core.diffusion.lora_use import LoadedLora, LoraUse
    from ..iteris_core.diffusion.recipe import Recipe
    from . import host
    from .keys import HostKeys

LORAS = io.Custom("ITERIS_LORAS")
MERGED = io.Custom("ITERIS_MERGED")
REPORT = io.Custom("ITERIS_REPORT")
SETTINGS = io.Custom("ITERIS_SETTINGS")
LORA_MODEL = io.Custom("LORA_MODEL")
LORA_STACK = io.Custom("LORA_STACK")
ENDS_OF_PAIR = ("_high_noise", "_low_noise")  # of names; loaders of a pair look for them
# SHA-256 of LoRAs that are in no file -> their weights.
Loose = Mapping[str, Mapping[str, "Tensor"]]


def advanced(*inputs: io.Input) -> tuple[io.Input, ...]:
    """Mark inputs as advanced, which before ComfyUI 0.10 our page alone looks at."""
    for item in inputs:
        if hasattr(item, "advanced"):
            item.advanced = True
        else:
            item.extra_dict["advanced"] = True
    return inputs


def found_by(*words: str, essential: str | None = None) -> dict[str, Any]:
    """Return the arguments of a node's schema with more words for the search, and its place among
    the host's essential nodes; only what the host knows.
    """
    known = {item.name for item in fields(io.Schema)}
    given = {"search_aliases": list(words), "essentials_category": essential}
    return {name: value for name, value in given.items() if name in known}


@dataclass(frozen=True)
class Scenes:
    """Settings of the scenes where LoRAs are measured together, named as in `Calibration`. If
    `companions` is empty, the calibration's are used.
    """

    scene_weight: float
    scene_pictures: bool
    scene_forms: tuple[str, ...]
    companions: tuple[str, ...] = ()

    def applied_to(self, calibration: Calibration) -> Calibration:
        """Return the calibration with these scenes in it.

        Raises:
            ConfigError: A form that no scene could use, or a weight that is not a number.
        """
        return replace(
            calibration,
            scene_weight=self.scene_weight,
            scene_pictures=self.scene_pictures,
            scene_forms=self.scene_forms,
            companions=self.companions or calibration.companions,
        )


@dataclass(frozen=True)
class ChosenLora:
    """One LoRA of the chain.

    Args:
        use: The LoRA as its user wants it merged. Its `sha256` is empty, since the file is read
            with the model.
        tensors: Weights of a LoRA that is in no file, since it was trained in this workflow or
            taken off a model.
        scenes: Settings of scenes with other LoRAs; None: no scenes.
        recipe: The recipe that it comes from; None: from none.
    """

    use: LoraUse
    tensors: Mapping[str, Tensor] | None = None
    scenes: Scenes | None = None
    recipe: Recipe | None = None


@dataclass(frozen=True, eq=False)  # each is itself alone, also as a key
class MergedLora:
    """A merged LoRA ready to be saved.

    Args:
        adapter: The merged LoRA, in the precision to save.
        base: The model that the merge got, of a pair the high noise one.
        recipe: Recipe of the merge, as JSON.
        loras: The LoRAs that are in it, without their weights.
        loose: Weights of those that are in no file: the tensors of the nodes that they came from,
            not copies, so that they take no memory besides what ComfyUI keeps of these nodes.
        report: Report of the merge; None: there is none.
        low: The part for the low noise model of a pair, with the same keys, where `adapter` is the
            part for the high noise model; None: the merge is for one model.
        made: What tells it from other merges of its LoRAs, for the page: see `Asked.told`, the
            LoRAs' strengths, and when it was made, in seconds since 1970.
    """

    adapter: Adapter
    base: host.ComfyModel
    recipe: str
    loras: tuple[LoadedLora, ...] = ()
    loose: Loose = field(default_factory=dict)
    report: MergeReport | None = None
    low: Adapter | None = None
    made: Mapping[str, Any] = field(default_factory=dict)

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
    def is_together(self) -> bool:
        """Whether its LoRAs were measured together."""
        return bool(self._calibration.get("scene_weight"))

    @property
    def _calibration(self) -> dict[str, Any]:
        calibration: dict[str, Any] = json.loads(self.recipe).get("calibration", {})
        return calibration

    @property
    def by_file(self) -> dict[str, MergedLora]:
        """What is saved, by the end of its file's name."""
        if self.low is None:
            return {"": self}
        low = replace(self, adapter=self.low, low=None)
        return dict(zip(ENDS_OF_PAIR, (replace(self, low=None), low), strict=True))
