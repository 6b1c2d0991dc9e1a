"""The files of the demo, and the workflow that it makes of a request."""

import torch
from safetensors.torch import load_file

from demo import drawn, parts
from demo.run import (
    WEIGHTS,
)


def test_a_saved_file_is_read_as_what_it_was_made_of(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "single": torch.randn(3, 5, generator=generator),
        "half": torch.randn(7, generator=generator).half(),
        "eighth": torch.randn(2, 3, generator=generator).to(torch.float8_e5m2),
        "scalar": torch.tensor(2.5),
        "empty": torch.tensor([]),
    }
    hole = torch.empty((300, 400), dtype=torch.float16, device="meta")
    path = tmp_path / "folder" / "file.safetensors"
    parts.save(path, tensors | {"hole": hole, "last": hole[0]}, {"format": "pt"})
    read = load_file(path)
    assert set(read) == {*tensors, "hole", "last"}
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape
        assert torch.equal(read[name].float(), tensor.float())
    assert torch.equal(read["hole"], torch.zeros(300, 400, dtype=torch.float16))
    assert torch.equal(read["last"], torch.zeros(400, dtype=torch.float16))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_weights_in_8_bit_are_read_within_half_a_step():
    generator = torch.Generator().manual_seed(0)
    weights = {
        "conv.weight": torch.randn(7, 5, 3, 3, generator=generator),
        "linear.weight": torch.randn(4, 6, generator=generator) * 1e-3,
        "norm.weight": torch.randn(5, generator=generator),
    }
    read = dict(drawn.from_8_bit(drawn.in_8_bit(weights)))
    assert read.keys() == weights.keys()
    for name, tensor in weights.items():
        largest = tensor.abs().flatten(1).amax(1) if tensor.ndim > 1 else tensor.abs().amax()
        step = (largest / 127).view(-1, *[1] * (tensor.ndim - 1))
        assert ((read[name].float() - tensor).abs() <= 0.51 * step + 1e-3 * tensor.abs()).all()


def test_the_trained_checkpoint_is_whole(tmp_path):
    weights = WEIGHTS
    path = tmp_path / "drawn.safetensors"
    drawn.write_checkpoint(path, weights)
    tensors = load_file(path)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    modules = {key.split(".")[0] for name in drawn.LORAS for key in load_file(weights / name)}
    known = {
        f"lora_unet_{name.replace(block, module).removesuffix('.weight').replace('.', '_')}"
        for block, module in drawn.TRANSFORMERS.items()
        for name, _ in drawn.unet_shapes()
        if name.startswith(f"{block}.")
    }
    assert modules < known
    assert sum(file.stat().st_size for file in weights.iterdir()) < 40e6
