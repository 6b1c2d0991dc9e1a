"""What other nodes put on MODEL and CLIP is measured as ComfyUI's sampler runs it, or named."""

import re
from dataclasses import replace
from functools import partial

import comfy.hooks
import comfy.patcher_extension
import comfy.samplers
import comfy_extras.nodes_easycache
import comfy_extras.nodes_hooks
import comfy_extras.nodes_torch_compile
import pytest
import tiny_hosts
import torch
from comfy_loras import SMALL, loaded, lora_of, same_tensors
from iteris_pack.nodes import host as pack_host
from iteris_pack.nodes.host.diffusion_model import ComfyModel
from iteris_pack.nodes.loras.on_model import notes_on_model
from safetensors.torch import save_file
from torch import Tensor

from iteris_core import CalibrationError, MergeConfig
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.merging import merge_loras
from iteris_core.diffusion.model import DenoiserRow
from iteris_core.memory import Room
from iteris_core.network import in_calls

KINDS = comfy.patcher_extension.WrappersMP
PROMPTS = ("a photo of sks dog", "blurry")


class Watched(comfy.samplers.CFGGuider):
    """A guider that keeps what the model answers to both prompts at every step."""

    def __init__(self, model):
        super().__init__(model)
        self.seen = []

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        both = [self.conds["positive"], self.conds["negative"]]
        answers = comfy.samplers.calc_cond_batch(self.inner_model, both, x, timestep, model_options)
        self.seen += [(x[0].clone(), timestep[0].clone(), answer[0].clone()) for answer in answers]
        return super().predict_noise(x, timestep, model_options, seed)


def sampled(model, clip):
    """Return input, noise level and answer for both prompts at each step of the host's sampler."""
    host = ComfyModel(model, clip)
    guider = Watched(model)
    guider.set_conds(*(clip.encode_from_tokens_scheduled(clip.tokenize(p)) for p in PROMPTS))
    guider.set_cfg(3.0)
    shape = (1, *host.latent_shape(64))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    sampler = comfy.samplers.sampler_object("euler")
    guider.sample(noise, torch.zeros(shape), sampler, host.sigmas(3), disable_pbar=True, seed=1)
    return guider.seen


def measured(model, clip, seen):
    """Return what our rows answer to the same, all of them in as few calls as they can share."""
    host = ComfyModel(model, clip)
    with host.text_encoder() as text:
        prompts = [host.encoded(p, text.forward(host.tokenize(p))) for p in PROMPTS]
    rows = [
        DenoiserRow(x, sigma, prompts[i % 2], is_negative=i % 2 == 1)
        for i, (x, sigma, _) in enumerate(seen)
    ]
    answers = {}
    with host.denoiser(3) as network:
        for numbers in in_calls([network.call_key(row) for row in rows], len(rows)):
            found = network.forward([rows[number] for number in numbers])
            answers |= dict(zip(numbers, found.float().cpu(), strict=True))
    return [answers[number] for number in range(len(rows))]


def distance(answers, seen):
    theirs = [answer.cpu() for *_, answer in seen]
    pairs = zip(answers, theirs, strict=True)
    return max((a - b).norm() for a, b in pairs) / max(answer.norm() for answer in theirs)


def notes(model, clip):
    changes = pack_host.base_changes(model, clip)
    return [note.text for note in notes_on_model({}, changes, [], [], is_guided=False)]


def attention(model, clip):
    """Change texts of positive rows alone, as adapters of pictures do, the more the noisier."""

    def patch(q, k, v, extra):
        each = len(q) // len(extra["cond_or_uncond"])
        of_row = [1.0 - kind for kind in extra["cond_or_uncond"] for _ in range(each)]
        level = extra["sigmas"][0] / extra["sample_sigmas"][0]
        return q, k, v * (1 + level * torch.tensor(of_row).to(v)[:, None, None])

    model = model.clone()
    model.set_model_attn2_patch(patch)
    return model, clip


def failing(model, clip):
    model = model.clone()
    model.set_model_attn2_patch(lambda q, k, v, extra: (q, k, v * extra["of_my_own_sampler"]))
    return model, clip


