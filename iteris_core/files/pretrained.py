"""Base models of `transformers`, loaded from a folder or the hub and spread over devices."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ..adapters import Adapter
from ..errors import ConfigError
from ..layers import layer_shapes, stored_weight
from . import peft

DeviceMap = Literal["none", "auto", "balanced"]
_OF_WEIGHTS = 0.5  # of a GPU's free memory, where a model is spread; rows and sums need the rest
_FEWEST_WORDS = 8  # of a tokenizer that was loaded and not made up


def load_model(
    auto_class: Any,
    kinds: Sequence[str],
    source: str,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    device_map: DeviceMap = "none",
) -> nn.Module:
    """Load a model from a folder or by its name on the hub, ready to be measured.

    Args:
        auto_class: A class of `transformers` whose ``from_pretrained`` loads the model.
        kinds: The values of ``model_type`` that the model may have.
        device_map: See `placed`.

    Raises:
        ConfigError: There is no model, or one of another kind, or some of its weights are missing;
            or it cannot be placed.
    """
    from transformers import AutoConfig

    kind = loaded(AutoConfig.from_pretrained, source, "a model", trust_remote_code=False).model_type
    if kind not in kinds:
        raise ConfigError(
            f"{source}: is a model of the kind {kind!r}; choose one of the kinds {', '.join(kinds)}"
        )
    return placed(whole_model(auto_class, source, "a model", dtype=dtype), device, device_map)


def whole_model(auto_class: Any, source: str, what: str, **options: Any) -> nn.Module:
    """Load a model, and refuse one whose files lack weights: transformers would draw them at
    random. Nothing is opened by pickle, and no code of the model's own is run. For the arguments
    see `loaded`.

    Raises:
        ConfigError: It cannot be loaded, or not all of it.
    """
    folder = Path(source)
    if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"{source}: its weights are a pickle (.bin), which can run code when it is opened; "
            "only .safetensors are read. Save the model again with save_pretrained, where you "
            "trust it, or download its safetensors version"
        )
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


def placed(model: nn.Module, device: str, device_map: DeviceMap = "none") -> nn.Module:
    """Return a model from the CPU on a device, ready to be measured; or spread over all GPUs by
    accelerate: ``auto`` fills one after the other, ``balanced`` all alike. What has no room stays
    on the host, and is on a GPU while it is used.

    Raises:
        ConfigError: The device cannot be used, or the model cannot be spread.
    """
    model = model.eval().requires_grad_(False)
    if device_map != "none":
        return _spread(model, device_map)
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch's ways to say that it is not there
        raise ConfigError(f"device {device!r} cannot be used: {_first_line(error)}") from error


def _spread(model: nn.Module, device_map: DeviceMap) -> nn.Module:
    try:
        from accelerate import dispatch_model, infer_auto_device_map
        from accelerate.utils import get_balanced_memory, get_max_memory
    except ImportError as error:
        raise ConfigError(
            f"device_map {device_map!r} needs accelerate, which cannot be imported "
            f"({_first_line(error)}); pip install accelerate, or leave it out"
        ) from error
    blocks = list(getattr(model, "_no_split_modules", None) or ())
    memory = {
        device: free if device == "cpu" else int(_OF_WEIGHTS * free)
        for device, free in get_max_memory().items()
    }
    if device_map == "balanced":
        memory = get_balanced_memory(model, memory, no_split_module_classes=blocks)
    places = infer_auto_device_map(model, memory, no_split_module_classes=blocks)
    if "disk" in places.values():
        raise ConfigError(
            f"device_map {device_map!r} finds no room for the whole model on GPUs and host "
            "together; use a machine with more memory, or a smaller dtype"
        )
    return cast(nn.Module, dispatch_model(model, places))


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


def loaded(load: Callable[..., Any], source: str, what: str, **options: Any) -> Any:
    """Return ``load(source, **options)``.

    Args:
        load: Loading function of `transformers` or `diffusers`.
        what: Name of the loaded thing in errors, such as "a tokenizer".

    Raises:
        ConfigError: It cannot be loaded; says why, and what to give instead.
    """
    if Path(source).is_absolute() and not Path(source).is_dir():
        raise ConfigError(
            f"{source}: there is no such folder; give the folder of a base model, or its name on "
            "the hub"
        )
    try:
        return load(source, **options)
    except Exception as error:  # whatever the libraries raise where files are missing or damaged
        raise ConfigError(
            f"{source}: {what} cannot be loaded from this folder or hub name "
            f"({_first_line(error)}); give the folder that save_pretrained wrote, or a name on the "
            "hub"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def load_adapter(model: nn.Module, folder: Path) -> Adapter:
    """Read a PEFT adapter for a model; see `peft.load`."""

    def weight_at(path: str) -> Tensor:
        return stored_weight(path, model.get_submodule(path))

    return peft.load(folder, mergeable_shapes(model), weight_at)


def generation_settings(model: nn.Module, **changed: Any) -> Any:
    """Return a model's own settings of generation with some of them changed, for
    ``model.generate(generation_config=...)``.

    As arguments of `generate` they would be checked together with those that they replace, and
    refused where the two contradict each other.
    """
    settings = copy.deepcopy(model.generation_config)
    for name, value in changed.items():
        setattr(settings, name, value)
    return settings


def mergeable_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return module path -> (d_out, d_in) of every layer that can be merged."""
    return layer_shapes(dict(model.named_modules()))
