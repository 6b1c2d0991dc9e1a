"""The one file that touches ComfyUI's insides: models, LoRA files, patches, progress, paths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import comfy.utils
import comfy.weight_adapter
import folder_paths
import torch
from comfy.cli_args import args
from torch import Tensor

from ..iteris_core import Adapter, AdapterError, IterisError, Network
from ..iteris_core.families.diffusion_samples import IMAGE_STREAM, TEXT_STREAM, UnetRow
from ..iteris_core.formats import kohya
from ..iteris_core.formats.factors import peft_dora
from ..iteris_core.formats.files import read_tensors
from .foreign import added_by_host
from .keys import TEXT_PREFIX, ModelKeys, model_keys

_LATENT_CHANNELS = 4
_MOST_SAMPLES_PER_CHUNK = 8


class ComfyStableDiffusion:
    """A MODEL and a CLIP as the core's `StableDiffusion`. Patches that they already carry belong to the base model.

    Args:
        model: ModelPatcher of an SD1.5 UNet; never changed.
        clip: Its CLIP; never changed.

    Raises:
        IterisError: Another kind of model.
    """

    def __init__(self, model: Any, clip: Any) -> None:
        _check_model(model)
        _check_clip(clip)
        self.model, self.clip, self.memory_required = model.clone(), clip.clone(), 0.0

    def is_text_module(self, path: str) -> bool:
        return path.startswith(TEXT_PREFIX)

    def tokenize(self, caption: str) -> Sequence[Any]:
        """Return a caption's pieces; emphasis is left out, since it would add rows of its own to the batch."""
        return [[(token, 1.0) for token, *_ in piece] for piece in self.clip.tokenize(caption)["l"]]

    @contextmanager
    def text_encoder(self) -> Iterator[Network]:
        def forward(pieces: Sequence[Any]) -> Tensor:
            contexts = self.clip.encode_from_tokens({"l": list(pieces)})  # (1, rows * 77, 768)
            return contexts.reshape(len(pieces), -1, contexts.shape[-1])

        yield Network(dict(self.clip.cond_stage_model.named_modules()), forward, lambda path: TEXT_STREAM)

    @contextmanager
    def unet(self) -> Iterator[Network]:
        model = self.model
        comfy.model_management.load_models_gpu([model], memory_required=self.memory_required)
        device = model.load_device

        def forward(rows: Sequence[UnetRow]) -> Tensor:
            x = torch.stack([row.latents for row in rows]).to(device)
            sigma = torch.stack([row.sigma for row in rows]).to(device)
            context = torch.stack([row.context for row in rows]).to(device)
            options = comfy.model_patcher.create_model_options_clone(model.model_options)["transformer_options"]
            return model.model.apply_model(x, sigma, c_crossattn=context, transformer_options=options)

        model.pre_run()
        try:
            yield Network(dict(model.model.named_modules()), forward, _unet_stream)
        finally:
            model.cleanup()

    def sigmas(self, steps: int) -> Tensor:
        return comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), "normal", steps)

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        return 4, resolution // 8, resolution // 8

    def make_room(self, resolution: int, samples: int) -> tuple[int, bool]:
        """Choose how a merge of this many samples fits on the device, and remember how much to keep free for it.

        Returns:
            Samples (two rows each) in one call, and whether those that wait must wait in host memory.
        """
        side, device = resolution // 8, self.model.load_device

        def takes(count: int) -> float:
            return self.model.memory_required([2 * count, 4, side, side])

        free = comfy.model_management.get_free_memory(device)
        at_once = max((n for n in range(1, _MOST_SAMPLES_PER_CHUNK + 1) if takes(n) < free / 4), default=1)
        park = device.type != "cpu" and takes(samples) > 0.7 * free
        self.memory_required = takes(2 * at_once if park else samples)
        return at_once, park

    @cached_property
    def keys(self) -> ModelKeys:
        modules = dict(self.model.model.named_modules()) | dict(self.clip.cond_stage_model.named_modules())
        keys = comfy.lora.model_lora_keys_unet(self.model.model, {})
        keys = comfy.lora.model_lora_keys_clip(self.clip.cond_stage_model, keys)
        return model_keys(modules, keys, comfy.utils.unet_to_diffusers(self.model.model.model_config.unet_config))

    def read_lora(self, path: Path, name: str, strength_model: float, strength_clip: float) -> Adapter:
        """Read a LoRA file for this model under a name, at strengths; a part of strength 0 changes nothing.

        Raises:
            AdapterError: See `kohya.parse`.
        """
        tensors, metadata = read_tensors(path)
        adapter = kohya.parse(
            name,
            tensors,
            self.keys.module_of_base,
            self.keys.shapes,
            metadata,
            vector_sizes=self.keys.vector_sizes,
            dense_delta=_HostDeltas(self, name, strength_model, strength_clip),
            progress=lambda done, total: comfy.model_management.throw_exception_if_processing_interrupted(),
        )
        unet = adapter.select(lambda part: not self.is_text_module(part)).scaled(strength_model)
        return unet.joined_with(adapter.select(self.is_text_module).scaled(strength_clip))

    def patched(self, adapter: Adapter) -> tuple[Any, Any]:
        """Return clones of MODEL and CLIP that carry the adapter, as the stock LoraLoader would patch them."""
        model, clip = self.model.clone(), self.clip.clone()
        _patch(model, adapter.select(lambda path: not self.is_text_module(path)))
        _patch(clip, adapter.select(self.is_text_module))
        return model, clip

    def lora_model_tensors(self, adapter: Adapter) -> dict[str, Tensor]:
        """Return the UNet part as core's LORA_MODEL: a state dict with the model's own key names."""
        unet = adapter.select(lambda path: not self.is_text_module(path))
        return kohya.to_tensors(unet, {path: path for path in self.keys.base_of_module}, self.keys.kernels)


