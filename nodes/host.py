"""The one file that touches ComfyUI's insides: models, LoRA files, patches, progress, paths."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import comfy.lora
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
from ..iteris_core.families.stable_diffusion import UnetRow
from ..iteris_core.formats import kohya
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

        yield Network(dict(self.clip.cond_stage_model.named_modules()), forward, lambda path: "text")

    @contextmanager
    def unet(self) -> Iterator[Network]:
        model = self.model
        comfy.model_management.load_models_gpu([model])
        device = model.load_device

        def forward(rows: Sequence[UnetRow]) -> Tensor:
            x = torch.stack([row.latents for row in rows]).to(device)
            sigma = torch.stack([row.sigma for row in rows]).to(device)
            context = _stack_contexts([row.context for row in rows]).to(device)
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
    def _module_of_base(self) -> dict[str, str]:
        keys = comfy.lora.model_lora_keys_unet(self.model.model, {})
        keys = comfy.lora.model_lora_keys_clip(self.clip.cond_stage_model, keys)
        return {
            base: key.removesuffix(".weight") for base, key in keys.items() if isinstance(key, str) and key.endswith(".weight")
        }

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, int]]:
        modules = [*self.model.model.named_modules(), *self.clip.cond_stage_model.named_modules()]
        shapes = {}
        for path, module in modules:
            try:
                shapes[path] = weight_shape(module)
            except AdapterError:  # no target layer, so no adapter may change it
                continue
        return shapes

    def read_lora(self, path: Path) -> Adapter:
        """Read a LoRA file for this model; raises AdapterError."""
        return kohya.load(path, self._module_of_base, self._shapes)

    def patched(self, adapter: Adapter) -> tuple[Any, Any]:
        """Return clones of MODEL and CLIP that carry the adapter, as the stock LoraLoader would patch them."""
        model, clip = self.model.clone(), self.clip.clone()
        text = adapter.select(self.is_text_module)
        _patch(model, adapter.select(lambda path: not self.is_text_module(path)))
        _patch(clip, text)
        return model, clip

    def kohya_tensors(self, adapter: Adapter) -> dict[str, Tensor]:
        """Return the adapter under the key names that every SD1.5 program knows."""
        convolutions = {path for path, module in self.model.model.named_modules() if isinstance(module, torch.nn.Conv2d)}
        return kohya.to_tensors(adapter, self._base_of_module, convolutions)

    @cached_property
    def _base_of_module(self) -> dict[str, str]:
        diffusers = comfy.utils.unet_to_diffusers(self.model.model.model_config.unet_config)
        wanted = {"lora_unet_" + key.removesuffix(".weight").replace(".", "_") for key in diffusers}
        names = {path: base for base, path in self._module_of_base.items() if base.startswith("lora_unet_")}
        names |= {path: base for base, path in self._module_of_base.items() if base in wanted}
        return names | {path: base for base, path in self._module_of_base.items() if base.startswith("lora_te_")}


def lora_model_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """Return the UNet part as core's LORA_MODEL: a state dict with the model's own key names."""
    unet = adapter.select(lambda path: path.startswith(_UNET_PREFIX))
    return kohya.to_tensors(unet, {path: path for path in unet.deltas})


def _patch(patcher: Any, adapter: Adapter) -> None:
    patches = {
        f"{path}.weight": comfy.weight_adapter.LoRAAdapter(set(), (delta.up, delta.down, float(delta.rank), None, None, None))
        for path, delta in adapter.deltas.items()
    }
    missing = set(patches) - set(patcher.add_patches(patches, 1.0))
    if missing:
        raise IterisError(f"ComfyUI did not accept patches for {len(missing)} weights, such as {min(missing)!r}")


def _unet_stream(path: str) -> str:
    return "text" if path.endswith(("attn2.to_k", "attn2.to_v")) else "image"


def _stack_contexts(contexts: Sequence[Tensor]) -> Tensor:
    """Stack contexts of different lengths by repeating the shorter ones, as ComfyUI does: attention is the same."""
    tokens = math.lcm(*(context.shape[0] for context in contexts))
    return torch.stack([context.repeat(tokens // context.shape[0], 1) for context in contexts])


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
