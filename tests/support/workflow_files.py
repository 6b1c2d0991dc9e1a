"""Names of files that the workflows choose, for loaders that are not run."""

from pathlib import Path

_WAN = "wan2.2_t2v_{}_noise_14B_fp8_scaled.safetensors"
_TRANSFORMER = {
    "diffusion_models": ["flux1-dev.safetensors", _WAN.format("high"), _WAN.format("low")],
    "text_encoders": [
        "clip_l.safetensors",
        "t5xxl_fp16.safetensors",
        "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    ],
    "vae": ["ae.safetensors", "wan_2.1_vae.safetensors"],
}


def list_transformer(models: Path) -> None:
    """Write empty files of the names that the workflows of transformers choose, so that ComfyUI
    lists them.
    """
    for folder, names in _TRANSFORMER.items():
        (models / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            (models / folder / name).touch()
