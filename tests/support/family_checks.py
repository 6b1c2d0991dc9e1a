"""What must hold for a family, checked with ComfyUI's own classes, its own loader of LoRAs and its own
sampler.

    python tests/support/family_checks.py COMFYUI [FAMILY ...]

writes a line of JSON per family: what was measured, or the error.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import re
import sys
import traceback
import types
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any
from unittest import mock

import in_comfy

# isort: split
import comfy.lora
import comfy.lora_convert
import comfy.sample
import comfy.sd
import comfy.utils
import comfy_extras.nodes_model_advanced
import tiny_hosts
import torch
from iteris_pack.nodes.host.conditions import conditions_for
from iteris_pack.nodes.host.diffusion_model import ComfyModel
from iteris_pack.nodes.host.patches import patches_of
from iteris_pack.nodes.keys import is_text
from iteris_pack.nodes.loras.harvest import take_off
from torch import Tensor, nn

from iteris_core import Adapter, MergeConfig
from iteris_core.adapters import target_layers
from iteris_core.devices import Room
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.lora_use import LoadedLora, LoraUse
from iteris_core.diffusion.merging import merge_and_check, merge_diffusion
from iteris_core.diffusion.model import DenoiserRow, Encoded
from iteris_core.diffusion.sampling import Part, Run, Sampler, noise
from iteris_core.engines import sweep
from iteris_core.engines.measure import largest_layer
from iteris_core.files import kohya
from iteris_core.network import TEXT_STREAM
from iteris_core.rows.lockstep import held_bytes
from iteris_core.rows.parking import HostMemory, PagedFile, Parking
from iteris_core.rows.wearing import wearing

SMALL = Calibration(
    trajectories=2,
    timesteps=2,
    sampling_steps=4,
    resolution=128,
    cfg=3.0,
    preserve_captions=("a street", "a tree", "a red chair in a garden"),
    held_out=1,
)
EXACT = MergeConfig(
    output_dtype=torch.float32,
    samples_per_chunk=2,
    target="delta",
    unit_gain=1,
    tokens_per_dimension=None,
)
WITHOUT_GRADIENT = ("ERNIE-Image",)  # whose rotary positions have none in ComfyUI 0.33
CAPTION = "a photo of sks dog on a beach"
Tensors = dict[str, Tensor]


# Spelling -> how its keys begin, best first. "kohya" has fused weights whole, the other in parts.
BEGINNINGS = {
    "kohya": ("lora_unet_", "lora_te1_", "lora_te2_", "lora_te_"),
    "diffusers": ("transformer.", "unet.", "text_encoder.", "text_encoder_2.", "diffusion_model."),
}


def lora_of(host: ComfyModel, seed: int, spelling: str, rank: int = 2) -> Tensors:
    """Return random factors for every layer, under the names of one spelling. All spellings of a
    seed describe the same change.
    """
    modules = dict(host.model.model.named_modules()) | dict(
        host.clip.cond_stage_model.named_modules()
    )
    tensors: Tensors = {}
    for weight, bases in bases_of(host).items():
        module = modules.get(weight.removesuffix(".weight"))
        if not isinstance(module, (nn.Linear, nn.Conv3d)) or not may_change(weight, host):
            continue
        generator = torch.Generator().manual_seed(seed * 100_003 + hash_of(weight))
        if isinstance(module, nn.Conv3d):
            kernel = module.kernel_size
            width = module.in_channels * math.prod(kernel)
            up, down = factors(module.out_channels, width, rank, generator)
            down = down.view(rank, -1, *kernel)
            add(tensors, bases[()], spelling, up[..., None, None, None], down)
            continue
        rows = without_overlaps({where: of for where, of in bases.items() if where}, module)
        if not rows:
            up, down = factors(module.out_features, module.in_features, rank, generator)
            add(tensors, bases[()], spelling, up, down)
            continue
        ups, downs = [], []
        for where, of_part in rows.items():
            offset, *function = where
            start, length = (0, module.out_features) if offset is None else offset[1:]
            up, down = factors(length, module.in_features, rank, generator)
            if spelling != "kohya":
                add(tensors, of_part, spelling, up, down)
            placed = torch.zeros(module.out_features, rank)
            placed[start : start + length] = function[0](up) if function else up
            ups.append(placed)
            downs.append(down)
        if spelling == "kohya":
            add(tensors, bases[()], spelling, torch.cat(ups, 1), torch.cat(downs))
    return tensors


def bases_of(host: ComfyModel) -> dict[str, dict[Any, list[str]]]:
    """Return weight -> (offset, function) of a part, () for the whole -> all bases that the host's
    own table has for it, and for UNets those of diffusers.
    """
    table = comfy.lora.model_lora_keys_unet(host.model.model, {})
    table = comfy.lora.model_lora_keys_clip(host.clip.cond_stage_model, table)
    names = comfy.utils.unet_to_diffusers(host.model.model.model_config.unet_config)
    of_diffusers = {
        f"unet.{name.removesuffix('.weight')}": f"diffusion_model.{weight}"
        for name, weight in names.items()
    }
    found: dict[str, dict[Any, list[str]]] = {}
    for base, entry in [*table.items(), *of_diffusers.items()]:
        weight, *where = (entry,) if isinstance(entry, str) else entry
        if weight.endswith(".weight"):
            found.setdefault(weight, {}).setdefault(tuple(where), []).append(base)
    return found


def factors(d_out: int, d_in: int, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    up = torch.randn(d_out, rank, generator=generator) * 0.3 / rank**0.5
    return up, torch.randn(rank, d_in, generator=generator) / d_in**0.5


def may_change(weight: str, host: ComfyModel) -> bool:
    """Whether LoRAs change a weight: not T5 and language models, nothing behind CLIP's pooled
    output that the model does not read, and neither Chroma Radiance's layers of patches nor what
    reads a picture in HunyuanVideo 1.5.
    """
    if weight.startswith("diffusion_model."):
        return not re.search(r"\.nerf_|\.vision_in\.", weight)
    return host.texts.is_swept(weight) and "layers." in weight


def without_overlaps(rows: Mapping[Any, list[str]], module: nn.Linear) -> dict[Any, list[str]]:
    """Return parts that do not overlap, the smallest first: the host's table names some rows
    twice, and others that a weight does not have.
    """
    taken = torch.zeros(module.out_features, dtype=torch.bool)
    chosen = {}
    for where in sorted(rows, key=lambda where: math.inf if where[0] is None else where[0][2]):
        start, length = (0, len(taken)) if where[0] is None else where[0][1:]
        if start + length <= len(taken) and not taken[start : start + length].any():
            taken[start : start + length] = True
            chosen[where] = rows[where]
    return chosen


def add(tensors: Tensors, bases: list[str], spelling: str, up: Tensor, down: Tensor) -> None:
    """Add the factors of one module under the base that a spelling has for it."""
    starts = BEGINNINGS[spelling]
    base = next((base for start in starts for base in bases if base.startswith(start)), bases[0])
    if spelling == "kohya":
        tensors[f"{base}.lora_up.weight"] = up
        tensors[f"{base}.lora_down.weight"] = down
        tensors[f"{base}.alpha"] = torch.tensor(float(down.shape[0]))
        return
    tensors[f"{base}.lora_B.weight"] = up
    tensors[f"{base}.lora_A.weight"] = down


def hash_of(text: str) -> int:
    return sum(i * ord(letter) for i, letter in enumerate(text, 1)) % 100_003


def loaded(
    host: ComfyModel, name: str, tensors: Tensors, prompt: str, strength: float = 1.0, **more: Any
) -> LoadedLora:
    use = LoraUse(
        name=name,
        file=f"{name}.safetensors",
        sha256=name,
        strength_model=strength,
        strength_clip=strength,
        prompts=(prompt,),
        **more,
    )
    return LoadedLora(use, host.adapter(use, tensors, {}))


class Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextlib.contextmanager
def messages() -> Iterator[list[str]]:
    handler = Messages()
    logging.getLogger().addHandler(handler)
    try:
        yield handler.texts
    finally:
        logging.getLogger().removeHandler(handler)


def stock(model: Any, clip: Any, tensors: Tensors, start: Any = None) -> ComfyModel:
    """Return the model with a LoRA that the host's own loader has put on it."""
    with messages() as texts:
        patched = comfy.sd.load_lora_for_models(model, clip, dict(tensors), 1.0, 1.0)
    lost = [text for text in texts if "not loaded" in text.lower()]
    assert not lost, lost[:3]
    return ComfyModel(*patched, start=start)


