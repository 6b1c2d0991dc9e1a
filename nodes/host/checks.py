"""Whether a MODEL and a CLIP can be measured, and as what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...iteris_core import CalibrationError, IterisError
from ...iteris_core.errors import FAILURES
from ...iteris_core.files.families import Family
from ...iteris_core.memory import is_out_of_memory
from .families import HOST_FAMILIES, REFUSED, HostFamily

_OF_PICTURES, _OF_VIDEOS = 2, 3  # sides of latents; those of sound have one
_USUAL_GUIDANCE = 4.0
_USUAL_FRAMES = 4  # a latent one
_DIRECTML = "privateuseone"  # torch's name of its devices


def row_of(model: Any) -> HostFamily:
    """Return the row of a MODEL. If no table names its class, the row is made of what the class
    says of itself; the proof of each LoRA then shows whether it can be measured so.

    Raises:
        IterisError: It is known that it cannot be merged on, it reads more than noisy latents, or
            its latents are neither pictures nor videos.
    """
    config = model.model.model_config
    kind = type(config).__name__
    row = HOST_FAMILIES.get(kind)
    if kind in REFUSED:
        raise IterisError(f"the MODEL (ComfyUI's class {kind}) {REFUSED[kind]}")
    if row is None:
        return _untested(kind, model.model)
    if row.channels is not None:
        field, channels = row.channels
        found = config.unet_config.get(field, channels)
        if row.with_picture is not None and row.with_picture.channels == (field, found):
            return row.with_picture
        if found != channels:
            raise IterisError(
                f"the MODEL is an inpainting, editing or control model of {row.family.name}: it "
                f"reads {found} channels, and calibration has the {channels} of a plain one. Merge "
                f"on a plain {row.family.name} model; the merged LoRA works on both"
            )
    if model.model.model_type.name == "EDM":
        raise IterisError(
            f"the MODEL is a {row.family.name} of the EDM kind, such as Playground 2.5, on which "
            f"merging is not tested. Merge on a usual {row.family.name} checkpoint"
        )
    return row


def _untested(kind: str, model: Any) -> HostFamily:
    """Return the row of a class that no table names.

    Raises:
        IterisError: It reads more than text and noise, or draws neither pictures nor videos.
    """
    latents = model.latent_format
    sides = getattr(latents, "latent_dimensions", 2)
    problem = ""
    if sides not in (_OF_PICTURES, _OF_VIDEOS):
        problem = f"its latents have {sides} side, so that it draws neither pictures nor videos"
    elif model.concat_keys:
        problem = (
            f"it reads another picture beside the noisy one ({', '.join(model.concat_keys)}), and "
            "calibration has none"
        )
    if problem:
        known = ", ".join(dict.fromkeys(row.family.name for row in HOST_FAMILIES.values()))
        raise IterisError(
            f"the MODEL is of ComfyUI's class {kind}, which IterIS does not know how to measure: "
            f"{problem}. It merges LoRAs of {known}. Load a model of one of these, or ask for "
            f"{kind} at the pack's issue tracker"
        )
    frames = getattr(latents, "temporal_downscale_ratio", _USUAL_FRAMES)
    is_distilled = bool(model.model_config.unet_config.get("guidance_embed"))
    family = Family(
        kind,
        frames_per_latent=frames if sides == _OF_VIDEOS else 0,
        guidance=1.0 if is_distilled else _USUAL_GUIDANCE,
        saved_as="comfy",
        is_tested=False,
    )
    # older versions do not say it; it only decides how many latents a picture has
    downscale = getattr(latents, "spacial_downscale_ratio", HostFamily.downscale)
    return HostFamily(family, None, (), downscale=downscale)


@contextmanager
def trial(family: Family) -> Iterator[None]:
    """Explain an error of a model that was never tested.

    Raises:
        CalibrationError: It fails; quotes the error.
    """
    try:
        yield
    except FAILURES as error:
        if family.is_tested or isinstance(error, IterisError) or is_out_of_memory(error):
            raise
        raise CalibrationError(
            f"the MODEL fails with {type(error).__name__}: {error}. It was given noise and a text, "
            f"and it is of ComfyUI's class {family.name}, on which merging was never tested. "
            "Either the CLIP is not its own, or it reads more than a text, such as a picture or "
            f"a sound. Connect its own CLIP, or ask for {family.name} at the pack's issue tracker"
        ) from error


def check_callable(model: Any) -> None:
    """Refuse a MODEL whose layers are not called one by one, or whose tensors cannot be kept, so
    that nothing can be measured.

    Raises:
        IterisError: It is compiled, its layers are Nunchaku's, or it runs by DirectML.
    """
    if model.load_device.type == _DIRECTML:
        raise IterisError(
            "ComfyUI runs by DirectML, whose tensors cannot be measured. Use PyTorch for your "
            "card (ROCm or ZLUDA for AMD, XPU for Intel), or start ComfyUI with --cpu"
        )
    compiled = [
        value
        for value in model.object_patches.values()
        if hasattr(value, "_orig_mod")  # as torch.compile wraps a module
    ]
    paths = (path for path, _ in model.model.named_modules())
    if compiled or any("_orig_mod" in path.split(".") for path in paths):
        raise IterisError(
            "the MODEL is compiled (torch.compile), so that its layers cannot be measured one by "
            "one. Connect it from before the node that compiles it, and compile the merged MODEL"
        )
    kinds = {type(module) for module in model.model.diffusion_model.modules()}
    fused = sorted(kind.__name__ for kind in kinds if "nunchaku" in kind.__module__.lower())
    if fused:
        raise IterisError(
            f"the MODEL is loaded by Nunchaku ({fused[0]}), whose layers are fused and cannot be "
            "measured one by one. Load the model in 16 bit, fp8 or GGUF to merge; the merged LoRA "
            "can be used with Nunchaku's loader, which has its own reader of LoRAs"
        )


def check_clip(clip: Any, row: HostFamily) -> None:
    """Refuse a CLIP that does not belong to a family.

    Raises:
        IterisError: There is none, or it has other text encoders.
    """
    name = row.family.name
    if clip is None:
        raise IterisError(
            "the CLIP input is empty: this checkpoint has no text encoder. Load one with a CLIP "
            "loader"
        )
    found = frozenset(clip.tokenize(""))
    if row.text_encoders and found not in row.text_encoders:
        expected = " or ".join(" + ".join(sorted(choice)) for choice in row.text_encoders)
        raise IterisError(
            f"the CLIP is a {type(clip.cond_stage_model).__name__} with the text encoders "
            f"{' + '.join(sorted(found))}; the MODEL is {name}, whose text encoders are "
            f"{expected}. Connect the CLIP of a {name} checkpoint, or load it with the type of "
            f"{name}"
        )


def patch_of(diffusion_model: Any) -> int:
    """Return the side of the square of latents that is one token of a transformer."""
    for name in ("patch_size", "patch_spatial", "patch"):
        size = getattr(diffusion_model, name, None)
        if size is not None:
            return int(size[-1] if isinstance(size, (tuple, list)) else size)
    return 1
