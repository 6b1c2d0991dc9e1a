"""The proof before a merge and after it, on hosts that put LoRAs on models in their own way."""

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from fake_host import FakeHost

from iteris_core import (
    AdapterError,
    CalibrationError,
    LowRankDelta,
    SolveError,
)
from iteris_core.diffusion import merging, stages
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.merging import merge_loras
from iteris_core.diffusion.model import PatchedWeight
from iteris_core.diffusion.proof import check_called, prove_merged, prove_reading

CALIBRATION = Calibration(trajectories=4, sampling_steps=4, resolution=64, cfg=3.0)


class LoadingHost(FakeHost):
    """A host that reads adapters in its own way."""

    def __init__(self, read=lambda adapter: adapter):
        super().__init__()
        self.read = read

    @property
    def loader(self):
        return self

    def weights_with(self, adapter):
        for path, delta in self.read(adapter).deltas.items():
            before = self.module(path).weight.flatten(1).float()
            yield PatchedWeight(path, before, before + delta.dense().float())


def doubled_at(path):
    return lambda adapter: replace(
        adapter, deltas={p: d.scaled(2.0) if p == path else d for p, d in adapter.deltas.items()}
    )


def merged(host, loras, heard=None, **settings):
    def listen(stage, done, total):
        if heard is not None:
            heard.append((stage.name, done, total))

    config = settings.pop("config", host.EXACT)
    return merge_loras(Job.of(host, loras, CALIBRATION, MergeSettings(config, **settings)), listen)


def changed(adapter, path, delta):
    deltas = {p: d for p, d in adapter.deltas.items() if p != path}
    return replace(adapter, deltas=deltas if delta is None else {**deltas, path: delta})


def weights_of(adapter, *, scale=1.0):
    """Yield weights that a host changes as an adapter says, each `scale` times its size."""
    generator = torch.Generator().manual_seed(1)
    for path, delta in adapter.deltas.items():
        before = scale * torch.randn(delta.shape, generator=generator)
        yield PatchedWeight(path, before, before + delta.dense().float())


def test_a_lora_that_is_read_alike_is_passed():
    adapter = replace(FakeHost().lora("a").adapter, name="a")
    prove_reading(adapter, weights_of(adapter))
    nothing = LowRankDelta(torch.zeros(6, 2).double(), torch.zeros(2, 6).double())
    prove_reading(changed(adapter, "unet.q", nothing), weights_of(changed(adapter, "unet.q", None)))
    # of a change that float32 can hardly add to the weight, it says nothing
    prove_reading(adapter.scaled(1e-6), weights_of(adapter.scaled(1e-6), scale=100.0))


def in_another_order(delta):
    return LowRankDelta(delta.up.roll(1, 0), delta.down)


def of_another_part(delta):
    up = delta.up.clone()
    up[:2] *= 2
    return LowRankDelta(up, delta.down)


SCALED = [lambda delta, by=by: delta.scaled(by) for by in (1.02, -1.0, float("nan"))]


@pytest.mark.parametrize("change", [*SCALED, lambda delta: None, in_another_order, of_another_part])
def test_another_change_of_one_layer_names_it(change):
    path = "unet.q"
    adapter = FakeHost().lora("a", unmatched=("strange.key",)).adapter
    other = changed(adapter, path, change(adapter.deltas[path]))
    for ours, theirs in ((adapter, other), (other, adapter)):
        with pytest.raises(AdapterError) as error:
            prove_reading(ours, weights_of(theirs))
        assert str(error.value).startswith(
            f"a: ComfyUI's own loader makes another change of it than IterIS at {path!r}, by "
        )
        assert "1 keys of its file were not read, such as 'strange.key'" in str(error.value)


def test_a_weight_of_another_shape_and_the_worst_of_several_layers_are_named():
    adapter = FakeHost().lora("a").adapter
    weights = [
        replace(weight, after=weight.after[:, :2]) if weight.path == "unet.v" else weight
        for weight in weights_of(changed(adapter, "te.q", None))
    ]
    with pytest.raises(AdapterError, match=r"at 2 layers, most of all at 'unet.v', by inf%"):
        prove_reading(adapter, weights)


