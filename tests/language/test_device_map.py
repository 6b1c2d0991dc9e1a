"""Models whose weights accelerate keeps on the host or on disk until a layer is called."""

import accelerate
import pytest
import tiny_language
import torch

from iteris_core import AdapterError, MergeConfig
from iteris_core.devices import device_of
from iteris_core.language.job import AdapterTask
from iteris_core.language.samples import Example
from iteris_core.language.t5 import load_base, merge_t5
from iteris_core.layers import stored_weight
from iteris_core.memory import Room

pytestmark = pytest.mark.slow

# one sample in a call: the calls are in the same layers by turns
PAPER = MergeConfig(ridge="paper")  # reads the weights of the layers


@pytest.fixture(params=["host", "disk"])
def elsewhere(request, tmp_path):
    def put(model):
        if request.param == "host":
            return accelerate.cpu_offload(model, execution_device="cpu")
        folders.append(tmp_path / str(len(folders)))
        return accelerate.disk_offload(model, folders[-1], execution_device="cpu")

    folders = []
    return put


def are_away(model):
    return any(parameter.is_meta for parameter in model.parameters())


def assert_same(found, expected):
    assert set(found) == set(expected)
    for path, delta in expected.items():
        assert torch.equal(found[path].up, delta.up), path
        assert torch.equal(found[path].down, delta.down), path


def test_a_t5_is_merged_to_the_same_bits(t5_folder, elsewhere):
    def merged(base):
        texts = torch.randint(2, 60, (2, 2, 7), generator=torch.Generator().manual_seed(3))
        # the first adapter's own model answers
        samples = [
            [Example(text, target) for text, target in zip(of_task, targets, strict=True)]
            for of_task, targets in zip(texts, ([None, None], texts[0, :, :4]), strict=True)
        ]
        folders = [t5_folder / "one", t5_folder / "two"]
        tasks = [AdapterTask(*task) for task in zip(folders, samples, strict=True)]
        return merge_t5(base, tasks, PAPER, room=Room(1)).adapter.deltas

    expected = merged(load_base(str(t5_folder / "base")))
    base = elsewhere(load_base(str(t5_folder / "base")))
    assert are_away(base)
    assert_same(merged(base), expected)
    assert are_away(base)


def test_the_device_that_runs_is_known_where_no_weight_says_it(elsewhere):
    model = elsewhere(tiny_language.t5())
    assert are_away(model) and device_of(model) == torch.device("cpu")
    assert device_of(torch.nn.Linear(2, 2, device="meta")) == torch.device("meta")


def test_a_weight_that_is_away_is_not_read(elsewhere):
    model = elsewhere(torch.nn.Sequential(torch.nn.Linear(3, 2)))
    with pytest.raises(AdapterError, match=r"'0' depends on the layer's own weight.*device map"):
        stored_weight("0", model[0])
