"""Which PEFT adapters cannot be merged, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What changes the meaning of the factors, or adds weights beside them: setting -> what it is and
# what to do.
_REFUSED = {
    "modules_to_save": "trained with whole modules beside its LoRA (modules_to_save), "
    "which the merge would lose. Train it without",
    "trainable_token_indices": "trained with token embeddings of its own "
    "(trainable_token_indices). Train it without",
    "target_parameters": "a LoRA on bare parameters (target_parameters); only those on whole "
    "layers can be merged",
    "layer_replication": "for a model with replicated layers (layer_replication); its layers are "
    "not those of the base model",
    "megatron_config": "a Megatron adapter, whose factors are spread over devices. Export it as a "
    "plain LoRA",
    "alora_invocation_tokens": "an aLoRA, active only behind its invocation tokens. Train a plain "
    "LoRA",
    "use_qalora": "a QALoRA, whose factors act on pooled inputs. Train a plain LoRA",
    "use_bdlora": "a block-diagonal LoRA. Train a plain LoRA",
    "arrow_config": "a router over other adapters. Give those adapters themselves",
    "kasa_config": "a KaSA adapter, which has singular values of its own. Train a plain LoRA",
    "monteclora_config": "a MonteCLoRA, which draws its factors at random. Train a plain LoRA",
}
# initialisations that take something out of the base weights, so that the factors do not fit the
# original base
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def refusal(settings: Mapping[str, Any]) -> str | None:
    """Return what an adapter is that cannot be merged, and what to do; None if nothing speaks
    against it.
    """
    kind = settings.get("peft_type")
    if kind != "LORA":
        return f"of PEFT's kind {kind!r}; only LORA can be merged"
    for setting, problem in _REFUSED.items():
        if settings.get(setting):
            return problem
    start = str(settings.get("init_lora_weights") or "").lower()
    if start.startswith(_CHANGES_BASE):
        return (
            f"a LoRA that began as {start!r} and was saved without conversion, so that it fits only "
            "the changed base model of its training run. Save it with save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...)"
        )
    return None


def meaning_of(key: str) -> str:
    """Return what a tensor is that is no factor of a LoRA, and what to do."""
    if "lora_embedding_" in key:
        return "changes an embedding; only Linear and Conv2d layers can be merged. Train the adapter without embeddings"
    if key.endswith(".base_layer.weight"):
        return (
            "is a copy of the base model's weight, which PEFT adds for heads and embeddings. Save "
            "the adapter again with save_pretrained(..., save_embedding_layers=False)"
        )
    if key.endswith(".bias"):
        return "is a trained bias, which the merge would lose. Train the adapter with bias='none' and lora_bias=false"
    return "is no factor of a LoRA, and the merge would lose it. Train the adapter without modules_to_save"
