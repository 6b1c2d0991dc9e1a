"""Tiny random T5, BART and BLIP, made by transformers, which is imported when one is made."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from iteris_core.layers import weight_shape

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import (
        BartForConditionalGeneration,
        BlipForConditionalGeneration,
        BlipProcessor,
        PreTrainedTokenizerFast,
        T5ForConditionalGeneration,
    )

VOCABULARY = 60
BLIP_WORDS = ["[PAD]", "[UNK]", "[SEP]", "[DEC]", "[CLS]", "[MASK]", *(f"w{i}" for i in range(44))]


def t5(seed: int = 0, **options) -> T5ForConditionalGeneration:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    widths = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2}
    widths |= {"vocab_size": VOCABULARY, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(**widths | options)).eval()
    for name, weight in model.named_parameters():
        if name == "shared.weight":  # drawn so large that greedy decoding repeats one token
            weight.data *= 0.3
    return model


def bart() -> BartForConditionalGeneration:
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    sides = {
        f"{side}_{name}": size
        for side in ("encoder", "decoder")
        for name, size in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 48))
    }
    return BartForConditionalGeneration(
        BartConfig(
            d_model=32, vocab_size=VOCABULARY, max_position_embeddings=64, init_std=0.2, **sides
        )
    ).eval()


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer for `t5`, whose words are w0 to w56."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(VOCABULARY - 3))]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def blip() -> BlipForConditionalGeneration:
    """Return a BLIP for pictures of 16 x 16."""
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipTextConfig,
        BlipVisionConfig,
    )

    torch.manual_seed(0)
    both = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    both |= {"num_attention_heads": 4, "projection_dim": 16, "initializer_range": 0.2}
    of_text = {"vocab_size": len(BLIP_WORDS), "max_position_embeddings": 40, "bos_token_id": 3}
    of_text |= {"sep_token_id": 2, "pad_token_id": 0, "eos_token_id": 2, "encoder_hidden_size": 32}
    parts = {
        "text_config": BlipTextConfig(**both, **of_text).to_dict(),
        "vision_config": BlipVisionConfig(**both, image_size=16, patch_size=4).to_dict(),
    }
    config = BlipConfig(**parts, projection_dim=16, image_text_hidden_size=16)
    return BlipForConditionalGeneration(config).eval()


def blip_processor() -> BlipProcessor:
    """Return a processor for `blip`, whose words are `BLIP_WORDS`."""
    from transformers import BertTokenizerFast, BlipImageProcessor, BlipProcessor

    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(BLIP_WORDS)})
    return BlipProcessor(BlipImageProcessor(size={"height": 16, "width": 16}), tokenizer)


def adapter(
    base: Path, folder: Path, seed: int, targets=("q", "v"), kind: Any = None, **options
) -> Path:
    """Save an adapter with random factors for a base model, a T5 if no other kind is given, by peft."""
    from peft import LoraConfig, get_peft_model
    from transformers import T5ForConditionalGeneration

    torch.manual_seed(seed)
    plain = {"task_type": "SEQ_2_SEQ_LM", "r": 4, "lora_alpha": 8}
    config = LoraConfig(**{**plain, "target_modules": list(targets), **options})
    model = get_peft_model((kind or T5ForConditionalGeneration).from_pretrained(base), config)
    for name, weight in model.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    found = {}
    for path, module in model.named_modules():
        with contextlib.suppress(ValueError):
            found[path] = weight_shape(module)
    return found


def with_deltas(model: torch.nn.Module, deltas) -> torch.nn.Module:
    for path, delta in deltas.items():
        weight = model.get_submodule(path).weight
        weight.data += delta.dense().to(weight.dtype).reshape(weight.shape)
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(2, VOCABULARY, (3, 7), generator=generator)
    targets = torch.randint(2, VOCABULARY, (3, 5), generator=generator)
    with torch.no_grad():
        return model.eval()(input_ids=ids, decoder_input_ids=targets).logits


def peft(model: torch.nn.Module, folder: Path) -> PeftModel:
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder)
