"""Names of files that the workflows choose, for loaders that are not run."""

from pathlib import Path

_TRANSFORMER = {
    "diffusion_models": ["flux1-dev.safetensors"],
    "text_encoders": ["clip_l.safetensors", "t5xxl_fp16.safetensors"],
    "vae": ["ae.safetensors"],
}


def list_transformer(models: Path) -> None:
    """Write empty files of the names that the workflow of a transformer chooses, so that ComfyUI
    lists them.
    """
    for folder, names in _TRANSFORMER.items():
        (models / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            (models / folder / name).touch()