def _check_model(model: Any) -> None:
    config = model.model.model_config
    kind = type(config)
    if kind is not comfy.supported_models.SD15:
        raise IterisError(f"the MODEL is a {kind.__name__} model; IterIS merges LoRAs of SD1.5. Load an SD1.5 checkpoint")
    channels = config.unet_config.get("in_channels", _LATENT_CHANNELS)
    if channels != _LATENT_CHANNELS:
        what = {9: "an inpainting", 8: "a picture-editing (InstructPix2Pix)"}.get(channels, "an unusual")
        raise IterisError(
            f"the MODEL is {what} checkpoint: its UNet reads {channels} channels, and calibration has the "
            f"{_LATENT_CHANNELS} of a plain SD1.5 UNet. Merge on a plain SD1.5 checkpoint; the merged LoRA works on both"
        )


def _check_clip(clip: Any) -> None:
    if clip is None:
        raise IterisError("the CLIP input is empty: this checkpoint has no text encoder. Load one with a CLIP loader")
    encoders = sorted(clip.tokenize(""))
    if not hasattr(clip.cond_stage_model, TEXT_PREFIX.rstrip(".")) or encoders != ["l"]:
        raise IterisError(
            f"the CLIP is a {type(clip.cond_stage_model).__name__} with the text encoders {', '.join(encoders)}; SD1.5 has "
            "CLIP-L alone. Connect the CLIP of an SD1.5 checkpoint, or load CLIP-L with type stable_diffusion"
        )


