"""Tiny models of ComfyUI's real classes, one per family; needs ComfyUI, see `in_comfy.py`."""

from __future__ import annotations

import ast
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any
from unittest import mock

import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models as supported
import comfy.supported_models_base
import comfy.text_encoders.aura_t5
import comfy.text_encoders.z_image
import torch
from safetensors.torch import save_file
from torch import nn

WIDTH = 48  # of the texts of transformers


def table(text: str) -> dict[str, Any]:
    """Return settings that are written as name=value, without blanks in a value."""
    pairs = (part.split("=", 1) for part in text.replace("WIDTH", str(WIDTH)).split())
    return {name: ast.literal_eval(value) for name, value in pairs}


CLIP = table("num_hidden_layers=3 hidden_size=24 intermediate_size=48 num_attention_heads=2")
T5 = {"num_layers": 2, "d_model": WIDTH, "d_kv": 16, "num_heads": 3, "d_ff": 64}
LLM = table("num_hidden_layers=3 hidden_size=WIDTH intermediate_size=64 num_attention_heads=2")
LLM |= {"num_key_value_heads": 1}


@dataclass(frozen=True)
class Tiny:
    """A tiny model of one family, with the text encoders that the host has for it.

    Args:
        config: Name of the class of comfy.supported_models.
        unet: Its settings of the diffusion model.
        sizes: Name of a text encoder -> its settings.
        state: Keys of the checkpoint that decide about the kind of model.
        words: What the tokenizer takes from the checkpoint.
        start: What a conditioning says of pictures.
        texts: Classes of the tokenizer and the text encoders, if not the host's.
    """

    config: str
    unet: dict[str, Any]
    sizes: dict[str, dict[str, Any]]
    state: dict[str, Any] = field(default_factory=dict)
    words: dict[str, Any] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    texts: tuple[Any, Any] | None = None

    def model_config(self) -> Any:
        return getattr(supported, self.config)({**_NEWER.get(self.config, {}), **self.unet})

    def clip_target(self) -> Any:
        if self.texts is not None:
            return comfy.supported_models_base.ClipTarget(*self.texts)
        norm = "transformer.text_model.final_layer_norm.weight"  # by which SD3 knows its CLIPs
        return self.model_config().clip_target({f"text_encoders.{n}.{norm}": 0 for n in self.sizes})


_UNET = table("""image_size=32 in_channels=4 out_channels=4 model_channels=32 num_res_blocks=[1,1]
    channel_mult=[1,2] transformer_depth=[0,1] transformer_depth_output=[0,0,1,1]
    transformer_depth_middle=1 use_spatial_transformer=True legacy=False
    use_temporal_attention=False""")
_SD15 = {**_UNET, "context_dim": 24, "num_heads": 4, "num_head_channels": -1}
_SDXL = _UNET | table("""context_dim=48 num_heads=-1 num_head_channels=16 use_linear_in_transformer=True
    num_classes='sequential' adm_in_channels=1560""")
_FLUX = table("""in_channels=16 out_channels=16 hidden_size=256 mlp_ratio=4.0 num_heads=2 depth=2
    depth_single_blocks=2 axes_dim=[16,56,56] theta=10000 qkv_bias=True patch_size=2 context_in_dim=WIDTH""")
_FLUX2 = _FLUX | table("""image_model='flux2' in_channels=128 out_channels=128 patch_size=1 mlp_ratio=3.0
    axes_dim=[32,32,32,32] theta=2000 guidance_embed=True global_modulation=True vec_in_dim=None
    mlp_silu_act=True qkv_bias=False ops_bias=False""")
_SD3 = table("""in_channels=16 out_channels=16 patch_size=2 depth=2 input_size=None adm_in_channels=48
    num_patches=1024 pos_embed_max_size=32 pos_embed_scaling_factor=None qk_norm='rms'
    x_block_self_attn_layers=[0]""") | {
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 4096, "out_features": 128},
    }
}
_ZIMAGE = table("""image_model='lumina2' patch_size=2 in_channels=16 dim=256 n_layers=2 qk_norm=True n_heads=2
    n_kv_heads=2 axes_dims=[32,48,48] axes_lens=[1536,512,512] rope_theta=256.0
    ffn_dim_multiplier=2.6666666666666665 z_image_modulation=True time_scale=1000.0
    pad_tokens_multiple=32 cap_feat_dim=WIDTH""")
