"""What a LoRA's file says about its kind: a thing, or a way to draw whole pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ...iteris_core.diffusion.lora_rows import Row
from .. import host
from .names import find_name

if TYPE_CHECKING:
    from ...iteris_core.report.records import Note

_STYLE = re.compile(r"(?<![a-z])(?:art)?styles?(?![a-z])", re.IGNORECASE)


def likely_styles(rows: Iterable[Row]) -> list[Note]:
    """Return a note for each row that does not say its kind, and whose file looks like a style: it
    is taken for a subject.
    """
    from ...iteris_core.files.trigger_words import lora_header
    from ...iteris_core.report.records import Note

    names = host.lora_names()
    notes = []
    for row in rows:
        if row.kind is None:
            file = find_name(row.name, names)
            words = (file, *lora_header(host.lora_path(file)).triggers.words, *row.prompts)
            found = next((word for word in words if _STYLE.search(word)), None)
            if found:
                text = (
                    f"{row.where}: {file} was taken for a subject, and {found!r} looks like a "
                    "style; write style or subject after it"
                )
                notes.append(Note("scenes", text))
    return notes
