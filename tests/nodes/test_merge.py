"""What the merge node says about the model that it is given."""

import types

from iteris_pack.iteris_core.devices import Room
from iteris_pack.nodes.merge import carried, too_small


def lora_of(*keys):
    """Return what ComfyUI adds to a model that loads a file with these keys."""
    return types.SimpleNamespace(name="lora", loaded_keys=set(keys))


def patch(value):
    return (1.0, value, 1.0, None, None)


def test_loras_that_the_model_carries_are_told():
    lora = lora_of("a")
    patches = {"net.a.weight": [patch(lora)], "net.b.weight": [patch(("diff", ()))]}
    [note] = carried(patches)
    assert note.text.startswith(
        "MODEL and CLIP carry 1 LoRA already, which count as part of the base model"
    )
    assert carried({}) == []
    other = lora_of("b")
    # in another order at another weight: there is no order of all
    [note] = carried({"a": [patch(lora), patch(other)], "b": [patch(other), patch(lora)]})
    assert note.text.startswith("MODEL and CLIP carry 2 LoRAs already")


def test_a_device_that_is_too_small_is_told_in_the_report_and_the_log(caplog):
    assert too_small(Room(8, 0, 0.0)) == [] and not caplog.records
    [note] = too_small(Room(1, 0, 0.0, missing=1.26e9))
    assert note.kind == "memory" and "about 1.3 GB more than is free" in note.text
    assert "Lower resolution" in note.text
    assert [record.message for record in caplog.records] == [note.text]
