"""Families of base models, and what files say about each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ..errors import ConfigError
from ..settings import label, setting_to

Spelling = Literal["kohya", "comfy"]


@dataclass(frozen=True)
class Clue:
    """A module that only adapters of one family change: a pattern that the base of a key has, the
    widths that its input may have (empty: any), and d_out / d_in (0: any).
    """

    base: str
    d_in: tuple[int, ...] = ()
    ratio: int = 0

    def fits(self, d_out: int, d_in: int) -> bool:
        """Whether a module of this shape may be the one; 0 is unknown."""
        return (not self.d_in or d_in in self.d_in) and (
            not self.ratio or (d_in > 0 and d_out == self.ratio * d_in)
        )


@dataclass(frozen=True)
class Family:
    """A family of base models, whose adapters fit each other's models.

    Fields without a value in any program are empty, and are not written.

    Args:
        keys: Pattern of the bases of keys that only its adapters have. A family that is earlier in
            `FAMILIES` comes first.
        clues: What only its adapters have, besides.
        named: Pattern of its names in metadata and in PEFT's settings, in lower case.
        base_version, network_module: What is written as ``ss_base_model_version`` and
            ``ss_network_module``.
        architecture, implementation: What is written as ``modelspec.architecture``, without
            ``/lora``, and as ``modelspec.implementation``.
        resolution: Side in pixels of the pictures that it was trained on.
        measured_at: Side in pixels of the measured pictures, if the user names none.
        frames_per_latent: Frames of a video per latent frame after the first, which is one of them;
            0: it draws pictures.
        measured_frames: Frames of the measured videos, if the user names none.
        guidance: Guidance to sample with, if the user names none; 1 means no guidance.
        saved_as: Style of its keys in saved files: kohya's trainers', or ``comfy``, the
            model's own names with PEFT's endings.
        names_of_diffusers: Whether kohya's trainers call the modules of its UNet as diffusers does.
        text_bases: How the keys of its text encoders begin in kohya's style, best first. Others of
            that style mean the text encoders of other families.
        is_tested: Whether merging on its models was tested. Where it was not, the proof of each
            LoRA is the judge, and no file is refused for its names alone.
    """

    name: str
    keys: str = ""
    clues: tuple[Clue, ...] = ()
    named: str = ""
    base_version: str = ""
    network_module: str = ""
    architecture: str = ""
    implementation: str = ""
    resolution: int = 1024
    measured_at: int = 512
    frames_per_latent: int = 0
    measured_frames: int = 1
    guidance: float = 1.0
    saved_as: Spelling = "kohya"
    names_of_diffusers: bool = False
    text_bases: tuple[str, ...] = ("lora_te_",)
    is_tested: bool = True

    def latent_frames(self, frames: int) -> int:
        """Return the number of latent frames of a video; 1 of a picture."""
        return 1 + (frames - 1) // self.frames_per_latent if self.frames_per_latent else 1

    def frames_of(self, asked: int) -> int:
        """Return the frames to measure, where 0 stands for the family's own.

        Raises:
            ConfigError: It draws no videos, or none of so many frames; names some that it draws.
        """
        frames = asked or self.measured_frames
        step = self.frames_per_latent
        if step and (frames - 1) % step:
            raise ConfigError(
                f"{label('frames')} is {frames}; {self.name} draws videos of 1, {1 + step}, "
                f"{1 + 2 * step}, {1 + 3 * step} ... frames. Set one of these, or 0 for "
                f"{self.measured_frames}"
            )
        if frames > 1 and not step:
            raise ConfigError(
                f"{label('frames')} is {frames}, and {self.name} draws single pictures. Set "
                f"{setting_to('frames', 0)}"
            )
        return frames


_ATTENDS_TO_TEXT = r"attn2(?:[._]processor)?[._]to_[kv]$"
_CLIP_OF_SD = r"^lora_te_text_model_.*_(?:[qkv]_proj|mlp_fc1)$"
_BLOCKS = r"(?:^|\.|^lora_unet_{1,2}|^lycoris_)blocks[._]\d+[._]"
_LAYERS = (
    r"(?:^|\.|^lora_unet_|^lycoris_)layers[._]\d+[._]"
    r"(?:attention[._](?:to_|qkv|out)|feed_forward[._]w[123]|adaLN_modulation)"
)
# diffusers' names in LTX-Video, PixArt and the models of Cosmos
_ATTN1 = (
    r"^(?:diffusion_model\.|transformer\.|lora_unet_|lora_transformer_|lycoris_|"
    r"base_model\.model\.(?:transformer\.)?)?transformer_blocks[._]\d+[._]attn1[._]"
)
_STREAMS = r"(?<!single_)transformer_blocks[._]\d+[._](?:attn|ff|ff_context|norm1)[._]"

_LAYERS_OF_ERNIE = (
    r"(?:^|\.|^lora_unet_|^lycoris_)layers[._]\d+[._](?:self_attention|mlp[._]linear_fc2)"
)
_ROWS = (
    Family(
        "HunyuanVideo 1.5",
        named=r"hunyuan[-_]?video[-_]?1[._-]?5",
        measured_at=384,
        frames_per_latent=4,
        measured_frames=9,
        guidance=6.0,
        saved_as="comfy",
    ),
    Family(
        "HunyuanVideo",
        keys=(
            r"individual_token_refiner|(?:img|txt)_mlp[._]fc[12]$|(?:img|txt)_mod[._]linear$|"
            r"single_blocks[._]\d+[._]modulation[._]linear$"
        ),
        named=r"hunyuan[-_]?video|framepack",
        base_version="hunyuan_video",
        network_module="networks.lora",
        architecture="hunyuan-video",
        implementation="https://github.com/Tencent/HunyuanVideo",
        measured_at=384,
        frames_per_latent=4,
        measured_frames=9,
        saved_as="comfy",
        text_bases=("lora_te1_",),
    ),
    Family(
        "Flux.2",
        clues=(
            Clue(
                r"to_qkv_mlp_proj|(?:double|single)_stream_modulation|"
                r"transformer_blocks[._]\d+[._]ff(?:_context)?[._]linear_in$"
            ),
            Clue(r"single_blocks[._]\d+[._]linear1$", ratio=9),
            Clue(r"double_blocks[._]\d+[._](?:img|txt)_mlp[._]0$", ratio=6),
            Clue(
                r"single_blocks[._]\d+[._]linear1$|double_blocks[._]\d+[._](?:img|txt)_attn[._]qkv$",
                d_in=(4096, 6144),
            ),
        ),
        named=r"flux[-_.]?2",
        base_version="flux2",
        network_module="networks.lora_flux_2",
        implementation="https://github.com/black-forest-labs/flux2",
        saved_as="comfy",
    ),
    Family(
        "Chroma",
        keys=r"distilled_guidance_layer",
        named=r"(?<!zeta_)chroma(?![-_]?radiance)",
        base_version="chroma",
        network_module="networks.lora_flux",
        architecture="chroma",
        implementation="https://huggingface.co/lodestones/Chroma",
        guidance=4.0,
        text_bases=("lora_te3_", "lora_te1_"),
    ),
    Family(
        "AuraFlow",
        keys=(
            r"joint_transformer_blocks|(?:double|single)_layers[._]\d+[._]|"
            r"single_transformer_blocks[._]\d+[._]ff[._]"
        ),
        named=r"aura[-_]?flow",
        base_version="auraflow",
        guidance=3.5,
        text_bases=("lora_te1_",),
    ),
    Family(
        "Flux.1",
        keys=r"double_blocks|single_transformer_blocks|single_blocks",
        named=r"flux",
        base_version="flux1",
        network_module="networks.lora_flux",
        architecture="flux-1-dev",
        implementation="https://github.com/black-forest-labs/flux",
        text_bases=("lora_te1_", "lora_te3_", "lora_te2_"),
    ),
    Family("LongCat-Image", named=r"longcat", guidance=4.0, saved_as="comfy"),
    Family(
        "Chroma Radiance",
        keys=r"nerf_(?:blocks|image_embedder|final_layer)",
        named=r"chroma[-_]?radiance",
        guidance=4.0,
        saved_as="comfy",
    ),
    Family("HiDream", keys=r"(?:double|single)_stream_blocks", named=r"hidream"),
    Family(
        "SD3.5",
        keys=r"joint_blocks",
        clues=(Clue(_STREAMS, d_in=(1536, 2432)),),
        named=r"stable-diffusion-v?3|(?<![a-z])sd_?v?3|^3-(?:medium|5)",
        base_version="sd_3",  # ai-toolkit's name; the name of kohya's trainers depends on the size
        network_module="networks.lora_sd3",
        architecture="stable-diffusion-3",
        implementation="diffusers",
        guidance=4.5,
        text_bases=("lora_te1_", "lora_te2_", "lora_te3_"),
    ),
    Family(
        "Qwen-Image",
        keys=(
            r"transformer_blocks[._]\d+[._](?:img|txt)_(?:mlp|mod)[._]|"
            r"(?<!single_)transformer_blocks[._](?:3[89]|[45]\d)[._]attn[._]"
        ),
        named=r"qwen[-_]?image",
        base_version="qwen_image",
        network_module="networks.lora_qwen_image",
        architecture="Qwen-Image",
        implementation="https://github.com/QwenLM/Qwen-Image",
        guidance=2.5,
        saved_as="comfy",
    ),
    Family(
        "Krea 2",
        keys=(
            r"txtfusion|text_fusion|" + _BLOCKS + r"attn[._]w[qkvo]$|"
            r"transformer_blocks[._]\d+[._](?:attn[._]to_gate|ff[._](?:gate|up|down))$"
        ),
        named=r"krea[-_ ]?2",
        base_version="krea2",
        network_module="networks.lora_krea2",
        architecture="Krea-2",
        implementation="https://github.com/krea-ai/krea-2",
        guidance=5.5,  # Krea's own 4.5 counts from 0
        saved_as="comfy",
    ),
    Family(
        "Lumina 2",
        clues=(Clue(_LAYERS, d_in=(2304,)),),
        named=r"lumina",
        base_version="lumina2",
        network_module="networks.lora_lumina",
        architecture="lumina-2",
        implementation="https://github.com/Alpha-VLLM/Lumina-Image-2.0",
        guidance=4.0,
        saved_as="comfy",
    ),
    Family(
        "Z-Image",
        keys=_LAYERS + r"|(?:noise|context)_refiner",
        named=r"z[-_]?image",
        base_version="z_image",
        network_module="networks.lora_zimage",
        architecture="Z-Image",
        implementation="https://github.com/Tongyi-MAI/Z-Image",
        # diffusers takes fused weights apart only in kohya's style
    ),
    Family(
        "Cosmos Predict2",
        keys=r"transformer_blocks[._]\d+[._]norm[123][._]linear_[12]$",
        named=r"cosmos",
        guidance=4.0,
        saved_as="comfy",
    ),
    Family(
        "ERNIE-Image",
        keys=_LAYERS_OF_ERNIE,
        named=r"ernie[-_]?image",
        guidance=4.0,
        saved_as="comfy",
    ),
    Family(
        "Kandinsky 5",
        keys=r"(?:visual|text)_transformer_blocks",
        named=r"kandinsky[-_]?5",
        guidance=3.5,
        saved_as="comfy",
    ),
    Family(
        "Anima",
        keys=(
            r"llm_adapter|" + _BLOCKS + r"(?:(?:self|cross)_attn[._](?:[qkv]|output)_proj$|"
            r"mlp[._]layer[12]$|adaln_modulation)"
        ),
        named=r"(?:^|/)anima(?![a-z])",
        base_version="anima",
        network_module="networks.lora_anima",
        architecture="anima-preview",
        implementation="https://huggingface.co/circlestone-labs/Anima",
        guidance=4.0,
        saved_as="comfy",
    ),
    Family(
        "Wan",
        keys=(
            _BLOCKS + r"(?:(?:self|cross)_attn[._](?:[qkvo]|[kv]_img)$|ffn[._]|"
            r"attn[12][._]to_)"
        ),
        named=r"(?:^|/)wan(?![a-z])",
        base_version="wan",
        network_module="networks.lora_wan",
        architecture="wan2.1",
        implementation="https://github.com/Wan-Video/Wan2.1",
        measured_at=384,
        frames_per_latent=4,
        measured_frames=9,
        guidance=6.0,
        saved_as="comfy",
    ),
    Family("PixArt", clues=(Clue(_ATTN1, d_in=(1152,)),), named=r"pixart"),
    Family(
        "LTX-Video",
        keys=_ATTN1,
        named=r"ltx",
        measured_at=512,
        frames_per_latent=8,
        measured_frames=17,
        guidance=3.0,
        saved_as="comfy",
    ),
    Family(
        "SDXL",
        clues=(
            Clue(r"^lora_te2_(?!encoder_block)|^text_encoder_2\.(?:text_model|encoder\.layers)"),
            Clue(r"\d[._]transformer_blocks[._]9[._]"),
            Clue(_ATTENDS_TO_TEXT, d_in=(2048,)),
        ),
        named=r"sdxl|stable-diffusion-xl|illustrious|noobai|pony",
        base_version="sdxl_base_v1-0",
        network_module="networks.lora",
        architecture="stable-diffusion-xl-v1-base",
        implementation="https://github.com/Stability-AI/generative-models",
        measured_at=768,
        guidance=6.0,
        text_bases=("lora_te1_", "lora_te2_"),
    ),
    Family(
        "SD2.x",
        clues=(
            Clue(r"^lora_te_text_model_encoder_layers_(?:1[2-9]|2\d)_"),
            Clue(_ATTENDS_TO_TEXT, d_in=(1024,)),
            Clue(_CLIP_OF_SD, d_in=(1024,)),
        ),
        named=r"(?<![a-z])sd_?v?2|stable-diffusion-v?2",
    ),
    Family("a video model", keys=r"temporal|motion_modules"),
    Family("T5", keys=r"^(?:base_model\.model\.)?(?:en|de)coder\.block\.\d+\.layer\."),
    Family("BLIP", keys=r"text_decoder\.bert\."),
    Family("BART", keys=r"model\.decoder\.layers\.\d+\.encoder_attn"),
    Family(
        "SD1.5",
        clues=(Clue(_ATTENDS_TO_TEXT, d_in=(768,)), Clue(_CLIP_OF_SD, d_in=(768,))),
        named=r"(?<![a-z])sd_?v?1|stable-diffusion-v?1",
        base_version="sd_v1",
        network_module="networks.lora",
        architecture="stable-diffusion-v1",
        implementation="diffusers",
        resolution=512,
        guidance=7.0,
        names_of_diffusers=True,
        text_bases=("lora_te_", "lora_te1_"),
    ),
)
FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _ROWS})
