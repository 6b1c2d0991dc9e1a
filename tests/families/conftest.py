"""Tiny random T5 and BART models, and PEFT adapters for them, made by transformers and peft themselves."""

import contextlib
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from iteris_core.layers import weight_shape

VOCABULARY = 60


def make_t5(seed: int = 0, **options) -> T5ForConditionalGeneration:
    torch.manual_seed(seed)
    widths = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2, "vocab_size": VOCABULARY}
    model = T5ForConditionalGeneration(T5Config(**{**widths, "decoder_start_token_id": 0, **options})).eval()
    for name, weight in model.named_parameters():  # T5 draws the head so large that greedy decoding repeats one token
        if name == "shared.weight":
            weight.data *= 0.3
    return model


def make_bart(seed: int = 0) -> BartForConditionalGeneration:
    torch.manual_seed(seed)
    sides = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in
             (("layers", 1), ("attention_heads", 4), ("ffn_dim", 48))}  # fmt: skip
    return BartForConditionalGeneration(
        BartConfig(d_model=32, vocab_size=VOCABULARY, max_position_embeddings=64, init_std=0.2, **sides)
    ).eval()


def make_adapter(base: Path, folder: Path, seed: int, targets=("q", "v"), kind=T5ForConditionalGeneration, **options) -> Path:
    """Save an adapter with random factors for a base model, by peft."""
    torch.manual_seed(seed)
    config = LoraConfig(
        **{"task_type": "SEQ_2_SEQ_LM", "r": 4, "lora_alpha": 8, "target_modules": list(targets), **options},
    )
    model = get_peft_model(kind.from_pretrained(base), config)
    for name, weight in model.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    found = {}
    for path, module in model.named_modules():
        with contextlib.suppress(ValueError):
            found[path] = weight_shape(module)
    return found


def with_deltas(model: torch.nn.Module, deltas) -> torch.nn.Module:
    """Add deltas to a model's weights, in place."""
    for path, delta in deltas.items():
        weight = model.get_submodule(path).weight
        weight.data += delta.dense().to(weight.dtype).reshape(weight.shape)
    return model


def logits(model: torch.nn.Module, seed: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCABULARY, (3, 7), generator=generator)
    targets = torch.randint(2, VOCABULARY, (3, 5), generator=generator)
    with torch.no_grad():
        return model.eval()(input_ids=ids, decoder_input_ids=targets).logits


@pytest.fixture(scope="session")
def tiny():
    """The helpers of this file: with `--import-mode=importlib`, tests cannot import each other."""
    return SimpleNamespace(
        t5=make_t5,
        bart=make_bart,
        adapter=make_adapter,
        shapes=shapes_of,
        with_deltas=with_deltas,
        logits=logits,
        vocabulary=VOCABULARY,
        peft=PeftModel.from_pretrained,
    )


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory) -> Path:
    """A saved tiny T5, and the adapters `one` (q, v) and `two` (q, k, v, o, wi, wo) beside it."""
    folder = tmp_path_factory.mktemp("t5")
    make_t5().save_pretrained(folder / "base")
    make_adapter(folder / "base", folder / "one", 1)
    make_adapter(folder / "base", folder / "two", 2, ("q", "k", "v", "o", "wi", "wo"), r=3, lora_alpha=6)
    return folder


def load(name: str, path: Path):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def tiny_sd():
    """The module `tiny_diffusers.py`: tiny Stable Diffusion models of diffusers."""
    return load("iteris_test_tiny_diffusers", Path(__file__).with_name("tiny_diffusers.py"))


@pytest.fixture(scope="session")
def toy():
    """The core's `toy.py`, for the equation that every layer must solve, dense and naive."""
    return load("iteris_test_toy", Path(__file__).parent.parent / "core" / "toy.py")
