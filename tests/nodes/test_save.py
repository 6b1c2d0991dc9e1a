"""Saving a merged LoRA: a draft that replaces nothing until it is known to be good."""

from pathlib import Path

import pytest
import torch
from iteris_pack.nodes.save import draft_of, read_back
from iteris_pack.nodes.sockets import MergedLora

from iteris_core import Adapter, IterisError, LowRankDelta


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_bad_file_does_not_replace_a_good_one(tmp_path, overwrite):
    path = tmp_path / "a.safetensors"
    if overwrite:
        path.write_text("good")
    with pytest.raises(IterisError), draft_of(path, overwrite) as draft:
        draft.write_text("bad")
        raise IterisError("it did not turn out well")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["good"] * overwrite
    with draft_of(path, overwrite) as draft:
        draft.write_text("better")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["better"]


@pytest.fixture
def merged(keys):
    adapter = Adapter(
        "merged",
        {
            "diffusion_model.mid.q": LowRankDelta(torch.randn(6, 2), torch.randn(2, 4)),
            "diffusion_model.mid.conv": LowRankDelta(torch.randn(3, 2), torch.randn(2, 6)),
        },
        vectors={"clip_l.transformer.text_model.q.bias": torch.randn(3)},
    )
    return MergedLora(adapter, keys, "{}")


def loader_of(merged, change=lambda parameter, value: value):
    """Return what the host's loader would, from what was meant."""
    meant = {
        f"{path}.weight": delta.dense() for path, delta in merged.adapter.deltas.items()
    } | dict(merged.adapter.vectors)
    return lambda path, keys: (
        lambda parameter, shape: change(parameter, meant[parameter].reshape(shape))
    )


def test_a_whole_file_is_read_back(replace_host, merged):
    replace_host(stock_loader=loader_of(merged))
    text = read_back(Path("draft.safetensors"), merged, "x.safetensors")
    assert text == "read back: 2 of 2 modules, 1 biases and norms, largest difference 0"


@pytest.mark.parametrize(
    "change",
    [lambda value: None, lambda value: value * 1.1, lambda value: value * float("nan")],
    ids=["missing", "larger", "NaN"],
)
@pytest.mark.parametrize(
    "lost", ["diffusion_model.mid.conv.weight", "clip_l.transformer.text_model.q.bias"]
)
def test_a_file_that_lost_something_is_an_error(replace_host, merged, lost, change):
    replace_host(
        stock_loader=loader_of(
            merged, lambda parameter, value: change(value) if parameter == lost else value
        )
    )
    with pytest.raises(
        IterisError,
        match=rf"x\.safetensors: read back .* 1 of 3 weights are missing or differ, such as '{lost}'",
    ):
        read_back(Path("draft.safetensors"), merged, "x.safetensors")
