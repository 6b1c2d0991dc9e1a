"""The proof before a merge and after it, on hosts that load LoRAs in their own way."""

import copy
import itertools
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from fake_host import FakeHost, as_used

from iteris_core import (
    Adapter,
    AdapterError,
    CalibrationError,
    LowRankDelta,
    MergeConfig,
    SolveError,
)
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.merging import merge_and_check
from iteris_core.diffusion.model import PROOF_STAGE
from iteris_core.diffusion.proof import Proof, prove_loras, prove_merged
from iteris_core.rows import wearing

CALIBRATION = Calibration(
    trajectories=2, timesteps=2, sampling_steps=4, resolution=64, cfg=3.0, held_out=1
)


class LoadingHost(FakeHost):
    """A host with a loader of its own, which reads and patches as it is told.

    Args:
        read: Adapter of a LoRA -> what the loader makes of its file.
        patch: Weight with a change added -> what the host keeps of it.
    """

    def __init__(self, read=lambda adapter: adapter, patch=lambda weight: weight):
        super().__init__()
        self.read = read
        self.patch = patch
        self.loaded = []
        self.patched_with = []

    @property
    def loader(self):
        return self

    def with_file(self, lora):
        self.loaded.append(lora.use.name)
        return self._with(self.read(lora.adapter))

    def with_adapter(self, adapter):
        self.patched_with.append(adapter)
        return self._with(adapter)

    def _with(self, adapter):
        host = self.patched(adapter)
        for path in adapter.deltas:
            weight = host.module(path).weight
            weight.copy_(self.patch(weight))
        return host


def doubled_at(path):
    """Return a reader that takes one layer twice as strong."""
    return lambda adapter: replace(
        adapter,
        deltas={p: d.scaled(2.0) if p == path else d for p, d in adapter.deltas.items()},
    )


def rounded(weight):
    return (weight * 16).round() / 16


@pytest.fixture
def strong_hooks(monkeypatch):
    """Rows that wear one and a half times what they should."""
    add = wearing.add_to_output
    monkeypatch.setattr(
        wearing, "add_to_output", lambda module, y, c, up: add(module, y, c, 1.5 * up)
    )


def merged(host, loras, heard=None, **settings):
    def listen(stage, done, total):
        if heard is not None:
            heard.append((stage.name, done, total))

    config = settings.pop("config", host.EXACT)
    return merge_and_check(
        Job.of(host, loras, CALIBRATION, MergeSettings(config, **settings)), listen
    )


def host_notes(result):
    return [note.text for note in result.report.notes if note.kind == "host"]


def test_where_the_host_has_no_loader_nothing_is_proved(host):
    loras = [host.lora("a")]
    stages = Job.of(host, loras, CALIBRATION).stages
    assert PROOF_STAGE not in [stage.name for stage in stages]
    assert prove_loras(host, loras, CALIBRATION).rounded == {}
    assert host.unet_batches == []


def test_a_lora_that_is_read_alike_is_proved_in_a_stage_of_its_own_with_nothing_said():
    host = LoadingHost()
    loras = [host.lora("a"), host.lora("b", prompts=("<y> dog",)), host.lora("idle", strength=0.0)]
    heard = []
    result = merged(host, loras, heard)
    assert heard[:2] == [(PROOF_STAGE, 1, 2), (PROOF_STAGE, 2, 2)]
    assert heard[2][0] != PROOF_STAGE
    assert host.loaded == ["a", "b"]
    assert host_notes(result) == []
    assert host.patched_with == [result.adapter]  # a LoRA would be patched only where it differs


def test_each_lora_is_proved_on_its_own_first_prompt():
    host = LoadingHost()
    loras = [host.lora("a", prompts=("<x> cat", "other")), host.lora("b", prompts=("<y> dog",))]
    prove_loras(host, loras, CALIBRATION)
    [first, second, *worn] = [row for batch in host.unet_batches for row in batch]
    assert host.is_close(first.prompt.tokens, host.context("<x> cat", len(first.prompt.tokens)))
    assert host.is_close(second.prompt.tokens, host.context("<y> dog", len(second.prompt.tokens)))
    assert all(torch.equal(row.latents, first.latents) for row in [second, *worn])
    assert host.hooks() == 0 and host.open == []


@pytest.mark.parametrize("path", ["te.q", "te.out", "unet.inlet", "unet.v"])
@pytest.mark.parametrize("config", [FakeHost.EXACT, MergeConfig(method="sum", unit_gain=1.0)])
def test_a_lora_that_is_read_otherwise_stops_the_merge_before_any_work(path, config):
    host = LoadingHost(read=lambda adapter: wrong(adapter) if adapter.name == "b" else adapter)
    wrong = doubled_at(path)
    heard = []
    with pytest.raises(AdapterError, match=r"^b: .* differ by \d+% of what .*'<y> dog'.* order"):
        merged(host, [host.lora("a"), host.lora("b", prompts=("<y> dog",))], heard, config=config)
    assert heard == [(PROOF_STAGE, 1, 2)]


def test_a_host_that_rounds_is_noted_and_not_refused():
    host = LoadingHost(patch=rounded)
    loras = [host.lora("a"), host.lora("b")]
    result = merged(host, loras)
    [note] = host_notes(result)
    assert "a by" in note and "b by" in note and "the merged LoRA by" in note
    shares = prove_loras(host, loras, CALIBRATION).rounded
    assert all(f"{name} by {share:.0%} of its effect" in note for name, share in shares.items())


