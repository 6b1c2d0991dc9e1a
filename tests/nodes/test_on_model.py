"""What is said about the model that the merge node is given."""

import types

import pytest
from fake_host import use
from iteris_pack.nodes.host.other_nodes import BaseChanges, naming_changes
from iteris_pack.nodes.loras.on_model import notes_on_model

from iteris_core import Adapter, CalibrationError
from iteris_core.diffusion.loaded_loras import LoadedLora
from iteris_core.errors import OutOfMemoryError


def lora_of(*keys):
    return types.SimpleNamespace(name="lora", loaded_keys=set(keys))


def patch(value):
    return (1.0, value, 1.0, None, None)


def notes(patches, changes=None, named=(), guided=True, loras=()):
    changes = changes or BaseChanges()
    return list(notes_on_model(patches, changes, loras, named, is_guided=guided))


def test_loras_that_the_model_carries_are_told():
    lora = lora_of("a")
    patches = {"net.a.weight": [patch(lora)], "net.b.weight": [patch(("diff", ()))]}
    [note] = notes(patches)
    said = "MODEL and CLIP carry 1 LoRA already, which count as part of the base model"
    assert note.text.startswith(said)
    assert notes({}) == []
    other = lora_of("b")
    # in another order at another weight: there is no order of all
    both = {"a": [patch(lora), patch(other)], "b": [patch(other), patch(lora)]}
    [note] = notes(both, named=["x.safetensors", "y.safetensors"])
    said = "MODEL and CLIP carry 2 LoRAs already (from x.safetensors, y.safetensors)"
    assert note.text.startswith(said)


@pytest.mark.parametrize(
    ("name", "is_quick"),
    [
        ("lcm-lora-sdv1-5.safetensors", True),
        ("speed/sdxl_lightning_4step_lora.safetensors", True),
        ("Hyper-SD15-8steps-CFG-lora.safetensors", True),
        ("hyperrealism.safetensors", False),
        ("thunderlightning.safetensors", False),
        ("dmd2_sdxl_4step.safetensors", True),
        ("ink.safetensors", False),
    ],
)
def test_a_lora_that_draws_in_few_steps_wants_no_guidance(name, is_quick):
    patches = {"a": [patch(lora_of("a"))]}
    texts = [note.text for note in notes(patches, named=[name])]
    assert any(f"draws in few steps ({name})" in text for text in texts) == is_quick
    assert len(notes(patches, named=[name], guided=False)) == 1
    assert notes({}, named=[name]) == []  # a node on the way may have taken it off


def test_a_lora_on_the_model_and_in_the_merge_is_a_warning():
    loras = [LoadedLora(use(name, file=f"{name}.safetensors"), Adapter("", {})) for name in "ab"]
    on_model = {"net.a.weight": [patch(lora_of("a"))]}
    [_, note] = notes(on_model, named=["b.safetensors"], loras=loras)
    assert note.kind == "twice"
    assert note.text.startswith("b is in the merge, and by the nodes before it on the MODEL, too")
    assert notes({}, named=["b.safetensors"], loras=loras) == []


@pytest.mark.parametrize(
    ("error", "is_named"), [(CalibrationError, True), (OutOfMemoryError, False)]
)
def test_who_may_have_caused_an_error_is_named(error, is_named):
    def tile(q, k, v, extra): ...

    patched = {"transformer_options": {"patches": {"attn1_patch": [tile]}}}
    model = types.SimpleNamespace(object_patches={}, wrappers={}, injections={})
    model.model_options = patched
    clip = types.SimpleNamespace(layer_idx=None, apply_hooks_to_conds=None)
    with pytest.raises(error) as told, naming_changes(model, clip):
        raise error("it draws something else")
    assert ("(attn1_patch)" in str(told.value)) is is_named
