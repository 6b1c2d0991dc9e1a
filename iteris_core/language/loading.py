"""Parts of language models: tokenizers, processors and PEFT adapters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..adapters import Adapter
from ..base_models import loaded
from ..errors import ConfigError
from ..files import peft
from ..layers import layer_shapes, stored_weight

_FEWEST_WORDS = 8  # of a tokenizer that was loaded and not made up


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


def load_adapter(model: nn.Module, folder: Path) -> Adapter:
    """Read a PEFT adapter for a model; see `peft.load`."""

    def weight_at(path: str) -> Tensor:
        return stored_weight(path, model.get_submodule(path))

    return peft.load(folder, layer_shapes(dict(model.named_modules())), weight_at)


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
