"""The pack's own socket types, and what travels through them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

if TYPE_CHECKING:
    from torch import Tensor

    from ..iteris_core import Adapter, MergeConfig
    from ..iteris_core.diffusion.calibration import Calibration
    from ..iteris_core.diffusion.scenes import Kind
    from ..iteris_core.files.metadata import Source
    from .keys import HostKeys

TASKS = io.Custom("ITERIS_TASKS")
CALIBRATION = io.Custom("ITERIS_CALIBRATION")
MERGED = io.Custom("ITERIS_MERGED")
REPORT = io.Custom("ITERIS_REPORT")
SETTINGS = io.Custom("ITERIS_SETTINGS")
LORA_MODEL = io.Custom("LORA_MODEL")
LORA_STACK = io.Custom("LORA_STACK")
_MOST_SOCKETS = 32


def growing(name: str, socket: Any, tooltip: str) -> list[Any]:
    """Return an input that always has one more free socket; none where the host has no such inputs
    (before ComfyUI 0.8).
    """
    if not hasattr(io, "Autogrow"):
        return []
    template = io.Autogrow.TemplatePrefix(
        socket.Input("loras", optional=True, tooltip=tooltip), "loras", 0, _MOST_SOCKETS
    )
    return [io.Autogrow.Input(name, template, optional=True, tooltip=tooltip)]


@dataclass(frozen=True)
class Scenes:
    """How LoRAs are measured together; the names are those of `Calibration`. Empty companions:
    those of the calibration.
    """

    scene_weight: float
    scene_pictures: bool
    scene_forms: tuple[str, ...]
    companions: tuple[str, ...] = ()

    def applied_to(self, calibration: Calibration) -> Calibration:
        """Return the calibration with these scenes in it.

        Raises:
            ConfigError: A form that no scene could use, or a weight that is no number.
        """
        return replace(
            calibration,
            scene_weight=self.scene_weight,
            scene_pictures=self.scene_pictures,
            scene_forms=self.scene_forms,
            companions=self.companions or calibration.companions,
        )


@dataclass(frozen=True)
class LoraEntry:
    """One LoRA to merge, as the user asked for it.

    Args:
        lora_name: Its file in ComfyUI's list, which is read when the model is known; or what to
            call `tensors`.
        strength_model: Of the UNet part.
        strength_clip: Of the text encoder part.
        prompts: What it is for.
        weight: Of its task.
        prompts_from: Where the trigger words of the prompts come from; empty: the user wrote them.
        tensors: A LoRA that is in no file: trained in this workflow, or taken off a model.
        trigger: What to call it beside other LoRAs; see `PromptedAdapter`.
        kind: Whether it is a thing, or a way to render whole pictures.
        scenes: How it is measured together with the others; None: it is not.
    """

    lora_name: str
    strength_model: float
    strength_clip: float
    prompts: tuple[str, ...]
    weight: float
    prompts_from: str = ""
    tensors: Mapping[str, Tensor] | None = None
    trigger: str = ""
    kind: Kind = "subject"
    scenes: Scenes | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it changes nothing, since both strengths are 0."""
        return not (self.strength_model or self.strength_clip)


@dataclass(frozen=True)
class MergeSettings:
    """How a merged file was made, but for its LoRAs and its calibration."""

    config: MergeConfig
    correct_strength: bool = False


@dataclass(frozen=True)
class MergedLora:
    """A merged LoRA ready to be saved.

    Args:
        adapter: In the precision in which it is saved.
        keys: How the model's modules are called in files.
        recipe: How it was made; JSON.
        sources: The LoRAs that are in it: name and metadata of each.
        called: Name of a LoRA -> what calls it up, as the user wrote it.
    """

    adapter: Adapter
    keys: HostKeys
    recipe: str
    sources: tuple[Source, ...] = ()
    called: Mapping[str, str] | None = None
