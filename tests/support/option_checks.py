"""A MODEL and a CLIP that other nodes have changed, measured as ComfyUI's own sampler runs them.

    python tests/support/option_checks.py COMFYUI

writes a line of JSON per case: the largest difference of our forward calls from the sampler's, what
the change does there, both relative, and what is noted of it; and one about learned tokens (textual
inversion) in prompts, in captions with other LoRAs, and in scenes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import family_checks
import in_comfy

# isort: split
import comfy.hooks
import comfy.patcher_extension
import comfy.samplers
import comfy_extras.nodes_easycache
import comfy_extras.nodes_hooks
import comfy_extras.nodes_torch_compile
import tiny_hosts
import torch
from family_checks import same_tensors
from iteris_pack.nodes import host as pack_host
from iteris_pack.nodes.host.diffusion_model import ComfyModel
from iteris_pack.nodes.loras.chosen import unread_in
from iteris_pack.nodes.loras.on_model import notes_on_model
from safetensors.torch import save_file
from torch import Tensor

from iteris_core import IterisError, MergeConfig
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.merging import merge_and_check
from iteris_core.diffusion.model import DenoiserRow
from iteris_core.network import in_calls

KINDS = comfy.patcher_extension.WrappersMP
PROMPTS = ("a photo of sks dog", "blurry")
Patched = tuple[Any, Any]
VECTORS = 2  # of a learned token
CALIBRATION = replace(
    family_checks.SMALL, scene_weight=0.3, negative_prompt="blurry, embedding:NotThere"
)
CONFIG = MergeConfig(output_dtype=torch.float32, samples_per_chunk=2)


class Watched(comfy.samplers.CFGGuider):
    """A guider that keeps what the model answers to both prompts at every step."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.seen: list[tuple[Tensor, Tensor, list[Tensor]]] = []

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any = {}, seed: Any = None):  # noqa: B006
        both = [self.conds["positive"], self.conds["negative"]]
        answers = comfy.samplers.calc_cond_batch(self.inner_model, both, x, timestep, model_options)
        self.seen.append((x.clone(), timestep.clone(), [answer.clone() for answer in answers]))
        return super().predict_noise(x, timestep, model_options, seed)


def sampled(model: Any, clip: Any) -> list[tuple[Tensor, Tensor, list[Tensor]]]:
    """Return input, noise level and answers of each step of the host's sampler."""
    host = ComfyModel(model, clip)
    guider = Watched(model)
    guider.set_conds(*(clip.encode_from_tokens_scheduled(clip.tokenize(p)) for p in PROMPTS))
    guider.set_cfg(3.0)
    shape = (1, *host.latent_shape(64))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    sampler = comfy.samplers.sampler_object("euler")
    guider.sample(noise, torch.zeros(shape), sampler, host.sigmas(3), disable_pbar=True, seed=1)
    return guider.seen


