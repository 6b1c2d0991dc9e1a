"""Saving a merged LoRA."""

from __future__ import annotations

from comfy_api.latest import io

from ..iteris_core.formats.files import write_tensors
from . import host
from .sockets import MERGED, MergedLora


class SaveMergedLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISSave",
            display_name="Save merged LoRA (IterIS)",
            category="loaders/IterIS",
            description="Saves a merged LoRA, text encoder and UNet, as a .safetensors file that every SD1.5 program loads.",
            inputs=[
                MERGED.Input("merged", tooltip="From IterIS Merge."),
                io.String.Input(
                    "file_name", default="loras/iteris_merged",
                    tooltip="Below ComfyUI's output folder. Files in output/loras show up in every LoRA list.",
                ),
                io.Boolean.Input("overwrite", default=False, tooltip="Replace a file of that name. Off: a number is added."),
            ],
            outputs=[io.String.Output(display_name="path")],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, merged: MergedLora, file_name: str, overwrite: bool) -> io.NodeOutput:
        path = host.output_path(file_name, overwrite)
        write_tensors(merged.tensors, path, merged.metadata, overwrite=overwrite)
        return io.NodeOutput(str(path), ui={"text": [str(path)]})
