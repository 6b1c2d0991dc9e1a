"""The node 'Merge report'."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io, ui

from ..iteris_core.errors import MissingLibraryError
from . import host
from .inputs import checked
from .sockets import REPORT

if TYPE_CHECKING:
    from ..iteris_core import MergeReport


class ShowReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISReport",
            display_name="Merge report (IterIS)",
            category="loaders/IterIS",
            description="The report of a merge as pictures and text: how well each LoRA is "
            "reproduced, layer by layer. The pictures need matplotlib.",
            inputs=[
                REPORT.Input("report", tooltip="The report of Merge LoRAs."),
                REPORT.Input(
                    "compare_with",
                    optional=True,
                    tooltip="The report of another merge of the same LoRAs, with another method or "
                    "other settings.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="pictures",
                    tooltip="One picture per question. Connect Preview Image.",
                ),
                io.String.Output(display_name="text"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(cls, report: MergeReport, compare_with: MergeReport | None = None) -> io.NodeOutput:
        images, note = drawn(report, compare_with)
        text = "\n".join([str(report), *note])
        host.show_text(cls.hidden.unique_id, text)
        shown = {
            **ui.PreviewImage(images, cls=cls).as_dict(),
            "iteris_report": [report.to_dict()],
            "text": [text],
        }
        return io.NodeOutput(images, text, ui=shown)


def drawn(report: MergeReport, other: MergeReport | None) -> tuple[torch.Tensor, list[str]]:
    """Return the pictures (count, height, width, 3), and a note if none could be drawn. A long
    merge must not fail at its end.
    """
    from ..iteris_core.report.plots import pictures

    try:
        return torch.stack(list(pictures(report, [other] if other else []).values())), []
    except MissingLibraryError as error:
        return torch.full((1, 64, 64, 3), 0.5), [str(error)]
