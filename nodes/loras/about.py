"""What ComfyUI's page may ask about the files of LoRAs and models, before a run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ...iteris_core.errors import IterisError
from .. import host
from ..workflow import texts_upstream
from .names import adapter_name, check_known

if TYPE_CHECKING:
    from ...iteris_core.files.families import Family


def about_lora(name: str) -> dict[str, Any]:
    """Return the facts in a LoRA file's header as JSON for the browser; ``error`` says why it
    cannot be read. Its length is bounded: by `limits`, and by the number of words.

    ``family`` is its base model's, empty if nothing tells; ``prompts`` what a merge would measure
    it on, by its kind; ``kind`` what it is likely to be, empty if nothing tells; ``merged_from``
    the LoRAs that it is a merge of, and ``is_preview`` whether without measuring; ``thumbnail``:
    whether `thumbnail_of` has a picture; ``hash`` the digest of its tensors that it states.
    """
    from ...iteris_core.diffusion.row_uses import likely_kind
    from ...iteris_core.files.beside import has_picture
    from ...iteris_core.files.headers import lora_header
    from ...iteris_core.files.trigger_words import TEMPLATES, default_prompts

    answer: dict[str, Any] = {
        "name": name,
        "trigger_words": [],
        "prompts": {},
        "rank": 0,
        "base": "",
        "family": "",
        "kind": "",
        "merged_from": [],
        "is_preview": False,
        "thumbnail": False,
        "hash": "",
        "error": None,
    }
    try:
        check_known(name)
        path = host.lora_path(name)
        header = lora_header(path)
    except IterisError as error:
        return answer | {"error": str(error)}
    return answer | {
        "trigger_words": list(header.triggers.words),
        "prompts": {kind: list(default_prompts(header.triggers, kind)) for kind in TEMPLATES},
        "rank": header.rank,
        "base": header.base,
        "family": header.family,
        "kind": likely_kind(name, header.triggers) or "",
        "merged_from": list(map(adapter_name, header.origin.names)),
        "is_preview": header.origin.is_preview,
        "thumbnail": has_picture(path),
        "hash": header.digest,
    }


def about_row(text: str) -> dict[str, Any]:
    """Return as JSON for the browser what is wrong with a row's block weights, left out layers or
    prompts on every model: ``error``, None where all is well.
    """
    from ...iteris_core.diffusion.loaded_loras import with_plain_prompts
    from ...iteris_core.diffusion.lora_rows import rows_in
    from ...iteris_core.diffusion.row_uses import use_as_written

    try:
        with_plain_prompts([use_as_written(row, row.name, None) for row in rows_in(text)])
    except IterisError as error:
        return {"error": str(error)}
    return {"error": None}


def thumbnail_of(name: str) -> tuple[bytes, str] | None:
    """Return the picture next to a LoRA of ComfyUI's list, and its media type; None where there is
    none.
    """
    from ...iteris_core.files.beside import picture_beside

    path = host.find_lora(name) if name in host.lora_names() else None
    return None if path is None else picture_beside(path)


def families_upstream(prompt: Mapping[str, Any], node_id: str) -> tuple[Family, ...]:
    """Return the families of the MODEL of a node, see `model_families`, by the headers of the files
    that the nodes before it name; none: nothing tells, or they tell several.

    Args:
        prompt, node_id: See `texts_upstream`.
    """
    from ...iteris_core.files.headers import model_header

    found = []
    for path in filter(None, map(host.find_model, texts_upstream(prompt, node_id, ("model",)))):
        with suppress(IterisError):
            found.append(model_header(path))
    return found[0] if found and all(each == found[0] for each in found) else ()


def about_model(name: str) -> dict[str, Any]:
    """Return the family of a checkpoint or a diffusion model of ComfyUI's lists as JSON for the
    browser, told by its header; ``fits`` are the families whose LoRAs fit it, empty where nothing
    tells, ``guidance`` is what a merge on it is measured at unless settings say otherwise, and
    ``resolution`` the side of its own pictures.
    """
    from ...iteris_core.files.headers import model_header
    from ...iteris_core.files.recognition import fitting
    from ...iteris_core.settings import shown

    answer: dict[str, Any] = {"name": name, "family": "", "fits": [], "error": None}
    path = host.find_model(name)
    if path is None:
        return answer | {
            "error": f"{shown(name)} is not in ComfyUI's lists of checkpoints and diffusion "
            "models; press R to refresh them"
        }
    try:
        families = model_header(path)
    except IterisError as error:
        return answer | {"error": str(error)}
    if not families:
        return answer
    family = families[0]
    return answer | {
        "family": family.name,
        "fits": fitting(family),
        "guidance": family.guidance,
        "resolution": family.resolution,
    }
