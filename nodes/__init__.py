"""The nodes, a file each. `loras` reads which LoRAs are merged, and `host` alone touches ComfyUI's
insides.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import host
from .compare import Compare
from .load import LoadLoras
from .lora import LoraToMerge, TrainedLora
from .loras.about import about_lora, about_model, about_row, thumbnail_of
from .merge import Merge, MergeVideo
from .recipe import LoadRecipe, about_recipe
from .report import ShowReport
from .save import SaveMergedLora
from .scene import ScenePrompts
from .settings import Settings
from .stack import LorasOnModel, LoraStack


class IterisExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        host.note_prompts()
        host.answer_at("/iteris/lora", "name", about_lora)
        host.answer_at("/iteris/model", "name", about_model)
        host.answer_at("/iteris/row", "text", about_row)
        host.answer_at("/iteris/recipe", "name", about_recipe)
        host.picture_at("/iteris/thumbnail", "name", thumbnail_of)
        return [
            Merge,
            MergeVideo,
            LoadLoras,
            Settings,
            LoraToMerge,
            LoraStack,
            LorasOnModel,
            TrainedLora,
            ScenePrompts,
            Compare,
            ShowReport,
            SaveMergedLora,
            LoadRecipe,
        ]