def taken_off(host: ComfyModel, carrying: ComfyModel) -> LoadedLora:
    """Return the one LoRA that a model carries, taken off it."""
    patches = patches_of(carrying.model, carrying.clip)
    [taken], rest = take_off(patches, is_text, host.keys.bases_of)
    assert not rest, list(rest)[:3]
    return loaded(host, "taken off", taken.tensors, "x")


def prompt_of(host: ComfyModel, caption: str, adapter: Adapter | None = None) -> Encoded:
    """Return a caption as rows that wear an adapter encode it."""
    rows = host.tokenize(caption)
    outputs: list[Any] = []
    if rows:
        with host.text_encoder() as network:
            worn = [] if adapter is None else [adapter.split(host.is_text_module)[0]]
            with wearing(network.modules, worn, [{0: 1.0} if worn else {}] * len(rows)):
                outputs = list(network.forward(rows))
    return host.encoded(caption, outputs)


def shape_of(host: ComfyModel, resolution: int = SMALL.resolution) -> tuple[int, ...]:
    return host.latent_shape(resolution, host.family.measured_frames)


def picture_of(host: ComfyModel, prompt: Encoded, adapter: Adapter | None = None) -> Tensor:
    """Return the clean latents that rows that wear an adapter estimate."""
    shape = shape_of(host)
    sigmas = host.sigmas(4).float()
    with host.denoiser() as network:
        worn = [] if adapter is None else [adapter.split(host.is_text_module)[1]]
        rows = [
            DenoiserRow(host.start(noise(shape, seed)[None], sigmas[seed])[0], sigmas[seed], prompt)
            for seed in (0, 2)
        ]
        mixes = [{0: 1.0} if worn else {}] * 2
        with wearing(network.modules, worn, mixes, folds_rows=network.folds_rows):
            return network.forward(rows)


