"""The nodes, a file each. `loras` reads which LoRAs are merged, and `host` alone touches ComfyUI's
insides.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import host
from .compare import Compare
from .lora import LoraToMerge
from .loras.about import about_lora, about_model, about_row, thumbnail_of
from .merge import Merge
from .recipe import LoadRecipe
from .save import SaveMergedLora
from .settings import Settings


class IterisExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        host.note_prompts()
        host.answer_at("/iteris/lora", "name", about_lora)
        host.answer_at("/iteris/model", "name", about_model)
        host.answer_at("/iteris/row", "text", about_row)
        host.picture_at("/iteris/thumbnail", "name", thumbnail_of)
        return [Merge, Compare, SaveMergedLora, LoraToMerge, Settings, LoadRecipe]