@dataclass
class _HostDeltas:
    """Dense deltas of the adapter kinds that only the host knows, made by its own classes; and PEFT's DoRAs."""

    base: ComfyStableDiffusion
    name: str
    strength_model: float
    strength_clip: float

    @cached_property
    def _weights(self) -> dict[str, Any]:
        return self.base.model.get_key_patches() | self.base.clip.patcher.get_key_patches()

    def __call__(self, path: str, group: Mapping[str, Tensor]) -> Tensor:
        """Return the delta of one weight per unit of strength; an OFT's depends on the strength, a DoRA's on the weight.

        Raises:
            AdapterError: The host cannot apply the tensors; with its own words.
        """
        strength = self.strength_clip if self.base.is_text_module(path) else self.strength_model
        if not strength:
            return torch.zeros(self.base.keys.shapes[path])
        key = f"{path}.weight"
        weight = self._effective_weight(key)
        if "magnitude" in group:
            return peft_dora(self.name, path, group, weight)
        tensors = kohya.tensors_of_group(path, group)

        def apply(weight: Tensor) -> Tensor | None:
            patch = comfy.lora.load_lora(tensors, {path: key}, log_missing=False).get(key)
            return None if patch is None else _apply(patch, weight, key, strength)

        return (added_by_host(self.name, path, tensors, weight, apply) / strength).flatten(1)

    def _effective_weight(self, key: str) -> Tensor:
        """Return a weight as the base model uses it, float32 on the CPU, patches that it already carries included."""
        (weight, convert), *patches = self._weights[key]
        weight = convert(weight.to(device="cpu", dtype=torch.float32, copy=True), inplace=True)
        return comfy.lora.calculate_weight(patches, weight, key)


def _apply(patch: Any, weight: Tensor, key: str, strength: float = 1.0) -> Tensor:
    return comfy.lora.calculate_weight([(strength, patch, 1.0, None, None)], weight, key)


def stock_loader(path: Path, keys: ModelKeys) -> Callable[[str, Sequence[int]], Tensor | None]:
    """Load a LoRA file as the stock LoraLoader does.

    Returns:
        (parameter path, its shape) -> what the file adds to it at strength 1; None: nothing.
    """
    tensors = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(str(path), safe_load=True))
    patches = comfy.lora.load_lora(tensors, dict(keys.host_keys), log_missing=False)

    def added(parameter: str, shape: Sequence[int]) -> Tensor | None:
        return _apply(patches[parameter], torch.zeros(*shape), parameter) if parameter in patches else None

    return added


def _patch(patcher: Any, adapter: Adapter) -> None:
    patches = {
        f"{path}.weight": comfy.weight_adapter.LoRAAdapter(set(), (delta.up, delta.down, float(delta.rank), None, None, None))
        for path, delta in adapter.deltas.items()
    }
    patches |= {parameter: ("diff", (vector,)) for parameter, vector in adapter.vectors.items()}
    missing = set(patches) - set(patcher.add_patches(patches, 1.0))
    if missing:
        raise IterisError(f"ComfyUI did not accept patches for {len(missing)} weights, such as {min(missing)!r}")


def _unet_stream(path: str) -> str:
    return TEXT_STREAM if path.endswith(("attn2.to_k", "attn2.to_v")) else IMAGE_STREAM


def lora_names() -> list[str]:
    return folder_paths.get_filename_list("loras")


def find_lora(name: str) -> Path | None:
    """Return the full path of a LoRA in ComfyUI's folders; None: there is no such file."""
    path = folder_paths.get_full_path("loras", name)
    return None if path is None else Path(path)


def lora_path(name: str) -> Path:
    """Return the full path of a LoRA in ComfyUI's folders.

    Raises:
        AdapterError: No such file there.
    """
    path = find_lora(name)
    if path is None:
        raise AdapterError(f"{name}: there is no such file in the loras folders; choose another LoRA, or refresh the list")
    return path


def output_folder() -> Path:
    return Path(folder_paths.get_output_directory())


def saves_metadata() -> bool:
    """Whether files may tell how they were made; the user can start ComfyUI with --disable-metadata."""
    return not args.disable_metadata


def stage_progress(node_id: str) -> Callable[[str, int, int], None]:
    """Return a progress callback that shows the stage's name on the node and its steps in the node's bar."""
    from server import PromptServer

    bars: dict[str, comfy.utils.ProgressBar] = {}

    def show(stage: str, done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if stage not in bars:
            bars[stage] = comfy.utils.ProgressBar(total)
        PromptServer.instance.send_progress_text(f"{stage} {done}/{total}", node_id)
        bars[stage].update_absolute(done, total)

    return show
