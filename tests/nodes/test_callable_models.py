"""Models whose layers are not called one by one are refused before anything is measured."""

from types import SimpleNamespace

import pytest
import torch
from iteris_pack.nodes.host.checks import check_callable
from torch import nn

from iteris_core import IterisError


def model(diffusion_model=None, object_patches=None, device="cuda"):
    inner = nn.Module()
    inner.diffusion_model = diffusion_model or nn.Sequential(nn.Linear(2, 2))
    where = SimpleNamespace(type=device)
    return SimpleNamespace(model=inner, object_patches=object_patches or {}, load_device=where)


def compiled():
    return torch.compile(nn.Linear(2, 2), backend="eager")


def test_a_plain_model_is_accepted():
    check_callable(model())
    check_callable(model(object_patches={"a": nn.SiLU()}))


@pytest.mark.parametrize(
    "found",
    [
        lambda: model(nn.Sequential(compiled())),
        lambda: model(object_patches={"diffusion_model.0": compiled()}),
    ],
)
def test_a_compiled_model_is_refused(found):
    with pytest.raises(IterisError, match=r"is compiled .* before the node that compiles it"):
        check_callable(found())


def test_a_model_of_nunchaku_is_refused():
    kind = type("SVDQW4A4Linear", (nn.Module,), {"__module__": "nunchaku.models.linear"})
    with pytest.raises(IterisError, match=r"by Nunchaku \(SVDQW4A4Linear\)"):
        check_callable(model(nn.Sequential(nn.Linear(2, 2), kind())))


def test_a_model_on_directml_is_refused():
    with pytest.raises(IterisError, match=r"DirectML.*start ComfyUI with --cpu"):
        check_callable(model(device="privateuseone"))