def seen(host: ComfyModel, adapter: Adapter | None = None) -> Tensor:
    """Return what a model draws of a caption; with an adapter, as its hooked rows draw."""
    return picture_of(host, prompt_of(host, CAPTION, adapter), adapter)


def same_tensors(a: Tensors, b: Tensors) -> bool:
    """Whether all tensors are bit-equal."""
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def relative(found: Tensor, expected: Tensor, base: Tensor) -> float:
    return ((found - expected).norm() / (expected - base).norm()).item()


def largest_difference(a: Adapter, b: Adapter) -> float:
    assert set(a.deltas) == set(b.deltas), set(a.deltas) ^ set(b.deltas)
    return max(
        (
            (a.deltas[path].dense() - b.deltas[path].dense()).norm() / b.deltas[path].dense().norm()
        ).item()
        for path in a.deltas
    )


def sampling_difference(host: ComfyModel) -> float:
    """Return how far our sampling runs are from KSampler's euler, from the same noise; without
    guidance at pure noise.
    """
    positive, negative = (prompt_of(host, caption) for caption in (CAPTION, ""))
    calibration = SMALL.for_family(host.family)
    with host.denoiser() as network:
        sampler = Sampler.of(host, network, calibration)
        sampler = replace(sampler, sigmas=host.sigmas(calibration.sampling_steps).float().cpu())
        every = tuple(range(calibration.sampling_steps))
        run = Run("a", 0, 5, every, every, first=5)
        ours = sampler.sample([], {run: [Part({}, positive, negative)]}, 2).kept[run]
    start = conditions_for(host.row.start, host.start_picture, torch.zeros(1, *sampler.shape))
    theirs = []
    unit = noise(sampler.shape, 5)[None]
    first = float(sampler.sigmas[0])

    def unguided_at_first(given: dict[str, Any]) -> torch.Tensor:
        is_first = math.isclose(float(given["sigma"].max()), first, rel_tol=1e-5)
        return given["cond_denoised"] if is_first else given["denoised"]

    model = host.model.clone()
    model.set_model_sampler_post_cfg_function(unguided_at_first)
    comfy.sample.sample(
        model,
        unit,
        calibration.sampling_steps,
        calibration.cfg,
        "euler",
        "normal",
        *([[prompt.tokens[None], {**prompt.others, **start}]] for prompt in (positive, negative)),
        torch.zeros_like(unit),
        callback=lambda step, x0, x, steps: theirs.append(x[0].clone()),
        disable_pbar=True,
        seed=5,
    )
    return max(((x - y).norm() / y.norm()).item() for (x, _), y in zip(ours, theirs, strict=True))


