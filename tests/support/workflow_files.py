"""The files that workflows choose, empty."""

from pathlib import Path

_WAN = [
    f"wan2.2_{kind}_{level}_noise_14B_fp8_scaled.safetensors"
    for kind in ("t2v", "i2v")
    for level in ("high", "low")
]
_TRANSFORMER = {
    "diffusion_models": ["flux1-dev.safetensors", *_WAN],
    "text_encoders": [
        "clip_l.safetensors",
        "t5xxl_fp16.safetensors",
        "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    ],
    "vae": ["ae.safetensors", "wan_2.1_vae.safetensors"],
}


def list_transformer(models: Path) -> None:
    """Write empty files of the names that these workflows choose, so that ComfyUI lists them."""
    for folder, names in _TRANSFORMER.items():
        (models / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            (models / folder / name).touch()