def wrapped(kind, model, clip):
    model = model.clone()
    scaled = lambda executor, *args, **kwargs: 1.5 * executor(*args, **kwargs)  # noqa: E731
    model.add_wrapper_with_key(kind, "test", scaled)
    return model, clip


def easy_cache(model, clip):
    node = comfy_extras.nodes_easycache.EasyCacheNode
    return node.execute(model, 0.2, 0.15, 0.95, False)[0], clip


def compiled(model, clip):
    node = comfy_extras.nodes_torch_compile.TorchCompileModel
    return node.execute(model, "inductor")[0], clip


def hooked(model, clip, keyframes=None):
    tensors = lora_of(ComfyModel(model, clip), 3, "kohya")
    hooks = comfy.hooks.create_hook_lora(tensors, 1.0, 1.0)
    hooks.set_keyframes_on_hooks(keyframes)
    return model, comfy_extras.nodes_hooks.SetClipHooks().apply_hooks(clip, False, True, hooks)[0]


def scheduled(model, clip):
    keyframes = comfy.hooks.HookKeyframeGroup()
    keyframes.add(comfy.hooks.HookKeyframe(0.5, 0.5))
    return hooked(model, clip, keyframes)


def injected(model, clip):
    """Add a layer's part while the model is loaded, as LoRAs do that are not on its weights."""
    layer = model.model.diffusion_model.time_embed[0]

    def inject(_):
        layer.forward = lambda x: 1.5 * type(layer).forward(layer, x)

    model = model.clone()
    injection = comfy.patcher_extension.PatcherInjection(
        inject, lambda _: vars(layer).pop("forward", None)
    )
    model.set_injections("bypass_lora", [injection])
    return model, clip


def skipping(model, clip):
    clip = clip.clone()
    clip.clip_layer(-2)
    return model, clip


@pytest.mark.parametrize(
    ("family", "change", "named"),
    [
        ("SD1.5", attention, "attention (attn2_patch)"),
        ("SD1.5", partial(wrapped, KINDS.DIFFUSION_MODEL), "wrapped (test)"),
        ("SD3.5", partial(wrapped, KINDS.APPLY_MODEL), "wrapped (test)"),
        ("SD1.5", hooked, "CLIP carries 1 hook"),
        ("SD1.5", injected, "injected (bypass_lora)"),
        ("SD1.5", skipping, "CLIP stops at layer -2"),
    ],
)
def test_what_takes_part_in_each_call_is_measured_as_the_sampler_runs_it(family, change, named):
    host = tiny_hosts.host_of(family)
    weights = {name: weight.clone() for name, weight in host.model.model.state_dict().items()}
    patched = change(host.model, host.clip)
    seen = sampled(*patched)
    assert distance(measured(*patched, seen), seen) < 1e-6
    # nothing is left, as hooks would be
    assert same_tensors(host.model.model.state_dict(), weights)
    assert distance(measured(host.model, host.clip, seen), seen) > 0.01  # it does something
    [note] = notes(*patched)
    assert named in note and re.search("were measured (with them|so)", note)


@pytest.mark.parametrize(
    ("change", "named"), [(easy_cache, "(easycache)"), (compiled, "(torch.compile)")]
)
def test_what_needs_a_whole_sampling_run_is_left_out_and_named(change, named):
    host = tiny_hosts.host_of("SD3.5")
    seen = sampled(host.model, host.clip)
    patched = change(host.model, host.clip)
    assert distance(measured(*patched, seen), seen) < 1e-6
    [note] = notes(*patched)
    assert named in note and "were measured without them" in note