def on_turbo(model: Any, clip: Any, host: ComfyModel, first: LoadedLora) -> float:
    """Return how far one LoRA is from itself, merged without guidance on a model that carries
    another one, as turbo and Lightning LoRAs are carried.
    """
    carrying = stock(model, clip, lora_of(host, 3, "kohya"))
    plain = Calibration(**{**vars(SMALL), "preserve_weight": 0.0, "cfg": 1.0})
    merged = merge_diffusion(Job.of(carrying, [first], plain, MergeSettings(EXACT)))
    return largest_difference(merged.adapter, first.adapter)


def held_by_rows(host: ComfyModel, adapter: Adapter) -> dict[str, int]:
    """Return the bytes that two rows hold while they wait at each layer, all of them counted."""
    with host.denoiser() as network:
        sampler = Sampler.of(host, network, SMALL.for_family(host.family))
        prompt = prompt_of(host, CAPTION, None)
        row = DenoiserRow(noise(sampler.shape, 0), sampler.sigmas[0], prompt)
        paths = [path for path in adapter.deltas if path in network.modules]
        everything = Parking(
            network.modules.values(), budget=sys.maxsize, store=HostMemory(), smallest=1
        )
        return held_bytes(network, [row, row], paths, everything)


def room_on_a_card(host: ComfyModel, adapter: Adapter, free: int, to_load: int) -> Room:
    """Return how the host shares out a card with so many bytes free beside the whole model, of
    which so many are not loaded yet.
    """
    device = types.SimpleNamespace(type="cuda")
    loaded = host.model.model_size() - to_load
    with (
        mock.patch.object(host.model, "load_device", device),
        mock.patch.object(host.model, "loaded_size", lambda: loaded),
        mock.patch("comfy.model_management.get_free_memory", lambda device: free + to_load),
    ):
        return host.make_room(
            shape_of(host),
            90,
            lambda modules, _: largest_layer(modules, [adapter], 3, EXACT, torch.device("cpu")),
        )


