"""The tables of model families: what ComfyUI's class says about how a MODEL is measured, and why
models of other classes are refused.

A family is a row, and nothing about it is code. What its files say is in
`iteris_core.files.families`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...iteris_core import IterisError
from ...iteris_core.diffusion.model import UNET_TEXT_LAYERS
from ...iteris_core.files.families import FAMILIES, Family


@dataclass(frozen=True)
class HostFamily:
    """How ComfyUI holds the models of a family.

    Args:
        family: The family.
        channels: Channels that its diffusion model reads: the value of this field of the host's
            settings. More of them are an inpainting or editing model's.
        text_encoders: Names of the text encoders among the tokens of a CLIP; several choices where
            the host has several.
        swept: Those of them that can be merged: CLIP models, whose rows are 77 tokens.
        text_layers: Ends of the paths of layers that read the text alone, where it comes from text
            encoders that are swept; empty: there are none, as where text and picture meet in every
            layer, and where the text comes from a T5 or a language model.
        reads_text: Pattern of the paths of layers that read the text alone, or no tokens of the
            picture, where `text_layers` is empty.
        folded: Parts of the paths of layers that read each row cut into several.
        downscale: Pixels of a picture per latent, in each direction.
        picture_comes_first: Whether the picture's tokens stand before the text's where a layer
            reads both.
        low_noise_below: Noise level below which a second model takes over, where two come as a
            pair; 0: there is one model for all levels.
        start: What it reads of a video's first picture, by the names in conditionings; see
            `conditions.NEUTRAL`.
        with_picture: The row of models of its class that read a first picture, with more channels.
    """

    family: Family
    channels: tuple[str, int] | None
    text_encoders: tuple[frozenset[str], ...]
    swept: tuple[str, ...] = ()
    text_layers: tuple[str, ...] = ()
    reads_text: str = ""
    folded: tuple[str, ...] = ()
    downscale: int = 8
    picture_comes_first: bool = False
    low_noise_below: float = 0.0
    start: tuple[str, ...] = ()
    with_picture: HostFamily | None = None


def _row(name: str, channels: tuple[str, int] | None, *encoders: str, **more: Any) -> HostFamily:
    choices = tuple(frozenset(choice.split()) for choice in encoders)
    return HostFamily(FAMILIES[name], channels, choices, **more)


_TWO_STREAMS = r"\.txt_(in|attn|mlp)\b"
_WAN_TEXT = r"\.(text_embedding|img_emb|cross_attn\.[kv](_img)?)\b"
_LATENTS = ("concat_latent_image", "concat_mask")
# `boundary` in Wan 2.2's own configs/wan_t2v_A14B.py and wan_i2v_A14B.py
_WAN_OF_TEXT = 0.875
_WAN_OF_PICTURE = 0.9
_FLUX = _row("Flux.1", ("in_channels", 16), "l t5xxl", swept=("l",), reads_text=_TWO_STREAMS)
# Name of a class of comfy.supported_models -> its row. A class that is not here is refused.
HOST_FAMILIES = {
    "SD15": _row("SD1.5", ("in_channels", 4), "l", swept=("l",), text_layers=UNET_TEXT_LAYERS),
    "SDXL": _row("SDXL", ("in_channels", 4), "l g", swept=("l", "g"), text_layers=UNET_TEXT_LAYERS),
    "SD3": _row(
        "SD3.5",
        ("in_channels", 16),
        "l g t5xxl",
        swept=("l", "g"),
        reads_text=r"\.context_(block|embedder)\b",
    ),
    "Flux": _FLUX,
    "FluxSchnell": _FLUX,
    "Flux2": _row(
        "Flux.2",
        ("in_channels", 128),
        "qwen3_4b",
        "qwen3_8b",
        "mistral3_24b",
        downscale=16,
        reads_text=_TWO_STREAMS,
    ),
    "Chroma": _row(
        "Chroma",
        ("in_channels", 64),
        "t5xxl",
        reads_text=rf"{_TWO_STREAMS}|\.distilled_guidance_layer\.",
    ),
    "ZImage": _row(
        "Z-Image", ("in_channels", 16), "qwen3_4b", reads_text=r"\.(context_refiner|cap_embedder)\."
    ),
    "QwenImage": _row(
        "Qwen-Image",
        ("in_channels", 64),
        "qwen25_7b",
        reads_text=r"\.(add_[qkv]_proj|to_add_out|txt_(in|mlp))\b",
    ),
    "Anima": _row(
        "Anima", None, "qwen3_06b t5xxl", reads_text=r"\.(cross_attn\.[kv]_proj|llm_adapter)\b"
    ),
    "Krea2": _row(
        "Krea 2", None, "qwen3vl_4b", reads_text=r"\.txt", folded=(".txtfusion.layerwise_blocks.",)
    ),
    "AuraFlow": _row(
        "AuraFlow",
        None,
        "pile_t5xl",
        reads_text=r"\.(cond_seq_linear|mlpC|double_layers\.\d+\.attn\.w1.)\b",
    ),
    "WAN21_T2V": _row(
        "Wan",
        ("in_dim", 16),
        "umt5xxl",
        reads_text=_WAN_TEXT,
        low_noise_below=_WAN_OF_TEXT,
        with_picture=_row(
            "Wan",
            ("in_dim", 36),
            "umt5xxl",
            reads_text=_WAN_TEXT,
            low_noise_below=_WAN_OF_PICTURE,
            start=_LATENTS,
        ),
    ),
    "WAN21_I2V": _row(
        "Wan",
        ("in_dim", 36),
        "umt5xxl",
        reads_text=_WAN_TEXT,
        start=(*_LATENTS, "clip_vision_output"),
    ),
    "HunyuanVideo": _row(
        "HunyuanVideo",
        ("in_channels", 16),
        "l llama",
        swept=("l",),
        reads_text=_TWO_STREAMS,
        picture_comes_first=True,
    ),
}


def _refused(names: str, sentence: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), sentence)


_EDITING = (
    "is an inpainting, editing or control model of {family}: it reads another picture with the "
    "noisy one, and calibration has none. Merge on a plain {family} model; the merged LoRA works "
    "on both"
)
_CUT = (
    "is an SDXL model that was cut down, on which merging is not tested. Merge on a whole SDXL "
    "checkpoint, with LoRAs made for that"
)
# Name of a class of comfy.supported_models -> what a MODEL of it is, why it is refused, and what to
# do.
REFUSED = {
    **_refused("FluxInpaint", _EDITING.format(family="Flux.1")),
    **_refused("SDXL_instructpix2pix", _EDITING.format(family="SDXL")),
    **_refused("SD15_instructpix2pix", _EDITING.format(family="SD1.5")),
    **_refused(
        "SDXLRefiner",
        "is the SDXL refiner, which has other layers and text encoders than SDXL. Connect the SDXL "
        "checkpoint for which the LoRAs were made",
    ),
    **_refused("SSD1B Segmind_Vega KOALA_700M KOALA_1B", _CUT),
    **_refused(
        "SD20 SD21UnclipL SD21UnclipH SD_X4Upscaler LotusD",
        "is of the SD2.x kind, on which merging is not tested. Merge LoRAs of SD1.5 or SDXL, on a "
        "checkpoint of the same family",
    ),
    **_refused(
        "Stable_Cascade_B Stable_Cascade_C",
        "is one stage of Stable Cascade, whose stages read what the others draw, and calibration "
        "has single models. Merge on a model that draws the picture itself",
    ),
    **_refused(
        "WAN21_FunControl2V WAN21_Camera WAN22_Camera WAN21_Vace WAN21_HuMo WAN22_S2V "
        "WAN22_Animate WAN_Animate2 WAN21_SCAIL WAN21_SCAIL2 WAN22_WanDancer WAN21_FlowRVS",
        "is a Wan model that reads more than text and a first picture, such as a camera's way or a "
        "sound, and calibration has none. Merge LoRAs of text or image to video, on Wan's model of "
        "that",
    ),
    **_refused(
        "WAN22_T2V",
        "is Wan 2.2 5B, which has other latents than Wan and takes a first picture, and merging on "
        "it is not tested. Merge LoRAs of Wan 2.1, or of Wan 2.2 14B, on their model of text to "
        "video",
    ),
    **_refused(
        "HiDream",
        "is a HiDream, whose experts see a part of the tokens each, so that its layers cannot be "
        "measured on all of them. Merge on a model without experts",
    ),
    **_refused(
        "SVD_img2vid GenmoMochi LTXV LTXAV HunyuanVideoI2V HunyuanVideoSkyreelsI2V "
        "HunyuanVideo15 HunyuanVideo15_SR_Distilled CosmosT2V CosmosI2V CosmosI2VPredict2 "
        "Kandinsky5 CogVideoX_T2V CogVideoX_I2V CogVideoX_Inpaint SeedVR2",
        "draws videos, and merging on it is not tested. Merge on a model of pictures, or on the "
        "model of text to video of Wan or HunyuanVideo",
    ),
    **_refused(
        "StableAudio StableAudio3 ACEStep ACEStep15 MiniMaxMusic3",
        "makes sound, and calibration is made of pictures. Merge on a model of pictures",
    ),
    **_refused(
        "Stable_Zero123 SV3D_u SV3D_p Hunyuan3Dv2 Hunyuan3Dv2_1 Hunyuan3Dv2mini Trellis2 "
        "TripoSplat",
        "makes 3-D shapes or views of them, and calibration is made of pictures from text. Merge "
        "on a model that draws pictures from text",
    ),
}


def family_of(model: Any) -> Family | None:
    """Return the family of a MODEL, which may be one that cannot be merged on, such as an
    inpainting model; None: its class is not in the table.
    """
    row = HOST_FAMILIES.get(type(model.model.model_config).__name__)
    return None if row is None else row.family


def row_of(model: Any) -> HostFamily:
    """Return the row of a MODEL.

    Raises:
        IterisError: Its class is not in the table, or it reads more than noisy latents.
    """
    config = model.model.model_config
    kind = type(config).__name__
    row = HOST_FAMILIES.get(kind)
    if kind in REFUSED:
        raise IterisError(f"the MODEL (ComfyUI's class {kind}) {REFUSED[kind]}")
    if row is None:
        known = ", ".join(dict.fromkeys(row.family.name for row in HOST_FAMILIES.values()))
        raise IterisError(
            f"the MODEL is of ComfyUI's class {kind}, which IterIS does not know how to measure; "
            f"it merges LoRAs of {known}. Load a model of one of these, or ask for {kind} at the "
            "pack's issue tracker"
        )
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


def check_callable(model: Any) -> None:
    """Refuse a MODEL whose layers are not called one by one, so that nothing can be measured.

    Raises:
        IterisError: It is compiled, or its layers are Nunchaku's.
    """
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
    if found not in row.text_encoders:
        expected = " or ".join(" + ".join(sorted(choice)) for choice in row.text_encoders)
        raise IterisError(
            f"the CLIP is a {type(clip.cond_stage_model).__name__} with the text encoders "
            f"{' + '.join(sorted(found))}; the MODEL is {name}, whose text encoders are "
            f"{expected}. Connect the CLIP of a {name} checkpoint, or load it with the type of "
            f"{name}"
        )