def test_where_the_host_has_no_loader_nothing_is_checked(host):
    loras = [host.lora("a")]
    heard = []
    report = merged(host, loras, heard).report
    assert stages.CHECK not in {name for name, *_ in heard}
    assert "unproved" not in {note.kind for note in report.notes}


def test_a_model_that_calls_all_layers_is_checked_in_a_stage_of_its_own():
    host = LoadingHost()
    loras = [host.lora("a"), host.lora("b", prompts=("<y> dog",)), host.lora("idle", strength=0.0)]
    heard = []
    check_called(host, [lora for lora in loras if lora.use.strength_model], CALIBRATION)
    assert len(host.unet_batches) == 1 and host.hooks() == 0
    merged(host, loras, heard)
    assert heard[0] == (stages.CHECK, 1, 1)
    assert heard[1][0] != stages.CHECK


@pytest.mark.parametrize("path", ["te.q", "unet.q"])
def test_a_layer_that_the_model_does_not_call_is_named_with_its_lora(path, monkeypatch):
    host = LoadingHost()
    first, second = host.lora("a"), host.lora("b")
    first = replace(first, adapter=changed(first.adapter, path, None))
    layer = host.module(path)
    part, name = {"te": host.te, "unet": host.u}[path.partition(".")[0]], path.partition(".")[2]
    monkeypatch.setattr(type(part), name, property(lambda _: layer.forward), raising=False)
    modules = {p: m for p, m in part.named_modules() if p}
    assert modules[name] is layer  # it is there, and its hooks are passed over
    check_called(host, [first], CALIBRATION)
    said = f"^b: only a part .* does not call 1 of its layers, such as '{path}'"
    with pytest.raises(AdapterError, match=said):
        check_called(host, [first, second], CALIBRATION)


def test_a_base_model_whose_picture_is_not_finite_is_refused():
    host = LoadingHost()
    host.u.outlet.weight.fill_(torch.inf)
    with pytest.raises(CalibrationError, match="the base model's own picture is not finite"):
        check_called(host, [host.lora("b")], CALIBRATION)


@pytest.mark.parametrize("path", ["te.out", "unet.q"])
def test_a_model_that_does_not_carry_what_was_solved_is_a_warning(path):
    host = LoadingHost()
    loras = [host.lora("a"), host.lora("b")]
    expected = merged(host, loras)
    prove_merged(host, loras[0].adapter)
    host.read = doubled_at(path)
    with pytest.raises(SolveError, match="does not carry the merged LoRA"):
        prove_merged(host, loras[0].adapter)
    result = merged(host, loras)
    [said] = [line for line in result.report.warnings if "is not proved" in line]
    assert f"does not carry the merged LoRA that was solved: they differ at '{path}'" in said
    assert host.largest_error(result.adapter, expected.adapter) == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("full"), "memory ran out"),
        (RuntimeError("a patch failed"), "a patch failed"),
        (AdapterError("not finite"), "not finite"),
    ],
)
def test_a_merge_stays_where_its_proof_cannot_be_made(error, said, monkeypatch):
    monkeypatch.setattr(merging, "prove_merged", Mock(side_effect=error))
    host = LoadingHost()
    report = merged(host, [host.lora("a"), host.lora("b")]).report
    assert report.layers
    assert report.warnings[-1] == f"What ComfyUI draws with this merge is not proved: {said}"


def test_cancelling_what_follows_a_merge_is_no_warning(monkeypatch):
    class Cancelled(Exception):
        pass

    monkeypatch.setattr(merging, "prove_merged", Mock(side_effect=Cancelled))
    host = LoadingHost()
    with pytest.raises(Cancelled):
        merged(host, [host.lora("a"), host.lora("b")])