def parked(host: ComfyModel, loras: list[LoadedLora]) -> dict[str, int]:
    """Merge while all rows that wait are in a file, and count what was written and what is the same
    bit for bit as with room for all of them.
    """
    written: list[int] = []
    write = PagedFile.write

    def noted(file: PagedFile, storage: torch.UntypedStorage) -> Any:
        written.append(storage.nbytes())
        return write(file, storage)

    def merged(**settings: Any) -> Adapter:
        config = MergeSettings(replace(EXACT, **settings))
        return merge_diffusion(Job.of(host, loras, SMALL, config)).adapter

    expected = merged()
    with (
        mock.patch.object(PagedFile, "write", noted),
        mock.patch.object(sweep, "Parking", functools.partial(Parking, smallest=1)),
    ):
        found = merged(waiting_bytes=0)
    same = [torch.equal(delta.up, found.deltas[path].up) for path, delta in expected.deltas.items()]
    return {"written": len(written), "same": sum(same)}


def saved_prediction(model: Any, clip: Any, sampling: str = "") -> str | None:
    """Return what a file of a model says that it predicts; on a model that ComfyUI's node
    ModelSamplingDiscrete has changed, if a kind of sampling is named.
    """
    if sampling:
        node = comfy_extras.nodes_model_advanced.ModelSamplingDiscrete()
        [model] = node.patch(model, sampling, zsnr=True)
    _, metadata = kohya.file_of(Adapter("x", {}), ComfyModel(model, clip).keys, {})
    return metadata.get("modelspec.prediction_type")


def misread_streams(host: ComfyModel) -> list[str]:
    """Return layers whose tokens are not what scenes take them for, by the numbers of tokens that
    they see of two texts and of two sizes of a picture.
    """
    if host.picture_tokens is None:
        return []
    short, long = CAPTION, " ".join([CAPTION] * 60)
    first, other_text, other_picture = (
        tokens_seen(host, caption, resolution)
        for caption, resolution in ((short, 128), (long, 128), (short, 256))
    )
    pictures = math.prod(shape_of(host)[1:]) // host.picture_tokens.patch**2
    wrong = []
    for path, tokens in first.items():
        sees_text = tokens != other_text[path]
        sees_picture = tokens != other_picture[path]
        if not sees_text and not sees_picture:
            continue
        is_text = host._stream(path) == TEXT_STREAM
        if is_text == sees_picture or (sees_picture and tokens < pictures):
            wrong.append(path)
    return wrong


def tokens_seen(host: ComfyModel, caption: str, resolution: int) -> dict[str, int]:
    """Return how many tokens each linear layer of the diffusion model sees."""
    seen_by: dict[str, int] = {}
    with host.denoiser() as network, contextlib.ExitStack() as hooks:
        for path, module in network.modules.items():
            if isinstance(module, nn.Linear):

                def count(_: nn.Module, args: Any, output: Tensor, path: str = path) -> None:
                    seen_by[path] = args[0].shape[1:-1].numel()

                hooks.callback(module.register_forward_hook(count).remove)
        shape = shape_of(host, resolution)
        network.forward([DenoiserRow(noise(shape, 0), host.sigmas(4)[1], prompt_of(host, caption))])
    return seen_by


def polished_together(host: ComfyModel, *loras: LoadedLora) -> dict[str, Any]:
    """Merge two subjects that one picture shows, with a polish, as a host does: in inference
    mode.
    """
    named = [
        replace(lora, use=replace(lora.use, trigger=f"a {word} thing", kind="subject"))
        for lora, word in zip(loras, ("sks", "zwx"), strict=True)
    ]
    calibration = Calibration(
        **{**vars(SMALL), "timesteps": 1, "held_out": 0, "scene_weight": 0.3, "polish": 2}
    )
    settings = MergeSettings(MergeConfig(output_dtype=torch.float32, samples_per_chunk=2))
    results = []
    for changed in (calibration, calibration, replace(calibration, polish=0)):
        result = merge_diffusion(Job.of(host, named, changed, settings))
        results.append(result.adapter)
    modules = host.model.model.modules()
    return {
        "again": largest_difference(results[0], results[1]),
        "moved": largest_difference(results[0], results[2]),
        "hooks": sum(len(module._forward_hooks) for module in modules),
    }


