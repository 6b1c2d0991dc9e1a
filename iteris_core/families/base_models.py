"""Base models of `transformers`: loaded from a folder or the hub, with errors that say what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..formats.layer_tables import layer_shapes

_FEWEST_WORDS = 8


def load_model(
    auto_class: Any, kinds: Sequence[str], source: str, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> nn.Module:
    """Load a model from a folder or by its name on the hub, ready to be measured.

    Args:
        auto_class: Of `transformers`; its ``from_pretrained`` loads the model.
        kinds: ``model_type`` that the model may have.
        source: Folder or hub name.
        dtype: In which it runs.
        device: Where it runs.

    Raises:
        ConfigError: There is none, or a model of another kind; the device cannot be used.
    """
    from transformers import AutoConfig

    kind = loaded(AutoConfig.from_pretrained, source, "a model").model_type
    if kind not in kinds:
        raise ConfigError(f"{source}: is a model of the kind {kind!r}; choose one of the kinds {', '.join(kinds)}")
    return placed(loaded(auto_class.from_pretrained, source, "a model", dtype=dtype), device)


def placed(model: nn.Module, device: str) -> nn.Module:
    """Return a model on a device, ready to be measured.

    Raises:
        ConfigError: The device cannot be used.
    """
    try:
        return model.to(device).eval().requires_grad_(False)
    except (RuntimeError, AssertionError) as error:  # torch's ways to say that a device is not there
        raise ConfigError(f"device {device!r} cannot be used: {_first_line(error)}") from error


def load_tokenizer(source: str) -> Any:
    """Load the tokenizer of a base model.

    Raises:
        ConfigError: There is none.
    """
    from transformers import AutoTokenizer

    tokenizer = loaded(AutoTokenizer.from_pretrained, source, "a tokenizer")
    # where the files are missing, transformers makes a tokenizer up that knows no word
    words = set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab())
    if len(words) < _FEWEST_WORDS:
        raise ConfigError(
            f"{source}: there is no tokenizer beside the model; save it there with tokenizer.save_pretrained, or give token ids"
        )
    return tokenizer


def load_processor(source: str) -> Any:
    """Load what turns pictures and texts into a base model's inputs.

    Raises:
        ConfigError: There is none.
    """
    from transformers import AutoProcessor

    return loaded(AutoProcessor.from_pretrained, source, "an image processor and tokenizer")


def loaded(load: Callable[..., Any], source: str, what: str, **options: Any) -> Any:
    """Return ``load(source, **options)``.

    Raises:
        ConfigError: It cannot be loaded; says why and what to give instead.
    """
    if Path(source).is_absolute() and not Path(source).is_dir():
        raise ConfigError(f"{source}: there is no such folder; give the folder of a base model, or its name on the hub")
    try:
        return load(source, **options)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"{source}: {what} cannot be loaded from this folder or hub name ({_first_line(error)}); give the folder that "
            "save_pretrained wrote, or a name on the hub"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def mergeable_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return module path -> (d_out, d_in) of every layer that can be merged."""
    return layer_shapes(dict(model.named_modules()))