_QWEN = table(
    "image_model='qwen_image' in_channels=64 num_layers=2 num_attention_heads=2 joint_attention_dim=WIDTH"
)
_WAN = table("""image_model='wan2.1' model_type='t2v' dim=256 out_dim=16 num_heads=2 ffn_dim=512 num_layers=2
    patch_size=(1,2,2) freq_dim=256 window_size=(-1,-1) qk_norm=True cross_attn_norm=True eps=1e-06
    in_dim=16 text_dim=WIDTH""")
_HUNYUAN_VIDEO = _FLUX | table("""image_model='hunyuan_video' vec_in_dim=24 depth=1 depth_single_blocks=1 theta=256
    patch_size=[1,2,2] guidance_embed=True byt5=False meanflow=False use_cond_type_embedding=False
    vision_in_dim=None""")
_LUMINA2 = table("""image_model='lumina2' patch_size=2 in_channels=16 dim=192 n_layers=2 qk_norm=True n_heads=2
    n_kv_heads=1 axes_dims=[32,32,32] axes_lens=[300,512,512] rope_theta=10000.0
    ffn_dim_multiplier=4.0 cap_feat_dim=WIDTH""")
_COSMOS = table("""max_img_h=240 max_img_w=240 max_frames=128 in_channels=16 out_channels=16 patch_spatial=2
    patch_temporal=1 model_channels=256 concat_padding_mask=True pos_emb_cls='rope3d'
    pos_emb_learnable=True use_adaln_lora=True adaln_lora_dim=32 num_blocks=2 num_heads=2
    extra_per_block_abs_pos_emb=False rope_h_extrapolation_ratio=4.0 rope_w_extrapolation_ratio=4.0
    rope_t_extrapolation_ratio=1.0""")
_LTXV = table("""image_model='ltxv' num_layers=2 attention_head_dim=32 num_attention_heads=4
    cross_attention_dim=128 caption_channels=WIDTH""")
_AURA = table("n_double_layers=1 n_layers=2 max_seq=1024 dim=256 n_heads=2 cond_seq_dim=WIDTH")
_texts = comfy.text_encoders
_CLIPS = {"clip_l": CLIP, "clip_g": CLIP}
_T5_ALONE = {"t5xxl": T5}
_FOUR_LAYERS = {**LLM, "num_hidden_layers": 4}
# Tokenizers that come with their checkpoints; any other of the kind will do.
_PIECES = Path(_texts.aura_t5.__file__).parent / "t5_pile_tokenizer" / "tokenizer.model"
_WORDS = {"spiece_model": _PIECES.read_bytes()}
_QWEN3 = (_texts.z_image.ZImageTokenizer, _texts.z_image.te())
_WITHOUT_BYT5 = (_texts.hunyuan_video.HunyuanVideo15Tokenizer, _texts.hunyuan_image.te(byt5=False))
_CHROMA = _FLUX | table("""image_model='chroma' in_channels=64 out_channels=64 in_dim=64 out_dim=256 hidden_dim=128
    n_layers=2""")
_RADIANCE = (
    _CHROMA
    | table("""image_model='chroma_radiance' in_channels=3 out_channels=3 patch_size=16 nerf_hidden_size=16
    nerf_mlp_ratio=4 nerf_depth=2 nerf_max_freqs=4 nerf_tile_size=512 nerf_final_head_type='conv'""")
    | {"nerf_embedder_dtype": torch.float32}
)
_HUNYUAN_VIDEO_15 = _HUNYUAN_VIDEO | table("""in_channels=65 out_channels=32 patch_size=[1,1,1] vec_in_dim=None use_cond_type_embedding=True
    guidance_embed=False vision_in_dim=WIDTH""")
