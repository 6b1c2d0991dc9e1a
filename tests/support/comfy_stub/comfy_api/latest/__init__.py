"""As much of ComfyUI's `comfy_api.latest` as declaring the pack's nodes needs."""

from . import io, ui

__all__ = ["ComfyExtension", "io", "ui"]


class ComfyExtension:
    pass
