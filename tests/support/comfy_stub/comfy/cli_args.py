"""How ComfyUI was started."""

from types import SimpleNamespace

args = SimpleNamespace(disable_metadata=False, cache_none=False)
