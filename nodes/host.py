"""The one file that touches ComfyUI's insides: models, LoRA files, patches, progress, paths."""

from __future__ import annotations

import os
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
from torch import Tensor

from ..iteris_core import Adapter, AdapterError, IterisError, Network
from ..iteris_core.families.diffusion_samples import IMAGE_STREAM, TEXT_STREAM, UnetRow
from ..iteris_core.formats import kohya
from ..iteris_core.formats.files import read_tensors
from ..iteris_core.layers import weight_shape

_TEXT_PREFIX, _UNET_PREFIX = "clip_l.", "diffusion_model."
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
        kind = type(model.model.model_config)
        if kind is not comfy.supported_models.SD15:
            raise IterisError(f"the MODEL is a {kind.__name__} model; IterIS merges LoRAs of SD1.5. Load an SD1.5 checkpoint")
        if clip is None:
            raise IterisError("the CLIP input is empty: this checkpoint has no text encoder. Load one with a CLIP loader")
        self.model, self.clip = model.clone(), clip.clone()

    def is_text_module(self, path: str) -> bool:
        return path.startswith(_TEXT_PREFIX)

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
        comfy.model_management.load_models_gpu([model])
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

    def samples_per_chunk(self, resolution: int) -> int:
        """Return how many samples (two rows each) fit into a quarter of the free memory; the rest is for waiting chunks."""
        side = resolution // 8
        free = comfy.model_management.get_free_memory(self.model.load_device) / 4
        fitting = [
            n for n in range(1, _MOST_SAMPLES_PER_CHUNK + 1) if self.model.memory_required([2 * n, 4, side, side]) < free
        ]
        return max(fitting, default=1)

    @cached_property
    def _host_keys(self) -> dict[str, str]:
        keys = comfy.lora.model_lora_keys_unet(self.model.model, {})
        return comfy.lora.model_lora_keys_clip(self.clip.cond_stage_model, keys)

    @cached_property
    def _module_of_base(self) -> dict[str, str]:
        """Key base -> module path: the host's spellings, and those of PEFT and diffusers that it does not know."""
        bases = {base: key.removesuffix(".weight") for base, key in self._host_keys.items() if isinstance(key, str)}
        for key, path in comfy.utils.unet_to_diffusers(self.model.model.model_config.unet_config).items():
            for prefix in ("", "unet.", "base_model.model.", "base_model.model.unet."):
                bases[prefix + key.removesuffix(".weight")] = _UNET_PREFIX + path.removesuffix(".weight")
        text = f"{_TEXT_PREFIX}transformer."
        for path, _ in self.clip.cond_stage_model.named_modules(prefix=""):
            if path.startswith(text):
                for prefix in ("", "base_model.model.", "base_model.model.text_encoder."):
                    bases[prefix + path.removeprefix(text)] = path
        return bases

    @cached_property
    def _modules(self) -> dict[str, torch.nn.Module]:
        return dict(self.model.model.named_modules()) | dict(self.clip.cond_stage_model.named_modules())

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, int]]:
        shapes = {}
        for path, module in self._modules.items():
            try:
                shapes[path] = weight_shape(module)
            except AdapterError:  # no target layer, so no adapter may change it
                continue
        return shapes

    @cached_property
    def _kernels(self) -> dict[str, tuple[int, int]]:
        return {path: module.kernel_size for path, module in self._modules.items() if isinstance(module, torch.nn.Conv2d)}

    def read_lora(self, path: Path, strength_model: float, strength_clip: float) -> Adapter:
        """Read a LoRA file for this model, at strengths; a part of strength 0 changes nothing.

        Raises:
            AdapterError: See `kohya.parse`.
        """
        tensors, metadata = read_tensors(path)
        sizes = {
            f"{module}.{name}": parameter.numel()
            for module, owner in self._modules.items()
            for name, parameter in owner.named_parameters(recurse=False)
            if parameter.ndim == 1
        }
        dense = _HostDeltas(self, path.stem, tensors, strength_model, strength_clip)
        adapter = kohya.parse(
            path.stem, tensors, self._module_of_base, self._shapes, metadata, vector_sizes=sizes, dense_delta=dense
        )
        unet = adapter.select(lambda part: not self.is_text_module(part)).scaled(strength_model)
        return unet.joined_with(adapter.select(self.is_text_module).scaled(strength_clip))

    def effective_weight(self, path: str) -> Tensor:
        """Return a weight as the base model uses it, float32 on the CPU, patches that it already carries included."""
        patcher = self.clip.patcher if self.is_text_module(path) else self.model
        key = f"{path}.weight"
        (weight, convert), *patches = patcher.get_key_patches(key)[key]
        weight = convert(weight.to(device="cpu", dtype=torch.float32, copy=True), inplace=True)
        return comfy.lora.calculate_weight(patches, weight, key)

    def patched(self, adapter: Adapter) -> tuple[Any, Any]:
        """Return clones of MODEL and CLIP that carry the adapter, as the stock LoraLoader would patch them."""
        model, clip = self.model.clone(), self.clip.clone()
        _patch(model, adapter.select(lambda path: not self.is_text_module(path)))
        _patch(clip, adapter.select(self.is_text_module))
        return model, clip

    def kohya_tensors(self, adapter: Adapter) -> dict[str, Tensor]:
        """Return the adapter under the key names that every SD1.5 program knows."""
        return kohya.to_tensors(adapter, self._base_of_module, self._kernels)

    def lora_model_tensors(self, adapter: Adapter) -> dict[str, Tensor]:
        """Return the UNet part as core's LORA_MODEL: a state dict with the model's own key names."""
        unet = adapter.select(lambda path: not self.is_text_module(path))
        return kohya.to_tensors(unet, {path: path for path in self._modules}, self._kernels)

    @cached_property
    def _base_of_module(self) -> dict[str, str]:
        diffusers = comfy.utils.unet_to_diffusers(self.model.model.model_config.unet_config)
        wanted = {"lora_unet_" + key.removesuffix(".weight").replace(".", "_") for key in diffusers}
        names = {path: base for base, path in self._module_of_base.items() if base.startswith("lora_unet_")}
        names |= {path: base for base, path in self._module_of_base.items() if base in wanted}
        return names | {path: base for base, path in self._module_of_base.items() if base.startswith("lora_te_")}


