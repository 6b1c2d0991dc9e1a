"""The pack's own socket types, and what travels through them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

if TYPE_CHECKING:
    from torch import Tensor

    from ..iteris_core import Adapter
    from ..iteris_core.diffusion.calibration import Calibration
    from ..iteris_core.diffusion.lora_use import LoadedLora, LoraUse
    from .keys import HostKeys

LORAS = io.Custom("ITERIS_TASKS")
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


def advanced() -> dict[str, Any]:
    """Return what marks an input as one for experts; nothing where the host knows no such mark
    (before ComfyUI 0.10).
    """
    known = "advanced" in inspect.signature(io.Float.Input.__init__).parameters
    return {"advanced": True} if known else {}


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
class ChosenLora:
    """One LoRA of the chain.

    Args:
        use: How the user wants it merged. Its `sha256` is empty: a file is read when the model is
            known.
        tensors: The weights of a LoRA that is in no file: trained in this workflow, or taken off a
            model.
        scenes: How it is measured together with the others; None: it is not.
    """

    use: LoraUse
    tensors: Mapping[str, Tensor] | None = None
    scenes: Scenes | None = None


@dataclass(frozen=True)
class MergedLora:
    """A merged LoRA ready to be saved.

    Args:
        adapter: The merged LoRA, in the precision in which it is saved.
        keys: The names of the model's modules in files.
        recipe: How it was made; JSON.
        loras: The LoRAs that are in it.
    """

    adapter: Adapter
    keys: HostKeys
    recipe: str
    loras: tuple[LoadedLora, ...] = ()
