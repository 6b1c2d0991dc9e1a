"""What a merge tells about the kinds of its LoRAs: things, or ways to draw whole pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...iteris_core.diffusion.lora_rows import Row
    from ...iteris_core.diffusion.lora_use import LoraUse
    from ...iteris_core.report.records import Note


def guessed_styles(rows: Sequence[Row], uses: Sequence[LoraUse]) -> list[Note]:
    """Return a note for each row that does not say its kind and whose LoRA was taken as a style."""
    from ...iteris_core.report.records import Note

    return [
        Note(
            "scenes",
            f"{row.where}: {use.file} was taken for a style, by its name or its trigger words; "
            "write style or subject after it",
        )
        for row, use in zip(rows, uses, strict=True)
        if row.kind is None and use.kind == "style"
    ]
