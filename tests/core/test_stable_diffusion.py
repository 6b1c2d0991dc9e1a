"""A whole Stable Diffusion merge on a host of two tiny networks: a text encoder, and a UNet with cross-attention."""

import copy
import json
import math
from contextlib import contextmanager
from itertools import groupby

import pytest
import torch
from torch import nn

from iteris_core import Adapter, AdapterError, CalibrationError, LowRankDelta, MergeConfig, Network
from iteris_core.calibration import Calibration, euler_trajectory, kept_steps, noise, own_captions
from iteris_core.families.stable_diffusion import PromptedAdapter, merge_stable_diffusion

PIECE, WIDTH = 5, 6  # tokens of a text piece, and the width of a context
SMALL = {"trajectories": 4, "timesteps": 2, "sampling_steps": 4, "resolution": 64, "cfg": 3.0}
NO_PRESERVE = Calibration(**SMALL, preserve_weight=0.0)
PRESERVE = Calibration(**SMALL, preserve_captions=("a street", "a lake in the mountains at sunrise"))
EXACT = MergeConfig(output_dtype=torch.float64, samples_per_chunk=3)


class TextEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, WIDTH)
        self.q, self.v, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = x + (self.q(x) @ x.transpose(1, 2)).softmax(-1) @ self.v(x)
        return x + self.out(x).tanh()


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.inlet, self.outlet = nn.Conv2d(4, WIDTH, 1), nn.Conv2d(WIDTH, 4, 1)
        self.q, self.k, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, sigma, context):
        """Return an estimate of the clean latents."""
        sigma = sigma[:, None, None, None]
        hidden = self.inlet(x / (1 + sigma**2).sqrt()).tanh() + sigma.log() / 5
        tokens = hidden.flatten(2).transpose(1, 2)
        found = (self.q(tokens) @ self.k(context).transpose(1, 2)).softmax(-1) @ self.v(context)
        hidden = hidden + found.transpose(1, 2).reshape(hidden.shape)
        return x / (1 + sigma**2) + sigma / (1 + sigma**2).sqrt() * self.outlet(hidden.tanh())