@pytest.mark.parametrize("strength", [0.05, 0.3, 1.0])
def test_rounding_is_told_from_a_fault_at_every_strength(strength):
    host = LoadingHost(patch=rounded)
    lora = host.lora("a", strength=strength)
    proof = prove_loras(host, [lora], CALIBRATION)
    assert proof.rounded["a"] > 0.1
    both = prove_merged(host, lora.adapter, lora, CALIBRATION, proof)
    assert both.rounded == {"a": proof.rounded["a"], "the merged LoRA": proof.rounded["a"]}


@pytest.mark.parametrize("strength", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("patch", [lambda weight: weight, rounded], ids=["exact", "rounded"])
def test_rows_that_wear_something_else_are_an_error(strong_hooks, patch, strength):
    host = LoadingHost(patch=patch)
    lora = host.lora("a", strength=strength)
    with pytest.raises(CalibrationError, match=r"^a: its rows do not draw .* file is read alike"):
        prove_loras(host, [lora], CALIBRATION)
    with pytest.raises(SolveError, match=r"and no rounding\. Likely another node changes"):
        prove_merged(host, lora.adapter, lora, CALIBRATION, Proof())


def test_a_misread_lora_is_found_on_a_host_that_rounds():
    host = LoadingHost(doubled_at("unet.outlet"), rounded)
    with pytest.raises(AdapterError, match="a: ComfyUI's own loader makes another change"):
        merged(host, [host.lora("a")])


def test_two_patched_models_that_drift_apart_by_themselves_are_no_misreading():
    """As rows in 16 bits do: no two patched models do quite the same."""
    seeds = itertools.count()

    def drifting(weight):
        generator = torch.Generator().manual_seed(next(seeds))
        return weight + 0.02 * torch.randn(weight.shape, generator=generator).double()

    host = LoadingHost(patch=drifting)
    lora = host.lora("a")
    shares = prove_loras(host, [lora], CALIBRATION).rounded
    assert shares["a"] > 0.02
    with pytest.raises(AdapterError, match="makes another change"):
        prove_loras(LoadingHost(doubled_at("unet.outlet"), drifting), [lora], CALIBRATION)


@pytest.mark.parametrize("paths", [("v",), ("inlet", "q", "k", "v", "outlet")])
def test_layers_that_the_model_does_not_call_are_named(paths):
    """Even where no row does anything, which alone looks like a LoRA without an effect."""
    host = LoadingHost()
    lora = host.lora("a", ("unet",))
    called = host.denoiser

    @contextmanager
    def denoiser():
        with called() as network:
            others = {f"unet.{path}": copy.deepcopy(host.module(f"unet.{path}")) for path in paths}
            yield replace(network, modules={**network.modules, **others})

    host.denoiser = denoiser
    host._with = lambda adapter: FakeHost().patched(adapter)
    with pytest.raises(AdapterError, match=rf"does not call {len(paths)} of its layers.*'unet\."):
        prove_loras(host, [lora], CALIBRATION)


def test_a_lora_without_an_effect_is_passed_over():
    host = LoadingHost()
    lora = host.lora("a")
    nothing = {path: d.scaled(0.0) for path, d in lora.adapter.deltas.items()}
    proof = prove_loras(host, [replace(lora, adapter=Adapter("a", nothing))], CALIBRATION)
    assert proof.rounded == {"a": 0.0} and proof.notes == ()


def test_a_lora_whose_effect_is_not_finite_is_named():
    host = LoadingHost()
    lora = host.lora("a")
    deltas = lora.adapter.deltas
    broken = LowRankDelta(deltas["unet.outlet"].up * torch.inf, deltas["unet.outlet"].down)
    adapter = Adapter("a", {**deltas, "unet.outlet": broken})
    with pytest.raises(AdapterError, match=r"a: with this LoRA .* not finite"):
        prove_loras(host, [replace(lora, adapter=adapter)], CALIBRATION)


@pytest.mark.parametrize("path", ["te.out", "unet.inlet", "unet.q"])
def test_a_model_that_does_not_do_what_was_solved_is_not_handed_out(path):
    host = LoadingHost()
    lora = host.lora("a")
    proof = prove_loras(host, [lora], CALIBRATION)
    host.with_adapter = lambda adapter: host._with(doubled_at(path)(adapter))
    with pytest.raises(SolveError, match="does not draw with the merged LoRA what was solved"):
        prove_merged(host, lora.adapter, lora, CALIBRATION, proof)
    with pytest.raises(SolveError, match="does not draw"):
        merged(host, [lora, host.lora("b")])


def test_both_texts_are_encoded_before_both_models_draw():
    """So that text encoders and diffusion model need not make room for each other again."""
    opened = []

    class Noting(LoadingHost):
        def _part(self, name, model, forward):
            opened.append(name)
            return super()._part(name, model, forward)

    host = Noting()
    lora = host.lora("a")
    prove_merged(host, lora.adapter, lora, CALIBRATION, Proof())
    assert opened == ["te", "te", "unet", "unet"]


def test_a_lora_without_prompts_is_refused_by_the_merge_itself():
    host = LoadingHost()
    with pytest.raises(ValueError, match="prompt"):
        merged(host, [as_used(host.lora("a"), prompts=())])


def test_what_is_drawn_is_small_whatever_the_size_of_the_measured_pictures():
    host = LoadingHost()
    lora = host.lora("a")
    large = replace(CALIBRATION, resolution=512)
    for calibration, side in ((CALIBRATION, 8), (large, 16)):
        host.unet_batches.clear()
        proof = prove_loras(host, [lora], calibration)
        prove_merged(host, lora.adapter, lora, calibration, proof)
        shapes = {tuple(row.latents.shape) for rows in host.unet_batches for row in rows}
        assert shapes == {(4, side, side)}
