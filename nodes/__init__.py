"""The pack's nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .merge import Merge
from .save import SaveMergedLora
from .tasks import Calibration, LoraToMerge


class IterisExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoraToMerge, Calibration, Merge, SaveMergedLora]
