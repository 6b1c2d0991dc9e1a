"""IterIS for ComfyUI: the host's entry point. Nothing is imported at import time, so that importing
never fails.
"""

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import IterisExtension

WEB_DIRECTORY = "web"


async def comfy_entrypoint() -> "IterisExtension":
    """Return the extension that ComfyUI registers (V3 API)."""
    try:
        from .nodes import IterisExtension
    except Exception:
        logging.getLogger(__name__).exception("IterIS could not be loaded")
        raise
    return IterisExtension()
