"""LoRAs taken off a model that carries them."""

from types import SimpleNamespace

import pytest
import torch
from iteris_pack.nodes.loras.harvest import take_off

from iteris_core import IterisError


class Loader:
    def __init__(self, *keys):
        self.keys = set(keys)

    def lora(self, up, down, alpha=None):
        return SimpleNamespace(
            name="lora", loaded_keys=self.keys, weights=(up, down, alpha, None, None, None)
        )


def patch(strength, value, of_weight=1.0):
    return (strength, value, of_weight, None, None)


def bases_of(path, offset, function):
    whole = offset is None and function is None
    return [f"lora_{path.replace('.', '_')}", f"other.{path}"] if whole else []


def take(patches):
    return take_off(patches, lambda weight: weight.startswith("clip"), bases_of)


def test_loras_on_a_model_are_told_apart_by_what_was_loaded_together():
    up = torch.randn(4, 2)
    down = torch.randn(2, 3)
    first, second, again = Loader("a"), Loader("a"), Loader("a")
    merge_of_checkpoints = patch(0.5, [torch.ones(4, 3)])
    of_second = patch(0.5, second.lora(up, down))
    of_clip = [patch(0.3, first.lora(up, down)), patch(1.0, again.lora(2 * up, down))]
    in_a = [merge_of_checkpoints, patch(0.8, first.lora(up, down, 2.0)), of_second]
    patches = {"net.b.weight": [of_second], "net.a.weight": in_a, "clip.q.weight": of_clip}
    loras, rest = take(patches)
    strengths = [{False: 0.8, True: 0.3}, {False: 0.5}, {True: 1.0}]
    assert [lora.strengths for lora in loras] == strengths
    factors = [
        f"lora_{x}.lora_{side}.weight" for x in ("clip_q", "net_a") for side in ("up", "down")
    ]
    assert sorted(loras[0].tensors) == sorted([*factors, "lora_net_a.alpha"])
    assert loras[0].tensors["lora_net_a.alpha"] == 2.0
    assert torch.equal(loras[2].tensors["lora_clip_q.lora_up.weight"], 2 * up)
    assert rest == {"net.a.weight": [merge_of_checkpoints]}


def test_a_difference_belongs_to_the_file_that_names_it():
    up = torch.randn(4, 2)
    down = torch.randn(2, 3)
    bias = torch.randn(4)
    first = Loader("x")
    second = Loader("other.net.a.diff_b")
    patches = {
        "net.a.weight": [patch(1.0, first.lora(up, down)), patch(1.0, second.lora(up, down))],
        "net.a.bias": [patch(1.0, ("diff", (bias,)))],
        "net.z.weight": [patch(1.0, ("diff", (up,)))],
    }
    loras, rest = take(patches)
    assert "lora_net_a.diff_b" not in loras[0].tensors
    assert torch.equal(loras[1].tensors["lora_net_a.diff_b"], bias)
    assert set(rest) == {"net.z.weight"}
    first.keys.add("lora_net_a.b_norm")
    said = r"2 LoRAs on this model change 'net\.a\.bias' by a difference"
    with pytest.raises(IterisError, match=said):
        take(patches)


def test_what_is_no_longer_the_file_is_refused():
    lora = Loader("x").lora(torch.randn(4, 2), torch.randn(2, 3))
    scaled = [patch(1.0, lora), patch(0.5, [torch.ones(4, 3)], of_weight=0.5)]
    cut = [(1.0, lora, 1.0, (0, 1, 2), None)]
    for patches in (scaled, cut):
        with pytest.raises(IterisError, match="scaled or cut by another node after it was loaded"):
            take({"net.a.weight": patches})
    with pytest.raises(IterisError, match=r"has the strengths 1 and 0\.5"):
        take({"net.a.weight": [patch(1.0, lora)], "net.b.weight": [patch(0.5, lora)]})
