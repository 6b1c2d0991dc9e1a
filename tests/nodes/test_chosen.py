"""The LoRAs of a merge, from all of its sockets: known by their content, and read once."""

import types

import pytest
import torch
from fake_host import use
from iteris_pack.nodes.loras.chosen import identified, load, read_again
from iteris_pack.nodes.sockets import ChosenLora, MergedLora
from safetensors.torch import save_file

from iteris_core import Adapter, AdapterError
from iteris_core.diffusion.loaded_loras import LoadedLora


def test_each_lora_is_read_once_from_where_it_is(replace_host, tmp_path):
    replace_host(lora_path=lambda name: tmp_path / name)
    save_file({"w": torch.ones(3)}, tmp_path / "cat.safetensors", {"a": "b"})
    asked = []

    def adapter(used, tensors, metadata):
        asked.append((used.name, used.strength_model, len(tensors["w"]), metadata))
        return Adapter("", {})

    proved = []
    base = types.SimpleNamespace(
        adapter=adapter, prove_reading=lambda used, *_: proved.append(used.name)
    )
    cat = ChosenLora(use("cat", file="cat.safetensors", strength_model=0.5))
    trained = ChosenLora(use("trained"), {"w": torch.ones(2)})
    idle = ChosenLora(use("idle", strength_model=0.0, strength_clip=0.0), {"w": torch.ones(1)})
    loras, notes = load(base, *identified([cat, trained, cat, idle]))
    assert asked[:2] == [("cat", 1.0, 3, {"a": "b"}), ("trained", 1.0, 2, {})]
    assert [lora.use.name for lora in loras] == ["cat", "trained", "idle"]
    assert proved == ["cat", "trained"]
    assert [note.kind for note in notes] == ["repeated"]


def test_a_comparison_reads_the_file_that_was_merged_and_no_other(replace_host, tmp_path):
    path = tmp_path / "cat.safetensors"
    replace_host(lora_path=lambda name: path)
    save_file({"w": torch.ones(3)}, path)
    base = types.SimpleNamespace(adapter=lambda used, tensors, _: Adapter(f"{len(tensors)}", {}))
    [used], _ = identified([ChosenLora(use("cat", file="cat.safetensors"))])
    loras = (LoadedLora(used, Adapter("", {})),)
    merged = MergedLora(Adapter("merged", {}), None, "{}", loras, loose={})
    assert [adapter.name for adapter in read_again(base, merged)] == ["1"]
    save_file({"w": torch.zeros(3)}, path)
    with pytest.raises(AdapterError, match="is another file than the one that was merged"):
        read_again(base, merged)


@pytest.mark.parametrize("cancel_at", [1, 2, 3, 4])
def test_cancel_is_heard_before_each_file_is_hashed_and_before_each_is_read(
    replace_host, tmp_path, cancel_at
):
    class Cancelled(Exception):
        pass

    asked = []

    def heed_cancel():
        asked.append(1)
        if len(asked) == cancel_at:
            raise Cancelled

    for name in "ab":
        save_file({name: torch.ones(1)}, tmp_path / f"{name}.safetensors")
    replace_host(lora_path=lambda name: tmp_path / name, heed_cancel=heed_cancel)
    base = types.SimpleNamespace(prove_reading=lambda *args: None)
    base.adapter = lambda use, tensors, metadata: Adapter(use.name, {})
    chosen = [ChosenLora(use(name, file=f"{name}.safetensors")) for name in "ab"]
    with pytest.raises(Cancelled):
        load(base, *identified(chosen))
