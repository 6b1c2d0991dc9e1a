"""The node 'Merge report'."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal

import torch
from comfy_api.latest import io, ui

from ..iteris_core.errors import MissingLibraryError
from .sockets import REPORT
from .validation import checked

if TYPE_CHECKING:
    from ..iteris_core import MergeReport
    from .report_pictures import Question

Shown = Literal["against stacking", "layers", "unseen prompts", "weights and ranks", "everything"]

# None: all that the report can answer.
QUESTIONS: dict[Shown, tuple[Question, ...] | None] = {
    "against stacking": ("stacking", "leaks"),
    "layers": ("layers",),
    "unseen prompts": ("unseen",),
    "weights and ranks": ("weights", "ranks", "lower_rank"),
    "everything": None,
}


class ShowReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IterISReport",
            display_name="Merge report (IterIS)",
            category="loaders/IterIS",
            description="Shows a merge as pictures: whether it is better than stacking, and how "
            "much the LoRAs disturb each other. The pictures need matplotlib.",
            inputs=[
                REPORT.Input("report", tooltip="The report of a merge."),
                io.Combo.Input(
                    "show",
                    options=list(QUESTIONS),
                    default="against stacking",
                    optional=True,
                    tooltip="Against stacking, and how much the LoRAs disturb each other; or the "
                    "errors of layers, those on unseen prompts, weights and ranks; or everything.",
                ),
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
                    tooltip="A picture for each question. Connect Preview Image.",
                ),
                io.String.Output(display_name="text", tooltip="The whole report as text."),
            ],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(
        cls,
        report: MergeReport,
        show: Shown = "against stacking",
        compare_with: MergeReport | None = None,
    ) -> io.NodeOutput:
        images, note = drawn(report, compare_with, QUESTIONS[show])
        text = "\n".join([str(report), *note])
        short = "\n".join([*report.warnings, *report.facts, *note])
        # one below the other, since a node would show several side by side
        column = images.flatten(0, 1).unsqueeze(0)
        shown = {
            "iteris_pictures": ui.PreviewImage(column, cls=cls).as_dict()["images"],
            "iteris_report": [report.to_dict()],
            "text": [short],
        }
        return io.NodeOutput(images, text, ui=shown)


def drawn(
    report: MergeReport, other: MergeReport | None, asked: Collection[Question] | None = None
) -> tuple[torch.Tensor, list[str]]:
    """Return the pictures (count, height, width, 3), and a note if none could be drawn. A long
    merge must not fail at its end.

    Args:
        other: Report of another merge of the same LoRAs.
        asked: The questions; None: all of them.
    """
    from .report_pictures import pictures

    try:
        found = list(pictures(report, [other] if other else [], asked=asked).values())
    except MissingLibraryError as error:
        return _NOTHING, [str(error)]
    if not found:
        note = "this merge has no such figures: choose another picture in show, or everything"
        return _NOTHING, [note]
    return torch.stack(found), []


_NOTHING = torch.full((1, 64, 64, 3), 0.15)
