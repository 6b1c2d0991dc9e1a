"""The proof before a merge and after it, on hosts that put LoRAs on models in their own way."""

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from fake_host import FakeHost

from iteris_core import (
    Adapter,
    AdapterError,
    CalibrationError,
    LowRankDelta,
    Network,
    SolveError,
)
from iteris_core.diffusion import merging, small_pictures, stages
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.merging import merge_loras
from iteris_core.diffusion.model import PatchedWeight
from iteris_core.diffusion.proof import notes_of_rounding, prove_loras, prove_merged, prove_reading
from iteris_core.rows import wearing

CALIBRATION = Calibration(trajectories=2, timesteps=2, sampling_steps=4, resolution=64, cfg=3.0)


class LoadingHost(FakeHost):
    """A host that reads adapters, and patches weights, in its own way."""

    def __init__(self, read=lambda adapter: adapter, patch=lambda weight: weight):
        super().__init__()
        self.read = read
        self.patch = patch

    @property
    def loader(self):
        return self

    def with_adapter(self, adapter):
        host = self.patched(self.read(adapter))
        for path in adapter.deltas:
            weight = host.module(path).weight
            weight.copy_(self.patch(weight))
        return host

    def weights_with(self, adapter):
        for path, delta in self.read(adapter).deltas.items():
            before = self.module(path).weight.flatten(1).float()
            yield PatchedWeight(path, before, before + delta.dense().float())


def doubled_at(path):
    return lambda adapter: replace(
        adapter, deltas={p: d.scaled(2.0) if p == path else d for p, d in adapter.deltas.items()}
    )


@pytest.fixture
def strong_hooks(monkeypatch):
    add = wearing.add_to_output
    monkeypatch.setattr(
        wearing, "add_to_output", lambda module, y, c, up: add(module, y, c, 1.5 * up)
    )


@pytest.fixture
def coarse_weights(monkeypatch):
    monkeypatch.setattr(small_pictures, "is_quantised", lambda module: True)


def merged(host, loras, heard=None, **settings):
    def listen(stage, done, total):
        if heard is not None:
            heard.append((stage.name, done, total))

    config = settings.pop("config", host.EXACT)
    return merge_loras(Job.of(host, loras, CALIBRATION, MergeSettings(config, **settings)), listen)


def host_notes(result):
    return [note.text for note in result.report.notes if note.kind == "host"]


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


def test_where_the_host_has_no_loader_nothing_is_proved(host):
    lora = host.lora("a")
    assert prove_loras(host, [lora], CALIBRATION) == {}
    assert prove_merged(host, lora.adapter, lora, CALIBRATION) == {}
    assert host.unet_batches == []


def test_a_host_that_does_the_same_is_proved_in_a_stage_of_its_own_with_nothing_said():
    host = LoadingHost()
    loras = [host.lora("a"), host.lora("b", prompts=("<y> dog",)), host.lora("idle", strength=0.0)]
    heard = []
    result = merged(host, loras, heard)
    assert heard[0] == (stages.PROOF, 1, 1)
    assert heard[1][0] != stages.PROOF
    assert host_notes(result) == []


def test_rows_that_wear_something_else_are_an_error(strong_hooks):
    host = LoadingHost()
    lora = host.lora("a", strength=0.3)
    said = r"^a: its rows do not draw .* both read its file alike"
    with pytest.raises(CalibrationError, match=said):
        prove_loras(host, [lora], CALIBRATION)
    said = r"does not draw .* which rounding does not explain\. Another node probably"
    with pytest.raises(SolveError, match=said):
        prove_merged(host, lora.adapter, lora, CALIBRATION)


@pytest.mark.parametrize("path", ["te.out", "unet.q"])
def test_a_model_that_does_not_carry_what_was_solved_is_a_warning(path, coarse_weights):
    """However coarse its weights are."""
    host = LoadingHost()
    loras = [host.lora("a"), host.lora("b")]
    prove_loras(host, loras, CALIBRATION)
    host.read = doubled_at(path)
    with pytest.raises(SolveError, match="does not carry the merged LoRA"):
        prove_merged(host, loras[0].adapter, loras[0], CALIBRATION)
    result = merged(host, loras)
    [said] = [line for line in result.report.warnings if "is not proved" in line]
    assert f"does not carry the merged LoRA that was solved: they differ at '{path}'" in said
    host.read = lambda adapter: adapter
    expected = merged(host, loras)
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


@pytest.mark.parametrize("computed_in", [torch.float32, torch.bfloat16])
def test_a_weight_that_is_cast_before_it_is_patched_counts_as_rounded(computed_in):
    """As ComfyUI 0.33 keeps a float32 file on a GPU."""
    layer = torch.nn.Linear(6, 6).requires_grad_(False)
    cast = [part.to(computed_in) for part in (layer.weight, layer.bias)]
    layer.forward = lambda x: torch.nn.functional.linear(x, *cast)
    network = Network({"layer": layer}, layer)
    adapter = Adapter("a", {"layer": LowRankDelta(torch.randn(6, 2), torch.randn(2, 6))})
    with small_pictures._watched(network, adapter, 1) as seen:
        network.forward(torch.randn(1, 3, 6, dtype=computed_in))
    assert not seen.missed
    assert seen.is_exact == (computed_in == torch.float32)


def test_a_lora_without_an_effect_is_passed_over():
    host = LoadingHost()
    lora = host.lora("a")
    nothing = {path: d.scaled(0.0) for path, d in lora.adapter.deltas.items()}
    found = prove_loras(host, [replace(lora, adapter=Adapter("a", nothing))], CALIBRATION)
    assert found == {"a": 0.0} and notes_of_rounding(found) == []


def test_a_lora_whose_effect_is_not_finite_is_named():
    host = LoadingHost()
    lora = host.lora("b")
    delta = lora.adapter.deltas["unet.outlet"]
    broken = changed(lora.adapter, "unet.outlet", delta.scaled(torch.inf))
    said = r"b: the model's picture is finite without this LoRA, but not with it"
    with pytest.raises(AdapterError, match=said):
        prove_loras(host, [host.lora("a"), replace(lora, adapter=broken)], CALIBRATION)
    host.u.outlet.weight.fill_(torch.inf)
    with pytest.raises(CalibrationError, match="the base model's own picture is not finite"):
        prove_loras(host, [lora], CALIBRATION)