class FakeHost:
    """Implements `StableDiffusion`, and notes what its UNet was asked."""

    def __init__(self):
        torch.manual_seed(0)
        self.te, self.u = (part().double().eval().requires_grad_(False) for part in (TextEncoder, Unet))
        self.open, self.unet_batches = [], []

    def tokenize(self, caption):
        words = [1 + sum(map(ord, word)) % 49 for word in caption.split()] or [0]
        words += [0] * (-len(words) % PIECE)
        return list(torch.tensor(words).split(PIECE))

    @contextmanager
    def _part(self, name, model, forward):
        self.open.append(name)
        try:
            modules = {f"{name}.{path}": module for path, module in model.named_modules() if path}
            yield Network(modules, forward, lambda path: "text" if path in ("unet.k", "unet.v") else "image")
        finally:
            self.open.remove(name)

    def text_encoder(self):
        return self._part("te", self.te, lambda rows: self.te(torch.stack(list(rows))))

    def unet(self):
        return self._part("unet", self.u, self._denoise)

    def _denoise(self, rows):
        self.unet_batches.append(list(rows))
        latents, sigmas, contexts = (
            torch.stack([getattr(row, name) for row in rows]) for name in ("latents", "sigma", "context")
        )
        return self.u(latents.double(), sigmas.double(), contexts)

    def sigmas(self, steps):
        return torch.cat([torch.logspace(1, -1, steps), torch.zeros(1)])

    def latent_shape(self, resolution):
        return 4, resolution // 8, resolution // 8

    def is_text_module(self, path):
        return path.startswith("te.")

    # what the tests ask

    def lora(self, name, parts=("te", "unet"), prompts=("<x> cat",), strength=1.0, weight=1.0, unmatched=()):
        paths = [f"te.{p}" for p in ("q", "v", "out")] * ("te" in parts)
        paths += [f"unet.{p}" for p in ("inlet", "q", "k", "v", "outlet")] * ("unet" in parts)
        deltas = {}
        for path in paths:
            d_out, d_in = self.module(path).weight.shape[:2]
            deltas[path] = LowRankDelta(0.3 * torch.randn(d_out, 2).double(), torch.randn(2, d_in).double() / d_in**0.5)
        return PromptedAdapter(Adapter(name, deltas, unmatched).scaled(strength), tuple(prompts), weight)

    def module(self, path):
        part, _, name = path.partition(".")
        return {"te": self.te, "unet": self.u}[part].get_submodule(name)

    def hooks(self):
        return sum(len(module._forward_hooks) for part in (self.te, self.u) for module in part.modules())

    def patched(self, *adapters):
        host = copy.deepcopy(self)
        for adapter in adapters:
            for path, delta in adapter.deltas.items():
                weight = host.module(path).weight
                weight += delta.dense().reshape(weight.shape)
        return host

    def context(self, caption, length):
        """Return a caption's context, repeated to a length as hosts do: attention stays the same."""
        context = torch.cat(list(self.te(torch.stack(self.tokenize(caption)))))
        return context.repeat(length // len(context), 1)

    def merge_rows(self):
        """Return the (teacher, student) rows of the UNet's sweep, in order; sampling asks with one sigma per batch."""
        pairs = []
        for batch in self.unet_batches[-self.sweep_batches :]:
            half = len(batch) // 2
            pairs += zip(batch[:half], batch[half:], strict=True)
        return pairs

    def merge(self, loras, calibration, config=EXACT):
        stages = []
        result = merge_stable_diffusion(self, loras, calibration, config, lambda *step: stages.append(step))
        samplings = sum(stage == "Sampling" for stage, *_ in stages)
        self.sweep_batches = len(self.unet_batches) - samplings
        return result, stages


@pytest.fixture
def host():
    return FakeHost()


def largest_error(found, expected):
    assert set(found.deltas) == set(expected.deltas)
    pairs = [(found.deltas[path].dense(), expected.deltas[path].dense()) for path in expected.deltas]
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


# --- one LoRA, or as good as one ---


@pytest.mark.parametrize("parts", [("te", "unet"), ("te",), ("unet",)], ids="+".join)
def test_without_a_preserve_task_one_lora_merges_to_itself(host, parts):
    lora = host.lora("a", parts)
    result, _ = host.merge([lora], NO_PRESERVE)
    assert largest_error(result.adapter, lora.adapter) < 1e-8
    assert result.adapter.name == "a"


def test_the_same_lora_twice_merges_to_itself(host):
    lora = host.lora("a")
    result, _ = host.merge([lora, lora], NO_PRESERVE)
    assert largest_error(result.adapter, lora.adapter) < 1e-8
    names = [entry.task for entry in result.report.layers[0].tasks]
    assert names == ["a (1)", "a (2)"]


def test_a_preserve_task_holds_the_merge_back(host):
    lora = host.lora("a")
    result, _ = host.merge([lora], PRESERVE)
    assert largest_error(result.adapter, lora.adapter) > 1e-2
    assert {entry.task for layer in result.report.layers for entry in layer.tasks} == {"a", "base model (preserve)"}


def test_a_strength_of_0_is_left_out_and_noted(host):
    used, other = host.lora("used"), host.lora("other", ("unet",))
    idle = host.lora("idle", strength=0.0, prompts=())
    result, _ = host.merge([used, idle, other], PRESERVE)
    without, _ = host.merge([used, other], PRESERVE)
    assert largest_error(result.adapter, without.adapter) == 0
    assert "left out, since their strength is 0: idle" in result.report.notes
    assert [recipe["name"] for recipe in result.report.settings["loras"]] == ["used", "idle", "other"]
    with pytest.raises(AdapterError, match="none of the LoRAs changes anything: every strength is 0"):
        host.merge([idle], PRESERVE)


@pytest.mark.parametrize("prompts", [(), ("<x>", " ")])
def test_a_lora_without_prompts_is_named(host, prompts):
    with pytest.raises(CalibrationError, match="LoRA 'b': a prompt is empty"):
        host.merge([host.lora("a"), host.lora("b", prompts=prompts)], PRESERVE)


# --- what teacher and student read ---


def test_teachers_read_their_own_context_and_the_student_reads_the_merged_one(host):
    loras = [host.lora("both"), host.lora("unet only", ("unet",), ["<y> dog"]), host.lora("text too", prompts=["<z> car"])]
    result, _ = host.merge(loras, PRESERVE)
    student = host.patched(result.adapter)
    encoders = [host.patched(loras[0].adapter), host, host.patched(loras[2].adapter), host]
    captions = [own_captions(lora.prompts, PRESERVE, PRESERVE.seed + k) for k, lora in enumerate(loras)]
    counts = [entry.tokens // 64 for entry in result.report.layers[-1].tasks]
    pairs = iter(host.merge_rows())
    for g, count in enumerate(counts):
        known = dict.fromkeys([*captions[g], ""] if g < 3 else [*PRESERVE.preserve_captions, ""])
        for _ in range(count):
            teacher, reader = next(pairs)
            length = len(teacher.context)
            (caption,) = (text for text in known if is_close(encoders[g].context(text, length), teacher.context))
            assert is_close(reader.context, student.context(caption, length))
            assert not is_close(reader.context, teacher.context)
            assert torch.equal(reader.latents, teacher.latents)
            assert torch.equal(reader.sigma, teacher.sigma)
    assert next(pairs, None) is None


def is_close(a, b):
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-9)


def test_without_text_parts_everybody_reads_the_base_context(host):
    loras = [host.lora("a", ("unet",)), host.lora("b", ("unet",))]
    _, stages = host.merge(loras, PRESERVE)
    assert {stage for stage, *_ in stages} == {"Sampling", "UNet"}
    assert all(torch.equal(teacher.context, student.context) for teacher, student in host.merge_rows())


def test_text_only_loras_need_no_sampling(host):
    result, stages = host.merge([host.lora("a", ("te",)), host.lora("b", ("te",))], PRESERVE)
    assert {stage for stage, *_ in stages} == {"Text encoder"}
    assert host.unet_batches == []
    assert set(result.adapter.deltas) == {"te.q", "te.v", "te.out"}


def test_a_text_only_and_a_unet_only_lora_each_keep_their_part(host):
    text, unet = host.lora("text", ("te",)), host.lora("unet", ("unet",))
    result, _ = host.merge([text, unet], NO_PRESERVE)
    assert set(result.adapter.deltas) == {*text.adapter.deltas, *unet.adapter.deltas}
    for layer in result.report.layers:
        assert [entry.task for entry in layer.tasks] == ["text", "unet"]
        assert layer.rank == 2


def test_a_text_encoder_part_is_swept_like_any_network(toy, host):
    """The text sweep minimises over all captions of all tasks: its own fixed point, computed by hand for the first layer."""
    loras = [host.lora("a"), host.lora("b", ("unet",), ["<y> dog"])]
    result, _ = host.merge(loras, NO_PRESERVE)
    captions = [dict.fromkeys([*own_captions(lora.prompts, NO_PRESERVE, k), ""]) for k, lora in enumerate(loras)]
    delta, tasks = loras[0].adapter.deltas["te.q"].dense(), []
    for known, target in zip(captions, (delta, torch.zeros_like(delta)), strict=True):
        x = torch.cat([host.te.embedding(piece) for caption in known for piece in host.tokenize(caption)])
        tasks.append(toy.DenseTask(x, x, target, 1.0))
    expected = toy.solve_densely(host.te.q.weight, tasks, EXACT)
    torch.testing.assert_close(result.adapter.deltas["te.q"].dense(), expected, rtol=1e-9, atol=1e-9)


# --- latents ---


def test_latents_come_from_each_teachers_own_guided_sampling(host):
    loras = [host.lora("a"), host.lora("b", prompts=["<y> dog"])]
    calibration = Calibration(**{**SMALL, "unconditional_share": 0.0}, preserve_captions=("a street",), negative_prompt="bad")
    result, _ = host.merge(loras, calibration)
    assert result.report.layers[-1].tasks[0].tokens == 64 * 8
    pairs, sigmas = iter(host.merge_rows()), host.sigmas(4)
    for g, teacher in enumerate([host.patched(loras[0].adapter), host.patched(loras[1].adapter), host]):
        captions = own_captions(loras[g].prompts, calibration, g) if g < 2 else ["a street"] * 4
        for run, caption in enumerate(captions):
            texts = [teacher.context(text, 2 * PIECE)[None] for text in (caption, "bad")]

            def denoise(x, sigma, teacher=teacher, texts=texts):
                good, bad = (teacher.u(x.double(), sigma[None].double(), text) for text in texts)
                return (bad + 3.0 * (good - bad)).float()

            seen = euler_trajectory(denoise, noise((1, 4, 8, 8), g * 1009 + run), sigmas)
            for step in kept_steps(calibration, run):
                row, _ = next(pairs)
                assert row.sigma == sigmas[step]
                torch.testing.assert_close(row.latents, seen[step][0], rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(row.context, teacher.context(caption, len(row.context)))
    assert next(pairs, None) is None


def test_no_two_runs_see_the_same_latents(host):
    lora = host.lora("a", ("unet",))
    host.merge([lora, lora], PRESERVE)
    assert len({tuple(row.latents.flatten()[:4].tolist()) for row in host.unet_batches[0]}) == len(host.unet_batches[0]) // 2
    starts = [row for batch in host.unet_batches[: -host.sweep_batches] for row in batch if row.sigma == 10]
    assert len({tuple(row.latents.flatten()[:4].tolist()) for row in starts}) == len(starts) // 2


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_latents_is_seen_with_the_negative_prompt_too(host, share):
    lora = host.lora("a", ("unet",))
    calibration = Calibration(**{**SMALL, "unconditional_share": share}, preserve_captions=("a street",), negative_prompt="bad")
    result, _ = host.merge([lora], calibration)
    own, preserve = [entry.tokens // 64 for entry in result.report.layers[0].tasks]
    assert own == preserve == 8 + int(8 * share)
    rows = [row for row, _ in host.merge_rows()][:own]
    negative = [row for row in rows if is_close(row.context, host.context("bad", len(row.context)))]
    assert len(negative) == int(8 * share)
    for row in negative:  # with the same latents as a conditional row
        assert sum(torch.equal(row.latents, other.latents) for other in rows) == 2


def test_negative_prompts_are_seen_at_all_noise_levels(host):
    lora = host.lora("a", ("unet",))
    calibration = Calibration(trajectories=16, timesteps=4, sampling_steps=12, resolution=64, negative_prompt="bad")
    host.merge([lora], calibration, MergeConfig())
    negative = [row for row, _ in host.merge_rows() if is_close(row.context, host.context("bad", len(row.context)))]
    assert {round(row.sigma.item(), 4) for row in negative} == {round(s, 4) for s in host.sigmas(12)[:-1].tolist()}


@pytest.mark.parametrize("samples_per_chunk", [1, 100])
def test_the_number_of_rows_in_a_call_does_not_matter(host, samples_per_chunk):
    check_chunks(host, EXACT.samples_per_chunk, samples_per_chunk, composition_share=0.0)


def test_the_number_of_rows_in_a_call_does_not_matter_for_captions_of_different_lengths(host):
    check_chunks(host, 1, 100, composition_share=0.5)


def check_chunks(host, first, second, composition_share):
    loras = [host.lora("a"), host.lora("b", prompts=["<y> dog", "<y> house"])]
    calibration = Calibration(**SMALL, composition_share=composition_share, preserve_captions=("a street",))
    configs = [MergeConfig(output_dtype=torch.float64, samples_per_chunk=size) for size in (first, second)]
    expected, found = (host.merge(loras, calibration, config)[0] for config in configs)
    assert largest_error(found.adapter, expected.adapter) < 1e-4


def test_tokens_of_a_repeated_context_count_once(toy, host):
    """At keys of cross-attention, whose inputs are the contexts, in a merge that leaves the text encoder alone."""
    lora = host.lora("a", ("unet",))
    calibration = Calibration(**SMALL, preserve_captions=("a street", "a lake in the mountains at sunrise"))
    result, _ = host.merge([lora], calibration)
    rows = [row for row, _ in host.merge_rows()]
    captions = [*own_captions(lora.prompts, calibration, 0), *calibration.preserve_captions, ""]
    pieces = {}
    for caption in captions:
        context = host.context(caption, 2 * PIECE)
        pieces[caption] = (context, context[: len(host.tokenize(caption)) * PIECE])
    assert len({len(short) for _, short in pieces.values()}) == 2
    inputs = [next(short for context, short in pieces.values() if is_close(context, row.context)) for row in rows]
    delta, count = lora.adapter.deltas["unet.k"].dense(), result.report.layers[0].tasks[0].tokens // 64
    own, preserve = torch.cat(inputs[:count]), torch.cat(inputs[count:])
    tasks = [toy.DenseTask(own, own, delta, 1.0), toy.DenseTask(preserve, preserve, torch.zeros_like(delta), 1.0)]
    expected = toy.solve_densely(host.u.k.weight, tasks, EXACT)
    torch.testing.assert_close(result.adapter.deltas["unet.k"].dense(), expected, rtol=1e-7, atol=1e-7)


def test_a_merge_depends_on_its_seed_and_on_nothing_else(host):
    loras = [host.lora("a"), host.lora("b")]
    first, _ = host.merge(loras, PRESERVE)
    torch.manual_seed(99)
    again, _ = host.merge(loras, PRESERVE)
    other, _ = host.merge(loras, Calibration(**SMALL, preserve_captions=PRESERVE.preserve_captions, seed=1))
    assert largest_error(again.adapter, first.adapter) == 0
    assert largest_error(other.adapter, first.adapter) > 1e-4


# --- progress, cancelling, report ---


def test_progress_goes_through_the_stages_in_order_and_to_their_ends(host):
    _, stages = host.merge([host.lora("a"), host.lora("b")], PRESERVE)
    assert [stage for stage, _ in groupby(stage for stage, *_ in stages)] == ["Text encoder", "Sampling", "UNet"]
    for name, total in {"Text encoder": 3, "Sampling": math.ceil((4 + 4 + 6) / 3) * 4, "UNet": 5}.items():
        assert [(done, of) for stage, done, of in stages if stage == name] == [(i + 1, total) for i in range(total)]


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("at", ["Text encoder", "Sampling", "UNet"])
def test_cancelling_leaves_nothing_behind(host, at):
    loras = [host.lora("a"), host.lora("b")]
    before = [copy.deepcopy(part.state_dict()) for part in (host.te, host.u)]

    def cancel(stage, done, total):
        if stage == at and done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        merge_stable_diffusion(host, loras, PRESERVE, EXACT, cancel)
    assert host.hooks() == 0
    assert host.open == []
    for part, state in zip((host.te, host.u), before, strict=True):
        assert all(torch.equal(state[key], tensor) for key, tensor in part.state_dict().items())


def test_only_one_part_of_the_model_is_open_at_a_time(host):
    seen = set()
    loras = [host.lora("a"), host.lora("b")]
    merge_stable_diffusion(host, loras, PRESERVE, EXACT, lambda stage, *_: seen.add((stage, *host.open)))
    assert seen == {("Text encoder", "te"), ("Sampling", "unet"), ("UNet", "unet")}
    assert host.open == []
    assert host.hooks() == 0


def test_the_report_has_all_layers_strange_keys_and_a_recipe_in_json(host):
    loras = [host.lora("a", unmatched=("k",)), host.lora("b", ("unet",), ["<y>"], weight=2.5)]
    result, _ = host.merge(loras, PRESERVE, MergeConfig(output_dtype=torch.float16))
    assert [layer.path for layer in result.report.layers] == [
        *("te.q", "te.v", "te.out"),
        *("unet.inlet", "unet.q", "unet.k", "unet.v", "unet.outlet"),
    ]
    assert result.report.unmatched == {"a": ("k",)}
    settings = json.loads(json.dumps(result.report.to_dict()))["settings"]
    assert settings["loras"] == [
        {"name": "a", "prompts": ["<x> cat"], "weight": 1.0},
        {"name": "b", "prompts": ["<y>"], "weight": 2.5},
    ]
    assert settings["config"]["output_dtype"] == "float16"
    assert settings["calibration"]["trajectories"] == 4
    assert result.adapter.name == "a + b"
