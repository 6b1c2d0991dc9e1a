"""A base model with a merged adapter in its weights, saved as `transformers` saves models."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from ..adapters import Adapter
from ..errors import AdapterError
from ..files.limits import json_value
from ..files.writing import FolderKind, check_replaceable, whole_folder

_CONFIG_FILE = "config.json"
# Names of the files that `save_pretrained` of our models and of their tokenizers and processors
# writes, all of them.
_OWN_FILES = re.compile(
    r"(config|generation_config|model\.safetensors\.index|tokenizer|tokenizer_config"
    r"|special_tokens_map|added_tokens|vocab|preprocessor_config|processor_config)\.json"
    r"|model(-\d{5}-of-\d{5})?\.safetensors"
    r"|spiece\.model|vocab\.txt|merges\.txt|chat_template\.jinja"
)


def add_to_weights(model: Any, adapter: Adapter) -> None:
    """Add an adapter's deltas to a model's weights, in place.

    Raises:
        AdapterError: A layer shares its weight with another module, which would change with it.
    """
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    tied = [path for path in adapter.deltas if uses[id(model.get_submodule(path).weight)] > 1]
    if tied:
        raise AdapterError(
            f"{adapter.name}: {tied[0]!r} shares its weight with another module, so its delta "
            "cannot be added to it without changing that one too. Save the adapter alone, and load "
            "it with PEFT"
        )
    with torch.no_grad():
        for path, delta in adapter.deltas.items():
            weight = model.get_submodule(path).weight
            precise = torch.promote_types(weight.dtype, torch.float32)
            whole = delta.to(device=weight.device, dtype=precise).dense().reshape(weight.shape)
            weight.copy_((weight.to(precise) + whole).to(weight.dtype))


def save_merged_model(
    model: Any,
    adapter: Adapter,
    folder: Path,
    companions: Sequence[Any] = (),
    *,
    kinds: Collection[str],
    overwrite: bool = False,
) -> None:
    """Write the merged model in one step: the folder is there whole or not at all.

    Args:
        model: The base model; its weights are changed.
        adapter: The merged adapter.
        folder: Folder of the model; it is made if needed.
        companions: Tokenizers or processors of the model, which have a ``save_pretrained``, too.
        kinds: See `check_free`.
        overwrite: Whether a model that is there is replaced.

    Raises:
        AdapterError: See `add_to_weights`.
        NameTakenError: See `check_free`; the folder is untouched.
        SaveError: It cannot be written; names the cause. What was there is untouched.
    """
    check_free(folder, kinds, overwrite=overwrite)
    add_to_weights(model, adapter)
    with whole_folder(folder, _folder_of(kinds), overwrite=overwrite) as draft:
        for part in (model, *companions):
            part.save_pretrained(draft)


def check_free(folder: Path, kinds: Collection[str], *, overwrite: bool) -> None:
    """Refuse a folder into which `save_merged_model` would not write.

    Args:
        folder: The folder.
        kinds: The values of ``model_type`` that a model may have whose place is taken.
        overwrite: Whether such a model is replaced.

    Raises:
        NameTakenError: It holds files, and `overwrite` is False or they are not those of such a
            model alone.
    """
    check_replaceable(folder, _folder_of(kinds), overwrite=overwrite)


def _folder_of(kinds: Collection[str]) -> FolderKind:
    return FolderKind(
        f"a model of the kind {' or '.join(kinds)}",
        lambda path: bool(_OWN_FILES.fullmatch(path.name)) and _model_type(path.parent) in kinds,
    )


def _model_type(folder: Path) -> str:
    """Return what a folder's settings say; empty: it is not a model's."""
    try:
        return str(json_value((folder / _CONFIG_FILE).read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""
