"""The rows of Merge LoRAs, and the LoRAs of a LORA_STACK, as LoRAs to merge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from ..iteris_core.diffusion.lora_rows import Row, read_rows, rows_in
from ..iteris_core.diffusion.lora_use import check_count
from . import host
from .loras.about import families_upstream
from .loras.names import fingerprint
from .loras.prompts import attempted, check_family, each, file_of_row, use_of_row
from .loras.stack_formats import read_stack

if TYPE_CHECKING:
    from ..iteris_core.diffusion.lora_use import LoraUse
    from ..iteris_core.files.families import Family

ROWS_EXAMPLE = (
    "<lora:sks_dog:0.8> subject | a photo of sks dog | sks dog on a beach\n"
    "<lora:ink:0.7> style priority=2"
)
ROWS = (
    "The LoRAs, one a line: <lora:name:strength> or <lora:name:strength:text encoder strength>. "
    "After it you may write subject or style, priority=2, called= (its name in captions with "
    "others), blocks= (block weights) and without= (layers to leave out). "
    "Then come its prompts, each after a vertical bar; without any they are made of the file's "
    "trigger words. A line that begins with # is switched off."
)
# File -> its fingerprint when a stack first had it.
_FIRST_USED: dict[str, str] = {}


def uses_of_stack(stack: Any) -> list[LoraUse]:
    """Return the LoRAs of a LORA_STACK, with prompts that are made of their files' trigger words.

    Raises:
        IterisError: What is wrong with it, or with each LoRA; see `read_stack` and `use_of_row`.
    """
    stacked = read_stack(stack)
    check_count(len(stacked))  # before files are read
    uses = each(stacked, use_of_row)
    remember(uses)
    return uses


def remember(uses: Iterable[LoraUse]) -> None:
    """Remember the fingerprints that files had when a stack first had them; see `watched`."""
    for use in uses:
        if use.file is not None:
            _FIRST_USED.setdefault(use.file, fingerprint(host.find_lora(use.file)))


def watched(text: object, has_stack: bool) -> list[str]:
    """Return the files whose change makes a merge run again.

    They are those that its rows name. What a LORA_STACK has is not known before the run: of its
    files those count that have changed since a stack first had them.

    Args:
        text: The rows; other than a text: they come through a link.
    """
    names = files_in(text)
    if isinstance(text, str) and not has_stack:
        return names
    first = _FIRST_USED.items()
    return names + [name for name, seen in first if fingerprint(host.find_lora(name)) != seen]


def files_in(text: object) -> list[str]:
    """Return the files that a text of rows names; none if it comes through a link.

    Raises:
        IterisError: See `read_rows` and `file_of_row`.
    """
    if not isinstance(text, str):
        return []
    names = host.lora_names()
    return [file_of_row(row, names) for row in read_rows(text)]


def refused(
    text: object,
    use: Callable[[Row], object],
    node_id: str | None = None,
) -> bool | str:
    """Return why rows cannot run, by their places among those that the page shows, for a node's
    `validate_inputs`; True if they can, or if they come through a link and are not known yet.

    Args:
        text: The rows.
        use: Reads a row as its node does, and raises what is wrong with it.
        node_id: The node, whose model they have to fit; None: it has none.
    """
    if not isinstance(text, str):
        return True

    @cache
    def families() -> Sequence[Family]:
        return () if node_id is None else families_upstream(host.prompt_sent(), node_id)

    def use_all(line: str) -> None:
        for row in rows_in(line):
            use(row)
            check_family(row, families())

    wrong: dict[str, list[int]] = {}
    lines = list(filter(str.strip, text.split("\n")))
    for place, what in attempted(lines, use_all)[1].items():
        wrong.setdefault(what, []).append(place + 1)
    return "\n".join(f"{_rows(numbers)}: {what}" for what, numbers in wrong.items()) or True


def _rows(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"Rows {', '.join(first)} and {last}" if first else f"Row {last}"
