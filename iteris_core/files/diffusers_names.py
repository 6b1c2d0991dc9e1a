"""diffusers' names of modules in models for which ComfyUI has no table of them."""

from __future__ import annotations

import re

from .families import Family

_FLUX2 = (
    (r"^double_blocks\.(\d+)\.img_mlp\.0$", r"transformer_blocks.\1.ff.linear_in"),
    (r"^double_blocks\.(\d+)\.img_mlp\.2$", r"transformer_blocks.\1.ff.linear_out"),
    (r"^double_blocks\.(\d+)\.txt_mlp\.0$", r"transformer_blocks.\1.ff_context.linear_in"),
    (r"^double_blocks\.(\d+)\.txt_mlp\.2$", r"transformer_blocks.\1.ff_context.linear_out"),
    (r"^single_blocks\.(\d+)\.linear1$", r"single_transformer_blocks.\1.attn.to_qkv_mlp_proj"),
    (r"^single_blocks\.(\d+)\.linear2$", r"single_transformer_blocks.\1.attn.to_out"),
    (r"^((?:double|single)_stream_modulation(?:_img|_txt)?)\.lin$", r"\1.linear"),
    (r"^time_in\.in_layer$", "time_guidance_embed.timestep_embedder.linear_1"),
    (r"^time_in\.out_layer$", "time_guidance_embed.timestep_embedder.linear_2"),
    (r"^guidance_in\.in_layer$", "time_guidance_embed.guidance_embedder.linear_1"),
    (r"^guidance_in\.out_layer$", "time_guidance_embed.guidance_embedder.linear_2"),
)
_CHROMA = (
    (r"^(distilled_guidance_layer\.layers\.\d+)\.in_layer$", r"\1.linear_1"),
    (r"^(distilled_guidance_layer\.layers\.\d+)\.out_layer$", r"\1.linear_2"),
)
_COSMOS = (
    (r"^blocks\.(\d+)\.self_attn\.([qkv])_proj$", r"transformer_blocks.\1.attn1.to_\2"),
    (r"^blocks\.(\d+)\.self_attn\.output_proj$", r"transformer_blocks.\1.attn1.to_out.0"),
    (r"^blocks\.(\d+)\.cross_attn\.([qkv])_proj$", r"transformer_blocks.\1.attn2.to_\2"),
    (r"^blocks\.(\d+)\.cross_attn\.output_proj$", r"transformer_blocks.\1.attn2.to_out.0"),
    (r"^blocks\.(\d+)\.mlp\.layer1$", r"transformer_blocks.\1.ff.net.0.proj"),
    (r"^blocks\.(\d+)\.mlp\.layer2$", r"transformer_blocks.\1.ff.net.2"),
    (
        r"^blocks\.(\d+)\.adaln_modulation_self_attn\.([12])$",
        r"transformer_blocks.\1.norm1.linear_\2",
    ),
    (
        r"^blocks\.(\d+)\.adaln_modulation_cross_attn\.([12])$",
        r"transformer_blocks.\1.norm2.linear_\2",
    ),
    (r"^blocks\.(\d+)\.adaln_modulation_mlp\.([12])$", r"transformer_blocks.\1.norm3.linear_\2"),
    (r"^t_embedder\.1\.linear_([12])$", r"time_embed.t_embedder.linear_\1"),
    (r"^x_embedder\.proj\.1$", "patch_embed.proj"),
    (r"^final_layer\.adaln_modulation\.([12])$", r"norm_out.linear_\1"),
    (r"^final_layer\.linear$", "proj_out"),
)
# Family -> pairs of a pattern of the model's own names and its replacement.
_NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "Flux.2": _FLUX2,
    "Chroma": _CHROMA,
    "Chroma Radiance": _CHROMA,
    "Cosmos Predict2": _COSMOS,
    "Anima": _COSMOS,
    "LongCat-Image": (
        (r"^time_in\.in_layer$", "time_embed.timestep_embedder.linear_1"),
        (r"^time_in\.out_layer$", "time_embed.timestep_embedder.linear_2"),
    ),
    "LTX-Video": ((r"^patchify_proj$", "proj_in"), (r"^adaln_single\.", "time_embed.")),
    "Wan": (
        (r"self_attn\.([qkv])$", r"attn1.to_\1"),
        (r"self_attn\.o$", "attn1.to_out.0"),
        (r"cross_attn\.([qkv])$", r"attn2.to_\1"),
        (r"cross_attn\.o$", "attn2.to_out.0"),
        (r"cross_attn\.([kv])_img$", r"attn2.add_\1_proj"),
        (r"ffn\.0$", "ffn.net.0.proj"),
        (r"ffn\.2$", "ffn.net.2"),
        (r"^(text|time)_embedding\.0$", r"condition_embedder.\1_embedder.linear_1"),
        (r"^(text|time)_embedding\.2$", r"condition_embedder.\1_embedder.linear_2"),
        (r"^time_projection\.1$", "condition_embedder.time_proj"),
        (r"^img_emb\.proj\.1$", "condition_embedder.image_embedder.ff.net.0.proj"),
        (r"^img_emb\.proj\.3$", "condition_embedder.image_embedder.ff.net.2"),
        (r"^head\.head$", "proj_out"),
    ),
}


def diffusers_name(family: Family, own: str) -> str | None:
    """Return diffusers' name of a module; None: it is not known to have another one."""
    for pattern, replacement in _NAMES.get(family.name, ()):
        name, count = re.subn(pattern, replacement, own)
        if count:
            return name
    return None