def check(name: str) -> dict[str, Any]:
    host = tiny_hosts.host_of(name)
    model, clip, start = host.model, host.clip, host.start_picture
    base = seen(host)
    files = {spelling: lora_of(host, 1, spelling) for spelling in BEGINNINGS}
    first = loaded(host, "first", files["diffusers"], "a photo of sks dog")
    assert not first.adapter.unmatched, first.adapter.unmatched[:3]
    second = loaded(host, "second", lora_of(host, 2, "kohya"), "a drawing of zwx car")
    found: dict[str, Any] = {"layers": len(first.adapter.deltas)}
    of_kohya = loaded(host, "kohya", files["kohya"], "x").adapter
    found["spellings"] = largest_difference(of_kohya, first.adapter)
    taught = seen(host, first.adapter)
    held = held_by_rows(host, first.adapter)
    _, of_denoiser = first.adapter.split(host.is_text_module)
    assert set(held) == set(of_denoiser.deltas)
    found["held"] = [min(held.values()), max(held.values())]
    size = host.model.model_size()
    found["rooms"] = [
        asdict(room_on_a_card(host, first.adapter, free, to_load))
        for free, to_load in ((1 << 40, size), (0, size), (0, 0))
    ]
    host.memory_required = 0.0
    carrying = stock(model, clip, files["diffusers"], start)
    found["stock"] = relative(seen(carrying), taught, base)
    found["taken off"] = largest_difference(taken_off(host, carrying).adapter, first.adapter)
    found["unread"] = [
        base
        for weight, parts in bases_of(host).items()
        if weight.removesuffix(".weight") in host.keys.shapes
        for bases in parts.values()
        for base in bases
        if host.keys.place_of(base) is None
    ]
    alone = Calibration(**{**vars(SMALL), "preserve_weight": 0.0})
    single = merge_diffusion(Job.of(host, [first], alone, MergeSettings(EXACT)))
    found["to itself"] = largest_difference(single.adapter, first.adapter)
    found["predicts"] = saved_prediction(model, clip)
    if name == "SD1.5":
        found["parked"] = parked(host, [first, second])
    if name == "SDXL":
        found["predicts by a node"] = saved_prediction(model, clip, "v_prediction")
    if name in ("SDXL", "Z-Image"):
        found["on turbo"] = on_turbo(model, clip, host, first)
    settings = MergeSettings(MergeConfig(output_dtype=torch.float32, samples_per_chunk=2))
    more = Calibration(**{**vars(SMALL), "trajectories": 4, "held_out": 1})
    result = merge_and_check(Job.of(host, [first, second], more, settings))
    assert set(result.adapter.deltas) == set(target_layers([first.adapter, second.adapter]))
    found["errors"] = [entry.output_error for entry in result.report.fidelity]
    found["kinds"] = [entry.kind for entry in result.report.fidelity]
    hooked = seen(host, result.adapter)
    file, metadata = kohya.file_of(result.adapter, host.keys)
    found["metadata"] = metadata
    found["file"] = relative(seen(stock(model, clip, file, start)), hooked, base)
    found["patched"] = relative(
        seen(ComfyModel(*host.patched(result.adapter), start=start)), hooked, base
    )
    again = loaded(host, "merged", file, "x").adapter
    found["read again"] = largest_difference(again, result.adapter)
    found["sampling"] = sampling_difference(host)
    found["misread"] = [] if start else misread_streams(host)
    if not host.has_text_layers and not start and name not in WITHOUT_GRADIENT:
        found["polished"] = polished_together(host, first, second)
    found["unchanged"] = relative(seen(host), base, torch.zeros_like(base))
    return found


def check_or_tell(name: str) -> dict[str, Any]:
    try:
        return {"family": name, **check(name)}
    except Exception:
        return {"family": name, "failed": traceback.format_exc()}


if __name__ == "__main__":
    in_comfy.tell(map(check_or_tell, in_comfy.ARGUMENTS or tiny_hosts.TINY))
