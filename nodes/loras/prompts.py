"""Prompts of LoRA files, from the user or from the trigger words in a file's metadata."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ...iteris_core import AdapterError, CalibrationError, IterisError
from ...iteris_core.diffusion.loaded_loras import with_plain_prompts
from ...iteris_core.diffusion.lora_rows import placed
from ...iteris_core.diffusion.lora_use import NAMES
from ...iteris_core.diffusion.row_uses import use_of
from ...iteris_core.settings import TRIGGER
from .. import host
from .names import adapter_name, find_name

if TYPE_CHECKING:
    from ...iteris_core.diffusion.lora_rows import Row
    from ...iteris_core.diffusion.lora_use import LoraUse
    from ...iteris_core.files.families import Family

Item = TypeVar("Item")
Used = TypeVar("Used")


def lines(text: str) -> tuple[str, ...]:
    """Return the non-empty lines of a text field."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def use_of_file(file: str, row: Row, more: Sequence[str] = ()) -> LoraUse:
    """Return a LoRA file to merge, its prompts filled in.

    Args:
        file: Name of the file in ComfyUI's list.
        row: What its user says of it; the name does not count.
        more: Prompts besides the row's.

    Raises:
        AdapterError: The file cannot be read.
        IterisError: See `row_uses.use_of`.
    """
    from ...iteris_core.files.headers import lora_header

    triggers = lora_header(host.lora_path(file)).triggers
    return use_of(row, adapter_name(file), file, triggers, more)


def file_of_row(row: Row, names: Sequence[str]) -> str:
    """Return the file that a row names.

    Args:
        names: Those of ComfyUI's list.

    Raises:
        IterisError: Names the row. No file, or several, of this name.
    """
    with placed(row.where):
        return find_name(row.name, names)


def use_of_row(row: Row, more: Sequence[str] = ()) -> LoraUse:
    """Return the LoRA file that a row names, its prompts filled in.

    Args:
        row: A row of a text or of a stack.
        more: Prompts besides the row's.

    Raises:
        IterisError: Names the row; see `file_of_row` and `row_uses.use_of`.
    """
    file = file_of_row(row, host.lora_names())
    with placed(row.where):
        return use_of_file(file, row, more)


def check_family(row: Row, families: Sequence[Family]) -> None:
    """Refuse a row whose file is for another family of models by its keys, unless its strength is
    0. What its metadata alone say is no reason: the file may fit all the same.

    Args:
        families: The model's, see `model_families`; none: nothing is known of it.

    Raises:
        IterisError: Names the row; see `file_of_row`.
    """
    from ...iteris_core.files.families import FAMILIES
    from ...iteris_core.files.headers import lora_header
    from ...iteris_core.files.kohya import for_another
    from ...iteris_core.files.recognition import fitting

    file = file_of_row(row, host.lora_names())
    with placed(row.where):
        header = lora_header(host.lora_path(file))
        found = FAMILIES.get(header.family)
        is_idle = not (row.strength_model or row.strength_clip)
        if is_idle or not families or found is None or found.name in fitting(families[0]):
            return
        if header.is_by_keys and found not in families:
            raise AdapterError(f"{adapter_name(file)}: {for_another(found, families[0])}")


def each(items: Sequence[Item], use: Callable[[Item], Used]) -> list[Used]:
    """Return what `use` makes of each item.

    Raises:
        IterisError: What is wrong with each of them; see `attempted`.
    """
    made, wrong = attempted(items, use)
    if wrong:
        raise IterisError(". ".join(wrong.values()))
    return made


def attempted(
    items: Sequence[Item], use: Callable[[Item], Used]
) -> tuple[list[Used], dict[int, str]]:
    """Return what `use` makes of the items, and place -> why it makes nothing of one."""
    made, wrong = [], {}
    for place, item in enumerate(items):
        try:
            made.append(use(item))
        except IterisError as error:
            wrong[place] = str(error)
    return made, wrong


def ready_row(row: Row) -> None:
    """Find out whether a row of a merge can be measured.

    Raises:
        IterisError: Names the row; see `use_of_row` and `with_plain_prompts`. Rows that need what
            their files do not name are told what to click.
    """
    use = use_of_row(row)
    if use.is_idle:
        return
    with placed(row.where):
        if not use.prompts:
            raise CalibrationError(
                "no prompts, and no trigger words in the file. Click 'write prompts' on the row, "
                "and write what you would type to use the LoRA, such as 'a photo of sks dog'. The "
                "page that you downloaded it from names its trigger words. Or choose the preset "
                "Preview, which measures nothing"
            )
        if use.is_unnamed:
            raise CalibrationError(
                "no trigger words in the file. Click 'write trigger words' on the row, and write "
                f"them into 'More' in place of {TRIGGER}, such as called=\"{NAMES[use.kind]}\". "
                "The page that you downloaded it from names them. Or choose the preset Preview, "
                "which measures nothing"
            )
        with_plain_prompts([use])


def shown_on_node(uses: Sequence[LoraUse], note: str = "") -> dict[str, list[Any]]:
    """Return a node's display of its LoRAs, as text."""
    return {"text": ["\n".join([*map(_described, uses), *filter(None, [note])])]}


def _described(use: LoraUse) -> str:
    source = f", its trigger words from the file ({use.prompts_from})" if use.prompts_from else ""
    prompts = "\n  ".join([":", *use.prompts]) if use.prompts else ""
    strengths = f"{use.strength_model:g} / {use.strength_clip:g}"
    blocks = f", blocks {use.blocks}" if use.blocks else ""
    without = f", without {' '.join(use.without)}" if use.without else ""
    return f"{use.file or use.name} at {strengths}{blocks}{without}{source}{prompts}"
