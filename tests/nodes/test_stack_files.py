"""Which file a LoRA on a model comes from."""

import torch
from iteris_pack.nodes.loras.harvest import CarriedLora
from iteris_pack.nodes.stack import carried_lora, files_of
from safetensors.torch import save_file


def test_files_that_have_nothing_to_do_with_a_lora_do_not_hide_its_own(replace_host, tmp_path):
    replace_host(find_lora=lambda name: tmp_path / name, heed_cancel=lambda: None)
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
    assert files_of([lora], [*names, "own.safetensors"], str) == [("own.safetensors", True)]
    assert files_of([lora], names, str) == [(None, True)]


def test_a_part_that_a_file_does_not_have_is_told_at_the_strength_of_the_other(
    replace_host, tmp_path
):
    """A loader sets both strengths; only a part that was left in the file has none."""
    folder = dict.fromkeys(("find_lora", "lora_path"), tmp_path.joinpath)
    replace_host(heed_cancel=lambda: None, **folder)
    sides = {"lora_unet_x.lora_up.weight": torch.ones(8, 2)}
    text = {"lora_te_x.lora_up.weight": torch.ones(8, 2)}
    save_file(sides, tmp_path / "alone.safetensors")
    save_file(sides | text, tmp_path / "both.safetensors")
    lora = CarriedLora(frozenset(), sides, {False: 0.8})
    for names, clip in ((["alone.safetensors"], 0.8), (["both.safetensors"], 0.0), ([], 0.8)):
        ((file, is_whole),) = files_of([lora], names, str)
        use = carried_lora(lora, file, is_whole, "robot", ("a robot",)).use
        assert (use.strength_model, use.strength_clip) == (0.8, clip)