def test_a_polish_reaches_layers_behind_an_attention_that_only_draws():
    """Such as SageAttention, here as another node's override."""
    host = tiny_hosts.host_of("SD1.5")
    model = host.model.clone()

    def draw(attend, *args, **named):
        with torch.no_grad():
            return attend(*args, **named)

    model.model_options["transformer_options"]["optimized_attention_override"] = draw
    drawing = ComfyModel(model, host.clip)
    loras = [
        loaded(drawing, name, lora_of(drawing, seed, "kohya"), f"a {name}")
        for seed, name in enumerate(("dog", "cat"))
    ]
    few = replace(SMALL, trajectories=1, sampling_steps=2)
    before, polished = (
        merge_loras(
            Job.of(drawing, loras, replace(few, polish=steps), MergeSettings(MergeConfig()))
        ).adapter.deltas
        for steps in (0, 1)
    )
    keys = [path for path in before if path.endswith("attn2.to_k")]
    assert keys
    assert not any(torch.equal(before[path].up, polished[path].up) for path in keys)


def test_loras_of_prompts_need_a_model_that_is_not_loaded_on_demand(monkeypatch):
    """As ComfyUI 0.33 loads it on a GPU."""
    host = tiny_hosts.host_of("SD1.5")
    seen = sampled(host.model, host.clip)
    model, clip = hooked(host.model, host.clip)
    monkeypatch.setattr(type(model), "is_dynamic", lambda _: True, raising=False)
    with pytest.raises(CalibrationError, match=r"loads on demand\. .*--disable-dynamic-vram"):
        measured(model, clip, seen)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (scheduled, "the CLIP carries hooks whose"),
        (
            failing,
            r"the MODEL fails with KeyError: 'of_my_own_sampler'.*failing.* \(attn2_patch\)"
            ".*Connect MODEL from before its node",
        ),
    ],
)
def test_what_cannot_be_measured_is_named(change, said):
    host = tiny_hosts.host_of("SD1.5")
    seen = sampled(host.model, host.clip)
    model, clip = change(host.model, host.clip)
    named = pack_host.naming_changes(model, clip)
    with pytest.raises(CalibrationError, match=said), named:
        measured(model, clip, seen)


def written(host, caption):
    with host.text_encoder() as text:
        return host.encoded(caption, text.forward(host.tokenize(caption))).tokens


def test_learned_tokens_are_read_as_the_host_reads_them_and_unknown_ones_are_noted(
    tmp_path, monkeypatch
):
    """In a merge of two LoRAs, of which one's prompt names a learned token that is there."""
    host = tiny_hosts.host_of("SD1.5")
    tokenizer = host.clip.tokenizer.clip_l
    width = tiny_hosts.CLIP["hidden_size"]
    save_file({"emb_params": torch.randn(2, width)}, tmp_path / "sks.safetensors")
    tokenizer.embedding_directory = [str(tmp_path)]
    tokenizer.embedding_size = width
    read = {}  # caption -> how many vectors of it are learned
    tokenize = host.texts.tokenize

    def noted(caption):
        pieces = tokenize(caption)
        tokens = [token for piece in pieces for token, _ in piece["l"]]
        read[caption] = sum(isinstance(token, Tensor) for token in tokens)
        return pieces

    monkeypatch.setattr(host.texts, "tokenize", noted)
    prompt = "a photo of embedding:sks dog"
    loras = [
        loaded(host, "dog", lora_of(host, 1, "diffusers"), prompt, trigger="a embedding:sks dog"),
        loaded(host, "cat", lora_of(host, 2, "diffusers"), "a red embedding:NotThere, cat"),
    ]
    calibration = replace(SMALL, scene_weight=0.3, negative_prompt="blurry, embedding:NotThere")
    config = MergeConfig(output_dtype=torch.float32)
    merge_loras(Job.of(host, loras, calibration, MergeSettings(config), Room(2)))
    naming = {caption: count for caption, count in read.items() if "embedding:sks" in caption}
    assert set(naming.values()) == {2} and len(naming) > 3
    assert any("cat" in caption for caption in naming)  # in a scene, beside the other LoRA
    assert {count for caption, count in read.items() if caption not in naming} == {0}
    theirs = host.clip.encode_from_tokens(host.clip.tokenize(prompt))[0]
    assert (written(host, prompt) - theirs).abs().max() < 1e-5
    assert (written(host, "a photo of sks dog") - theirs).abs().max() > 1e-2
    words = ["a", "photo", "of", "learned", "learned", "dog"]
    assert list(host.token_positions(prompt)) == list(range(1, len(words) + 1))