_FLUX1 = {**_FLUX, "image_model": "flux", "guidance_embed": True, "vec_in_dim": 24}
_PREDICT2 = {**_COSMOS, "image_model": "cosmos_predict2", "crossattn_emb_channels": WIDTH}
_I2V = {**_WAN, "in_dim": 36}
# pictures to edit of another shape than the drawn ones
_TO_EDIT = torch.randn(1, 16, 20, 12, generator=torch.Generator().manual_seed(0))
_V_PREDICTION = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
TINY = {
    "SD1.5": Tiny("SD15", _SD15, {"clip_l": CLIP}),
    "SDXL": Tiny("SDXL", _SDXL, _CLIPS),
    "SDXL v-prediction": Tiny("SDXL", _SDXL, _CLIPS, state=_V_PREDICTION),
    "SD3.5": Tiny("SD3", _SD3, _CLIPS),
    "Flux.1": Tiny("Flux", _FLUX1, {"clip_l": CLIP, **_T5_ALONE}),
    # ComfyUI 0.3.75 has Mistral for Flux.2. Here it reads Flux.2 Klein's Qwen 3, as newer versions.
    "Flux.2": Tiny("Flux2", _FLUX2, {"qwen3_4b": LLM}, texts=_QWEN3),
    "Chroma": Tiny("Chroma", _CHROMA, _T5_ALONE),
    "Chroma Radiance": Tiny("ChromaRadiance", _RADIANCE, _T5_ALONE),
    "Z-Image": Tiny("ZImage", _ZIMAGE, {"qwen3_4b": LLM}),
    "Qwen-Image": Tiny("QwenImage", _QWEN, {"qwen25_7b": LLM}),
    "AuraFlow": Tiny("AuraFlow", _AURA, {"pile_t5xl": T5}),
    "Wan": Tiny("WAN21_T2V", _WAN, {"umt5xxl": T5}, words=_WORDS),
    "HunyuanVideo": Tiny("HunyuanVideo", _HUNYUAN_VIDEO, {"clip_l": CLIP, "llama": _FOUR_LAYERS}),
    "HunyuanVideo 1.5": Tiny(
        "HunyuanVideo15", _HUNYUAN_VIDEO_15, {"qwen25_7b": _FOUR_LAYERS}, texts=_WITHOUT_BYT5
    ),
    "Lumina 2": Tiny("Lumina2", _LUMINA2, {"gemma2_2b": LLM}, words=_WORDS),
    "Cosmos Predict2": Tiny("CosmosT2IPredict2", _PREDICT2, _T5_ALONE),
    "LTX-Video": Tiny("LTXV", _LTXV, _T5_ALONE),
}
_OF_PICTURES = {**_HUNYUAN_VIDEO, "in_channels": 33}
_LARGER = {**_WAN, "in_dim": 48, "out_dim": 48}
_EDITS = {"reference_latents": [_TO_EDIT[:, :, None]] * 2}
_CLIP_VISION = {**_I2V, "model_type": "i2v"}
TINY |= {
    "HunyuanVideo I2V": replace(TINY["HunyuanVideo"], config="HunyuanVideoI2V", unet=_OF_PICTURES),
    "Flux.1 Kontext": replace(TINY["Flux.1"], start={"reference_latents": [_TO_EDIT]}),
    "Qwen-Image Edit": replace(TINY["Qwen-Image"], start=_EDITS),
    "Wan 2.2 5B": replace(TINY["Wan"], config="WAN22_T2V", unet=_LARGER),
    "Wan 2.2 I2V": replace(TINY["Wan"], unet=_I2V),
    "Wan 2.1 I2V": replace(TINY["Wan"], config="WAN21_I2V", unet=_CLIP_VISION),
}
_NEWER: dict[str, dict[str, Any]] = {}  # class -> settings that it has in ComfyUI 0.33 only
if hasattr(supported, "Anima"):  # ComfyUI 0.33, run by hand
    _NEWER |= {
        "Flux": {"txt_ids_dims": []},
        "Flux2": {"txt_ids_dims": [3]},
        "Chroma": {"txt_ids_dims": [], "vec_in_dim": None},
        "ChromaRadiance": table(
            "txt_ids_dims=[] vec_in_dim=None use_x0=False use_sequential_txt_ids=False"
        ),
        "HunyuanVideo": {"meanflow_sum": False},
        "HunyuanVideoI2V": {"meanflow_sum": False},
        "HunyuanVideo15": {"meanflow_sum": True},
    }
    import comfy.text_encoders.ernie

    class _ErnieTokenizer(comfy.sd1_clip.SD1Tokenizer):
        """Qwen 3's in the place of Mistral's, which comes with its checkpoint."""

        def __init__(self, **more: Any) -> None:
            tokenizer = _texts.z_image.Qwen3Tokenizer
            super().__init__(name="ministral3_3b", tokenizer=tokenizer, **more)

    _ANIMA = {**_COSMOS, "image_model": "anima", "crossattn_emb_channels": 1024}
    _KREA2 = table("""image_model='krea2' features=256 channels=16 patch=2 layers=2 heads=2 kvheads=1 txtlayers=12
        txtdim=160 txtheads=2 txtkvheads=2""")
    _LONGCAT = {**_FLUX1, "guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]}
    _ERNIE = table(
        "image_model='ernie' hidden_size=256 num_attention_heads=2 num_layers=2 ffn_hidden_size=512 text_in_dim=WIDTH"
    )
    _KANDINSKY5 = table("""image_model='kandinsky5' model_dim=256 ff_dim=512 time_dim=64 in_text_dim2=24
        visual_embed_dim=64 num_text_blocks=1 num_visual_blocks=2 axes_dims=(32,48,48) in_text_dim=WIDTH""")
    _OF_ANIMA = {"qwen3_06b": {**LLM, "hidden_size": 1024}}
    _OF_KREA2 = {"qwen3vl_4b": {**LLM, "hidden_size": 160, "num_hidden_layers": 36}}
    _OF_ERNIE = {"ministral3_3b": {**LLM, "vocab_size": 151936}}
    _ERNIE_TEXTS = (_ErnieTokenizer, _texts.ernie.te())
    TINY |= {
        "Anima": Tiny("Anima", _ANIMA, _OF_ANIMA),
        "Krea 2": Tiny("Krea2", _KREA2, _OF_KREA2),
        "LongCat-Image": Tiny("LongCatImage", _LONGCAT, {"qwen25_7b": LLM}),
        "ERNIE-Image": Tiny("ErnieImage", _ERNIE, _OF_ERNIE, texts=_ERNIE_TEXTS),
        "Kandinsky 5": Tiny("Kandinsky5Image", _KANDINSKY5, {"qwen25_7b": LLM, "clip_l": CLIP}),
        "Wan CausalAR": replace(TINY["Wan"], config="WAN21_CausalAR_T2V"),
    }


def model_of(tiny: Tiny, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """Return a MODEL with a seed's weights, kept in a number format; it computes in float32."""
    config = tiny.model_config()
    config.set_inference_dtype(dtype, None if dtype == torch.float32 else torch.float32)
    with in_memory():
        model = config.get_model(dict(tiny.state), "", device=torch.device("cpu"))
    _fill(model.diffusion_model, seed)
    device = comfy.model_management.get_torch_device()
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    patcher = kind(model, device, torch.device("cpu"))
    as_loaded(patcher)
    return patcher


def clip_of(tiny: Tiny) -> Any:
    """Return a CLIP with random weights, the same every time."""
    target = tiny.clip_target()
    sizes = {f"{name}_model_config": dict(size) for name, size in tiny.sizes.items()}
    with in_memory():
        clip = comfy.sd.CLIP(
            target, tokenizer_data=tiny.words, model_options={**sizes, "dtype": torch.float32}
        )
    _fill(clip.cond_stage_model)
    as_loaded(clip.patcher)
    return clip


def in_memory() -> AbstractContextManager[Any]:
    """Let newer hosts make layers with weights, also where they would take those of a file."""
    if not hasattr(comfy, "memory_management"):
        return nullcontext()
    return mock.patch.object(comfy.memory_management, "aimdo_enabled", False)


def as_loaded(patcher: Any) -> None:
    """Let a model whose weights are loaded on demand take them from a file, as from a checkpoint."""
    if not getattr(patcher, "is_dynamic", bool)():
        return
    with NamedTemporaryFile(suffix=".safetensors") as file:
        weights = patcher.model.state_dict()
        save_file({name: w.clone().contiguous() for name, w in weights.items()}, file.name)
        weights = comfy.utils.load_torch_file(file.name)
    patcher.model.load_state_dict(weights, strict=False, assign=True)


def host_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return the merge's view of the tiny model of a family."""
    from iteris_pack.nodes.host.diffusion_model import ComfyModel  # not in a server, which has it

    tiny = TINY[name]
    return ComfyModel(model_of(tiny, dtype), clip_of(tiny), start=tiny.start)


# Buffers of positions.
_KEPT = ("inv_freq", "pe_embedder", "freqs")


def _fill(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not name.endswith(_KEPT) and ".visual." not in name:
            scale = 1 / math.sqrt(math.prod(tensor.shape[1:])) if tensor.ndim > 1 else 0.05
            one = tensor.ndim == 1 and name.endswith(("weight", "scale"))
            drawn = torch.randn(tensor.shape, generator=generator) * scale + one
            tensor.data = drawn.to(tensor.dtype)
