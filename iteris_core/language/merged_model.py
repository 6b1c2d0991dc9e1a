"""A base model with a merged adapter in its weights, saved as `transformers` saves models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..adapters import Adapter
from ..errors import AdapterError
from ..files.writing import check_replaceable, whole_folder

# Ends of the names of files that `save_pretrained` writes.
_ENDS = (".json", ".safetensors", ".model", ".txt", ".jinja")


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
    overwrite: bool = False,
) -> None:
    """Write the merged model in one step: the folder is there whole or not at all.

    Args:
        model: The base model; its weights are changed.
        adapter: The merged adapter.
        folder: Folder of the model; it is made if needed.
        companions: Tokenizers or processors of the model, which have a ``save_pretrained``, too.
        overwrite: Whether a model that is there is replaced.

    Raises:
        AdapterError: See `add_to_weights`.
        NameTakenError: See `check_free`; the folder is untouched.
        SaveError: It cannot be written; names the cause. What was there is untouched.
    """
    check_free(folder, overwrite=overwrite)
    add_to_weights(model, adapter)
    with whole_folder(folder, _is_models, overwrite=overwrite) as draft:
        for part in (model, *companions):
            part.save_pretrained(draft.path)


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder into which `save_merged_model` would not write.

    Raises:
        NameTakenError: It holds files, and `overwrite` is False or they are no model's.
    """
    check_replaceable(folder, _is_models, overwrite=overwrite)


def _is_models(name: str) -> bool:
    return name.endswith(_ENDS) or name in ("README.md", ".gitattributes")
