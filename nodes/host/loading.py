"""LoRAs that ComfyUI's own loader puts on a MODEL and a CLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import comfy.sd
from torch import Tensor

from ...iteris_core import AdapterError, ConfigError
from ...iteris_core.files.kohya import for_another
from ...iteris_core.files.recognition import other_family
from ...iteris_core.settings import shown
from ..foreign import logged_errors
from .families import family_of
from .patches import added_patches

if TYPE_CHECKING:
    from ...iteris_core.diffusion.lora_use import LoraUse
    from ...iteris_core.files.families import Family


def with_lora(
    model: Any, clip: Any, use: LoraUse, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[Any, Any]:
    """Return clones of MODEL and CLIP that carry a LoRA as the stock LoraLoader puts it on them,
    each layer at the strength times its block's weight; a layer of weight 0 is left out.

    Args:
        model: MODEL, of any kind that the host knows.
        clip: CLIP; None: there is none, and the LoRA's text part is left out.
        use: Strengths and block weights of the LoRA.
        tensors: The file's whole content.
        metadata: The file's metadata.

    Raises:
        AdapterError: The LoRA is for another family of models, or nothing of it fits this model.
        ConfigError: Its block weights or left out layers are not those of this LoRA or model.
    """
    with logged_errors() as told:  # the host logs a key that does not fit, and goes on
        patched: tuple[Any, Any] = comfy.sd.load_lora_for_models(
            model, clip, dict(tensors), use.strength_model, use.strength_clip
        )
    parts = [(model, patched[0])]
    if clip is not None:
        parts.append((clip.patcher, patched[1].patcher))
    added = [(after, *place) for before, after in parts for place in added_patches(before, after)]
    family = family_of(model)
    found = None if family is None else other_family(tensors, metadata if not added else {}, family)
    if not added or (told and found is not None):
        raise AdapterError(f"{use.name}: {_misfit(tensors, found, family, clip, not added)}")
    if use.blocks or use.without:
        if family is None:
            raise ConfigError(
                f"LoRA {shown(use.name)}: it has block weights or left out layers, and the blocks "
                f"of ComfyUI's class {type(model.model.model_config).__name__} have no names here. "
                "Take blocks= and without= out"
            )
        weights = use.layer_weights(family).of_layers(_module(weight) for _, weight, _ in added)
        for after, weight, start in added:
            scaled = _scaled(after.patches.pop(weight), start, weights[_module(weight)])
            after.patches |= {weight: scaled} if scaled else {}
    return patched


def _module(weight: str) -> str:
    """Return the path of the module of a weight or a bias."""
    return weight.rpartition(".")[0]


def _scaled(patches: Sequence[Any], start: int, scale: float) -> list[Any]:
    """Return patches of which those from a place on are scaled, and left out at 0."""
    scaled = [(strength * scale, *rest) for strength, *rest in patches[start:]] if scale else []
    return [*patches[:start], *scaled]


def _misfit(
    tensors: Mapping[str, Tensor],
    found: Family | None,
    family: Family | None,
    clip: Any,
    is_whole: bool,
) -> str:
    """Return why a file is refused: it is for another family, or nothing of it fits."""
    what = ""
    if is_whole:
        example = f", such as {next(iter(tensors))!r}," if tensors else ""
        what = f"none of its {len(tensors)} keys{example} fits this model; "
    if clip is None and found is None and is_whole:
        what += "a part for the text encoder needs CLIP; "
    if family is None:
        return f"{what}it may be for another model, or no LoRA at all. Choose a LoRA for this one"
    return what + for_another(found, family)
