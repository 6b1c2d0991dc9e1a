"""Which file a LoRA on a model comes from."""

import torch
from iteris_pack.nodes.loras.harvest import CarriedLora
from iteris_pack.nodes.stack import file_of
from safetensors.torch import save_file


def test_files_that_have_nothing_to_do_with_a_lora_do_not_hide_its_own(replace_host, tmp_path):
    replace_host(find_lora=lambda name: tmp_path / name)
    tensors = {
        f"diffusion_model.x.lora_{end}.weight": torch.randn(shape).half()
        for end, shape in (("up", (8, 2)), ("down", (2, 8)))
    }
    small = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in tensors.items()}
    save_file(tensors, tmp_path / "own.safetensors")
    save_file(small, tmp_path / "small.safetensors")
    whole = (tmp_path / "own.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-5])
    names = ["cut.safetensors", "small.safetensors"]
    lora = CarriedLora(frozenset(), tensors, {})
    assert file_of(lora, [*names, "own.safetensors"], str) == "own.safetensors"
    assert file_of(lora, names, str) is None