def measured(model: Any, clip: Any, inputs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Return what our rows answer to the same, all of them in as few calls as they can share."""
    host = ComfyModel(model, clip)
    with host.text_encoder() as text:
        prompts = [host.encoded(p, text.forward(host.tokenize(p))) for p in PROMPTS]
    host.sigmas(3)
    rows = [
        DenoiserRow(x[0], sigma[0], prompt, is_negative)
        for x, sigma in inputs
        for prompt, is_negative in zip(prompts, (False, True), strict=True)
    ]
    answers: dict[int, Tensor] = {}
    with host.denoiser() as network:
        for numbers in in_calls([network.call_key(row) for row in rows], len(rows)):
            found = network.forward([rows[number] for number in numbers])
            answers |= dict(zip(numbers, found.float().cpu(), strict=True))
    return [answers[number] for number in range(len(rows))]


def notes(model: Any, clip: Any) -> list[str]:
    changes = pack_host.base_changes(model, clip)
    return [note.text for note in notes_on_model({}, changes, [], [], is_guided=False)]


def attention(model: Any, clip: Any) -> Patched:
    """Change texts of positive rows alone, as adapters of pictures do, the more the noisier."""

    def patch(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> tuple[Tensor, ...]:
        each = len(q) // len(extra["cond_or_uncond"])
        of_row = [1.0 - kind for kind in extra["cond_or_uncond"] for _ in range(each)]
        level = extra["sigmas"][0] / extra["sample_sigmas"][0]
        return q, k, v * (1 + level * torch.tensor(of_row)[:, None, None])

    model = model.clone()
    model.set_model_attn2_patch(patch)
    return model, clip


def wrapped(kind: str) -> Callable[[Any, Any], Patched]:
    def change(model: Any, clip: Any) -> Patched:
        def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
            return 1.5 * executor(*args, **kwargs)

        model = model.clone()
        model.add_wrapper_with_key(kind, "test", wrapper)
        return model, clip

    return change


def easy_cache(model: Any, clip: Any) -> Patched:
    node = comfy_extras.nodes_easycache.EasyCacheNode
    return node.execute(model, 0.2, 0.15, 0.95, False)[0], clip


def compiled(model: Any, clip: Any) -> Patched:
    node = comfy_extras.nodes_torch_compile.TorchCompileModel
    return node.execute(model, "inductor")[0], clip


def hooked(model: Any, clip: Any, keyframes: Any = None) -> Patched:
    tensors = family_checks.lora_of(ComfyModel(model, clip), 3, "kohya")
    hooks = comfy.hooks.create_hook_lora(tensors, 1.0, 1.0)
    hooks.set_keyframes_on_hooks(keyframes)
    return model, comfy_extras.nodes_hooks.SetClipHooks().apply_hooks(clip, False, True, hooks)[0]


def scheduled(model: Any, clip: Any) -> Patched:
    keyframes = comfy.hooks.HookKeyframeGroup()
    keyframes.add(comfy.hooks.HookKeyframe(0.5, 0.5))
    return hooked(model, clip, keyframes)


def skipping(model: Any, clip: Any) -> Patched:
    clip = clip.clone()
    clip.clip_layer(-2)
    return model, clip


def failing(model: Any, clip: Any) -> Patched:
    def patch(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> tuple[Tensor, ...]:
        return q, k, v * extra["of_my_own_sampler"]

    model = model.clone()
    model.set_model_attn2_patch(patch)
    return model, clip


def injected(model: Any, clip: Any) -> Patched:
    """Add a layer's part while the model is loaded, as LoRAs do that are not on its weights."""
    layer = model.model.diffusion_model.time_embed[0]

    def inject(_: Any) -> None:
        layer.forward = lambda x: 1.5 * type(layer).forward(layer, x)

    model = model.clone()
    injection = comfy.patcher_extension.PatcherInjection(
        inject, lambda _: vars(layer).pop("forward", None)
    )
    model.set_injections("bypass_lora", [injection])
    return model, clip


@dataclass(frozen=True)
class Case:
    """A change of a MODEL and a CLIP by other nodes.

    Args:
        family: Name of a tiny model.
        change: The change.
        is_sampled: Whether the host's sampler runs it as it is measured.
    """

    family: str
    change: Callable[[Any, Any], Patched]
    is_sampled: bool = True


CASES = {
    "attention": Case("SD1.5", attention),
    "hooks": Case("SD1.5", hooked),
    "injected": Case("SD1.5", injected),
    "clip skip": Case("SD1.5", skipping),
    "diffusion model wrapper": Case("SD1.5", wrapped(KINDS.DIFFUSION_MODEL)),
    "apply model wrapper": Case("SD3.5", wrapped(KINDS.APPLY_MODEL)),
    "EasyCache": Case("SD3.5", easy_cache, False),
    "compiled": Case("SD3.5", compiled, False),
    "scheduled hooks": Case("SD1.5", scheduled, False),
    "failing": Case("SD1.5", failing, False),
}


def figures_of(case: Case) -> dict[str, Any]:
    host = tiny_hosts.host_of(case.family)
    model, clip = host.model, host.clip
    weights = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    plain = sampled(model, clip)
    patched = case.change(model, clip)
    found: dict[str, Any] = {"notes": notes(*patched)}
    seen = sampled(*patched) if case.is_sampled else plain
    try:
        with pack_host.naming_changes(patched[:1], patched[1]):
            answers = measured(*patched, [(x, sigma) for x, sigma, _ in seen])
    except IterisError as error:
        return found | {"error": f"{type(error).__name__}: {error}"}
    found["left"] = not same_tensors(model.model.state_dict(), weights)
    theirs = [answer[0] for _, _, both in seen for answer in both]
    before = measured(model, clip, [(x, sigma) for x, sigma, _ in seen])
    size = max(answer.norm().item() for answer in theirs)

    def apart(some: list[Tensor]) -> float:
        pairs = zip(some, theirs, strict=True)
        return max((a - b).norm().item() for a, b in pairs) / size

    return found | {"difference": apart(answers), "effect": apart(before)}


class Read:
    """What a host's text encoders read: caption -> its learned vectors."""

    def __init__(self, host: ComfyModel) -> None:
        self.vectors: dict[str, int] = {}
        self._tokenize = host.texts.tokenize
        host.texts.tokenize = self.tokenize

    def tokenize(self, caption: str) -> Sequence[Any]:
        pieces = self._tokenize(caption)
        self.vectors[caption] = sum(
            isinstance(token, Tensor) for piece in pieces for token, _ in piece["l"]
        )
        return pieces


def written(host: ComfyModel, caption: str) -> Tensor:
    with host.text_encoder() as text:
        return host.encoded(caption, text.forward(host.tokenize(caption))).tokens


def learned_tokens() -> dict[str, Any]:
    """Merge two LoRAs, of which one's prompt names a learned token that is there."""
    host = tiny_hosts.host_of("SD1.5")
    clip = host.clip
    width = tiny_hosts.CLIP["hidden_size"]
    with tempfile.TemporaryDirectory() as folder:
        vectors = torch.randn(VECTORS, width, generator=torch.Generator().manual_seed(5))
        save_file({"emb_params": vectors}, Path(folder) / "sks.safetensors")
        clip.tokenizer.clip_l.embedding_directory = [folder]
        clip.tokenizer.clip_l.embedding_size = width
        read = Read(host)
        prompt = "a photo of embedding:sks dog"
        loras = [
            family_checks.loaded(
                host, name, family_checks.lora_of(host, seed, "diffusers"), of_lora, trigger=trigger
            )
            for name, seed, of_lora, trigger in (
                ("dog", 1, prompt, "a embedding:sks dog"),
                ("cat", 2, "a red embedding:NotThere, cat", ""),
            )
        ]
        notes = [note.text for note in unread_in(host, CALIBRATION)]
        result = merge_and_check(Job.of(host, loras, CALIBRATION, MergeSettings(CONFIG)))
        theirs = clip.encode_from_tokens(clip.tokenize(prompt))
        return {
            "read": read.vectors,
            "kinds": [entry.kind for entry in result.report.fidelity],
            "errors": [entry.output_error for entry in result.report.fidelity],
            "notes": notes,
            "unlike the host": (written(host, prompt) - theirs[0]).abs().max().item(),
            "unlike the word": (written(host, "a photo of sks dog") - theirs[0]).abs().max().item(),
            "unknown": host.unknown_embeddings(
                f"{prompt}, embedding:gone, (embedding:lost.v2:1.2)"
            ),
            "positions": list(host.token_positions(prompt)),
        }


def figures() -> Iterator[dict[str, Any]]:
    for name, case in CASES.items():
        yield {"case": name, **figures_of(case)}
    yield {"case": "learned tokens", **learned_tokens()}


if __name__ == "__main__":
    in_comfy.tell(figures())
