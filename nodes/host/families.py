"""The tables of model families: what ComfyUI's class says about how a MODEL is measured, and why
models of other classes are refused.

A family is a row, and nothing about it is code. What its files say is in
`iteris_core.files.families`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
        start: What it reads of a video's first picture, by the names in conditionings; see
            `conditions.NEUTRAL`.
        with_picture: The row of models of its class that read a first picture, with more channels.
        edits: Whether models of its class may read pictures to edit, which nothing else tells.
    """

    family: Family
    channels: tuple[str, int] | None
    text_encoders: tuple[frozenset[str], ...]  # empty: any, of a family that was not tested
    swept: tuple[str, ...] = ()
    text_layers: tuple[str, ...] = ()
    reads_text: str = ""
    folded: tuple[str, ...] = ()
    downscale: int = 8
    picture_comes_first: bool = False
    start: tuple[str, ...] = ()
    with_picture: HostFamily | None = None
    edits: bool = False


def _row(name: str, channels: tuple[str, int] | None, *encoders: str, **more: Any) -> HostFamily:
    choices = tuple(frozenset(choice.split()) for choice in encoders)
    return HostFamily(FAMILIES[name], channels, choices, **more)


_TWO_STREAMS = r"\.txt_(in|attn|mlp)\b"
_WAN_TEXT = r"\.(text_embedding|img_emb|cross_attn\.[kv](_img)?)\b"
_CHROMA_TEXT = rf"{_TWO_STREAMS}|\.distilled_guidance_layer\."
_NARROW = r"\.(cap_embedder|context_refiner)\."  # of Lumina 2 and Z-Image
_LATENTS = ("concat_latent_image", "concat_mask")
_FLUX = _row(
    "Flux.1", ("in_channels", 16), "l t5xxl", swept=("l",), reads_text=_TWO_STREAMS, edits=True
)
# Name of a class of comfy.supported_models -> its row; see `row_of` for all others.
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
        edits=True,
    ),
    "Chroma": _row("Chroma", ("in_channels", 64), "t5xxl", reads_text=_CHROMA_TEXT),
    "ZImage": _row("Z-Image", ("in_channels", 16), "qwen3_4b", reads_text=_NARROW),
    "QwenImage": _row(
        "Qwen-Image",
        ("in_channels", 64),
        "qwen25_7b",
        reads_text=r"\.(add_[qkv]_proj|to_add_out|txt_(in|mlp))\b",
        edits=True,
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
        with_picture=_row("Wan", ("in_dim", 36), "umt5xxl", reads_text=_WAN_TEXT, start=_LATENTS),
    ),
    "WAN21_I2V": _row(
        "Wan",
        ("in_dim", 36),
        "umt5xxl",
        reads_text=_WAN_TEXT,
        start=(*_LATENTS, "clip_vision_output"),
    ),
    "WAN21_CausalAR_T2V": _row("Wan", ("in_dim", 16), "umt5xxl", reads_text=_WAN_TEXT),
    "WAN22_T2V": _row("Wan", ("in_dim", 48), "umt5xxl", reads_text=_WAN_TEXT, downscale=16),
    "LTXV": _row(
        "LTX-Video",
        None,
        "t5xxl",
        reads_text=r"\.(caption_projection\.|attn2\.to_[kv]\b)",
        downscale=32,
    ),
    "Lumina2": _row("Lumina 2", None, "gemma2_2b", "gemma jina", reads_text=_NARROW),
    "CosmosT2IPredict2": _row(
        "Cosmos Predict2", ("in_channels", 16), "t5xxl", reads_text=r"\.cross_attn\.[kv]_proj\b"
    ),
    "LongCatImage": _row(
        "LongCat-Image", ("in_channels", 16), "qwen25_7b", reads_text=_TWO_STREAMS
    ),
    "ErnieImage": _row(
        "ERNIE-Image",
        None,
        "ministral3_3b",
        reads_text=r"\.text_proj\b",
        downscale=16,
        picture_comes_first=True,
    ),
    "Kandinsky5Image": _row(
        "Kandinsky 5",
        None,
        "qwen25_7b l",
        reads_text=(
            r"\.(text_transformer_blocks|text_embeddings|pooled_text_embeddings)\.|"
            r"\.cross_attention\.to_(key|value)\b"
        ),
    ),
    "ChromaRadiance": _row(
        "Chroma Radiance", ("in_channels", 3), "t5xxl", reads_text=_CHROMA_TEXT, downscale=1
    ),
    "HunyuanVideo": _row(
        "HunyuanVideo",
        ("in_channels", 16),
        "l llama",
        swept=("l",),
        reads_text=_TWO_STREAMS,
        picture_comes_first=True,
    ),
    "HunyuanVideoI2V": _row(
        "HunyuanVideo",
        ("in_channels", 33),
        "l llama",
        swept=("l",),
        reads_text=_TWO_STREAMS,
        picture_comes_first=True,
        start=_LATENTS,
    ),
    "HunyuanVideo15": _row(
        "HunyuanVideo 1.5",
        ("in_channels", 65),
        "qwen25_7b",
        reads_text=_TWO_STREAMS,
        downscale=16,
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
_OF_PICTURE = (
    "works on a given picture or video, and calibration has none. Merge on a model that draws from "
    "text"
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
    **_refused(
        "SD21UnclipL SD21UnclipH SD_X4Upscaler LotusD SVD_img2vid CosmosI2V CosmosI2VPredict2 "
        "CogVideoX_I2V CogVideoX_Inpaint HunyuanVideoSkyreelsI2V HunyuanVideo15_SR_Distilled "
        "HunyuanImage21Refiner SeedVR2 PiD RT_DETR_v4 DepthAnything3 SAM3 SAM31",
        _OF_PICTURE,
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
        "HiDream",
        "is a HiDream, whose experts see a part of the tokens each, so that its layers cannot be "
        "measured on all of them. Merge on a model without experts",
    ),
    **_refused(
        "PixArtAlpha PixArtSigma",
        "is a PixArt, which reads the texts of all rows of a call as one text, so that it cannot "
        "be told which row wears which LoRA. Merge on another model of pictures",
    ),
    **_refused(
        "LTXAV MiniMaxH3",
        "draws a video and its sound together, in latents of two shapes with noise of their own, "
        "and calibration has latents of one shape. Merge on a model that draws videos alone, such "
        "as Wan, HunyuanVideo or LTX-Video",
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