@dataclass
class _HostDeltas:
    """Dense deltas of the adapter kinds that only the host knows, made by its own classes."""

    base: ComfyStableDiffusion
    name: str
    tensors: Mapping[str, Tensor]
    strength_model: float
    strength_clip: float

    @cached_property
    def adapters(self) -> dict[str, Any]:
        converted = comfy.lora_convert.convert_lora(dict(self.tensors))
        return comfy.lora.load_lora(converted, self.base._host_keys, log_missing=False)

    def __call__(self, path: str) -> Tensor:
        """Return the delta of one weight per unit of strength; a DoRA's depends on the strength and on the weight."""
        strength = self.strength_clip if self.base.is_text_module(path) else self.strength_model
        adapter, key = self.adapters.get(f"{path}.weight"), f"{path}.weight"
        if adapter is None:
            raise AdapterError(f"{self.name}: ComfyUI does not read the tensors for {path!r}; its format is unknown")
        if not strength:
            return torch.zeros(self.base._shapes[path])
        weight = self.base.effective_weight(path)
        patched = comfy.lora.calculate_weight([(strength, adapter, 1.0, None, None)], weight.clone(), key)
        if torch.equal(patched, weight):  # calculate_weight logs its errors and goes on
            raise AdapterError(f"{self.name}: ComfyUI could not apply the tensors for {path!r}; the log says why")
        return ((patched - weight) / strength).flatten(1)


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


def lora_path(name: str) -> Path:
    """Return the full path of a LoRA in ComfyUI's folders.

    Raises:
        AdapterError: No such file there.
    """
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise AdapterError(f"{name}: there is no such file in the loras folders; choose another LoRA, or refresh the list")
    return Path(path)


def file_fingerprint(name: str) -> str:
    """Return a string that changes when the file changes."""
    path = folder_paths.get_full_path("loras", name)
    if path is None or not os.path.isfile(path):
        return "missing"
    status = os.stat(path)
    return f"{status.st_mtime_ns}-{status.st_size}"


def output_path(file_name: str, overwrite: bool) -> Path:
    """Return where to save a LoRA of this name, below the output folder; a free name unless it may be overwritten.

    Raises:
        IterisError: An empty name, or one that leaves the output folder.
    """
    name = file_name.strip().removesuffix(".safetensors")
    if not name or name.endswith(("/", "\\")):
        raise IterisError("the file name is empty; write a name such as loras/my_merge")
    output = Path(folder_paths.get_output_directory()).resolve()
    wanted = (output / f"{name}.safetensors").resolve()
    if not wanted.is_relative_to(output):
        raise IterisError(f"{file_name!r} is outside ComfyUI's output folder; write a name such as loras/my_merge")
    number, path = 2, wanted
    while path.exists() and not overwrite:
        path = wanted.with_name(f"{wanted.stem}_{number:02}.safetensors")
        number += 1
    return path


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
