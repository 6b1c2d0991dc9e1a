"""What tests of the nodes share: a small model's keys, and a host whose functions can be replaced."""

import pytest
from iteris_pack.nodes import host
from iteris_pack.nodes.keys import model_keys
from torch import nn

from iteris_core.files.families import FAMILIES


@pytest.fixture
def replace_host(monkeypatch):
    """Return a function that replaces functions of `nodes.host` by name until the test ends."""

    def replace(**functions):
        known = {*vars(host), *host._MODULE_OF}
        assert known.issuperset(functions), "nodes.host has no such function"
        for name, function in functions.items():
            # not setattr, which would first load what is there, and that needs a real ComfyUI
            monkeypatch.setitem(vars(host), name, function)

    return replace


@pytest.fixture
def widgets():
    """Return a function that returns a new node's widgets, some of them changed."""

    def of(node, **changed):
        inputs = node.define_schema().inputs
        fresh = {item.id: item.more["default"] for item in inputs if "default" in item.more}
        assert set(changed) <= set(fresh), "the node has no such widget"
        return fresh | changed

    return of


@pytest.fixture
def keys():
    """Return the keys of a small model: two layers in its UNet, two and a norm in its text encoder."""
    modules = {
        "diffusion_model.mid.q": nn.Linear(4, 6),
        "diffusion_model.mid.conv": nn.Conv2d(2, 3, (3, 1)),
        "clip_l.transformer.text_model.q": nn.Linear(3, 3),
        "clip_l.transformer.text_model.norm": nn.LayerNorm(3),
        "clip_l.transformer.text_projection": nn.Linear(3, 3),
    }
    host_keys = {
        "lora_unet_mid_q": "diffusion_model.mid.q.weight",
        "lora_unet_mid_conv": "diffusion_model.mid.conv.weight",
        "diffusion_model.mid.conv.bias": "diffusion_model.mid.conv.bias",
        "lora_te_text_model_q": "clip_l.transformer.text_model.q.weight",
        "lora_te1_text_projection": "clip_l.transformer.text_projection.weight",
        "fused": ("diffusion_model.mid.q.weight", (0, 0, 3)),
    }
    return model_keys(
        FAMILIES["SD1.5"],
        modules,
        host_keys,
        {"mid_block.q.weight": "mid.q.weight", "mid_block.q.bias": "mid.q.bias"},
    )
