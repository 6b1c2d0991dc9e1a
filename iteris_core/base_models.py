"""Base models of `transformers` and `diffusers`, and what reads their inputs, from a folder or the
hub.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from .errors import ConfigError

_FEWEST_WORDS = 8  # of a tokenizer that was loaded and not made up


def whole_model(auto_class: Any, source: str, what: str, **options: Any) -> nn.Module:
    """Load a model, and refuse one whose files lack weights: transformers would draw them at
    random. Nothing is opened by pickle, and no code of the model's own is run. For the arguments
    see `loaded`.

    Raises:
        ConfigError: It cannot be loaded, or not all of it.
    """
    safe = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    model: nn.Module
    model, found = loaded(auto_class.from_pretrained, source, what, **safe, **options)
    lost = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if lost:
        raise ConfigError(
            f"{source}: {what} cannot be loaded whole: {len(lost)} of its weights, such as "
            f"{lost[0]}, are missing or of another size, and would be random numbers. Download it "
            "again, or give the folder that save_pretrained wrote"
        )
    return model


def placed(model: nn.Module, device: str) -> nn.Module:
    """Return a model from the CPU on a device, ready to be measured.

    Raises:
        ConfigError: The device cannot be used.
    """
    try:
        return model.eval().requires_grad_(False).to(device)
    except (RuntimeError, AssertionError) as error:  # torch's ways to say that it is not there
        raise ConfigError(
            f"device {device!r} cannot be used: {first_line(error)}. Choose another, such as 'cpu'"
        ) from error


def loaded(load: Callable[..., Any], source: str, what: str, **options: Any) -> Any:
    """Return ``load(source, **options)``.

    Args:
        load: Loading function of `transformers` or `diffusers`.
        what: Name of the loaded thing in errors, such as "a tokenizer".

    Raises:
        ConfigError: It cannot be loaded; says why, and what to give instead.
    """
    if Path(source).is_absolute() and not Path(source).exists():
        raise ConfigError(
            f"{source}: there is no such folder; give the folder of a base model, or its name on "
            "the hub"
        )
    try:
        return load(source, **options)
    except Exception as error:  # whatever the libraries raise where files are missing or damaged
        raise ConfigError(
            f"{source}: {what} cannot be loaded from there ({first_line(error)}); give the folder "
            "that save_pretrained wrote, or a name on the hub"
        ) from error


def load_tokenizer(source: str) -> Any:
    """Load the tokenizer of a base model.

    Raises:
        ConfigError: There is none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    tokenizer = loaded(
        AutoTokenizer.from_pretrained, source, "a tokenizer", trust_remote_code=False
    )
    # where the files are missing, transformers makes a tokenizer up that knows no word
    words = set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab())
    if len(words) < _FEWEST_WORDS:
        raise ConfigError(
            f"{source}: there is no tokenizer next to the model; save it there with "
            "tokenizer.save_pretrained, or give token ids"
        )
    return tokenizer


def load_processor(source: str) -> Any:
    """Load the processor that turns pictures and texts into a base model's inputs.

    Raises:
        ConfigError: There is none, or it cannot be loaded.
    """
    from transformers import AutoProcessor

    what = "an image processor and tokenizer"
    return loaded(AutoProcessor.from_pretrained, source, what, trust_remote_code=False)


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or else its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
