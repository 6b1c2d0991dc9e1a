"""A MODEL and a CLIP with the interface that the core expects."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import comfy.conds
import comfy.lora
import comfy.samplers
import comfy.utils
import comfy.weight_adapter
import torch
from torch import Tensor

from ...iteris_core import Adapter, AdapterError, Network
from ...iteris_core.diffusion import proof
from ...iteris_core.diffusion.lora_use import LoraUse
from ...iteris_core.diffusion.model import (
    DenoiserRow,
    Encoded,
    PatchedWeight,
    PictureTokens,
    stream_of,
)
from ...iteris_core.files import kohya
from ...iteris_core.files.block_weights import layer_weights
from ...iteris_core.files.families import Family
from ...iteris_core.memory import LayerBytes, Room, share_out
from ...iteris_core.network import TEXT_STREAM
from ..keys import HostKeys, HostWeight, is_text, model_keys
from .checks import check_callable, check_clip, patch_of, row_of, trial
from .conditions import REFERENCES, check_start, conditions_for
from .deltas import HostDeltas, patched_weights
from .memory import bytes_to_have, evictable_bytes
from .patches import (
    add_adapter,
    converted,
    misread_by_host,
    patches_of_file,
)
from .sampling_options import conds_of, prediction_type, sampling_options
from .server import heed_cancel
from .text_encoders import TextEncoders

_MOST_SAMPLES_PER_CALL = 16  # fewer leave a GPU waiting for starts of operations
_ON_CPU = 8
_EDITING = re.compile(r"kontext|(?<![a-z])edit(?![a-z])", re.IGNORECASE)
# How ai-toolkit begins the keys of a file with LoRAs for both of Wan 2.2's models.
_OF_TWO = re.compile(r"(?:^|\.)transformer_[12]\.")
Modules = Mapping[str, torch.nn.Module]
TakenByLayers = Callable[[Modules, torch.device], Mapping[str, LayerBytes]]


class ComfyModel:
    """A MODEL and a CLIP as the core's `DiffusionHost`. Patches that they already carry belong to
    the base model.

    Args:
        model: ModelPatcher; never changed.
        clip: CLIP of the same model; never changed.
        start: What it reads of pictures, see `conditions.start_of`.
        room: How a merge shares out the device's memory; None: none does.
        of_texts: Bytes that the merge of the text encoders takes besides their weights.

    Attributes:
        given: The MODEL and the CLIP themselves, of which it has clones.

    Raises:
        IterisError: Another kind of model, or pictures that it does not read.
    """

    def __init__(
        self,
        model: Any,
        clip: Any,
        *,
        start: Mapping[str, Any] | None = None,
        room: Room | None = None,
        of_texts: float = 0.0,
    ) -> None:
        self.row = row_of(model)
        check_callable(model)
        check_clip(clip, self.row)
        self.given = (model, clip)
        self.model = model.clone()
        self.clip = clip.clone()
        self.texts = TextEncoders(self.clip, self.row.swept, of_texts)
        self.start_picture = start or {}
        check_start(self.start_picture, self.row)
        self.room = room
        self._call_keys: WeakKeyDictionary[Encoded, Hashable] = WeakKeyDictionary()

    @property
    def family(self) -> Family:
        return self.row.family

    @property
    def references(self) -> int:
        """How many pictures to edit are read beside each text."""
        return len(self.start_picture.get(REFERENCES, ()))

    def is_for_editing(self, texts: Iterable[str]) -> bool:
        """Whether a MODEL edits pictures, as far as its settings and names of files tell."""
        settings = self.model.model.model_config.unet_config
        return self.row.edits and (
            settings.get("default_ref_method") == "index_timestep_zero"
            or any(_EDITING.search(text) for text in texts)
        )

    @property
    def has_text_layers(self) -> bool:
        return bool(self.row.text_layers)

    @cached_property
    def picture_tokens(self) -> PictureTokens | None:
        if self.has_text_layers:
            return None
        model = self.model.model.diffusion_model
        multiple = getattr(model, "pad_tokens_multiple", None) or 1
        return PictureTokens(
            patch_of(model), self.texts.length, multiple, self.row.picture_comes_first
        )

    def is_text_module(self, path: str) -> bool:
        return is_text(path)

    def tokenize(self, caption: str) -> Sequence[Any]:
        return self.texts.tokenize(caption)

    def token_positions(self, text: str) -> Sequence[int]:
        return self.texts.token_positions(text)

    def text_encoder(self) -> AbstractContextManager[Network]:
        return self.texts.open()

    def encoded(self, caption: str, outputs: Sequence[Any]) -> Encoded:
        return self.texts.encoded(caption, outputs)

    @property
    def modules(self) -> Modules:
        """The modules of the diffusion model, by the paths that LoRAs change."""
        return dict(self.model.model.named_modules())

    @contextmanager
    def denoiser(self, levels: int) -> Iterator[Network]:
        model = self.model
        device = model.load_device
        room = self.room
        required = room.required if room else 0.0
        with sampling_options(model, self.clip, self.sigmas(levels), required) as options:

            def forward(rows: Sequence[DenoiserRow]) -> Tensor:
                heed_cancel()
                x = torch.stack([row.latents for row in rows]).to(device)
                sigma = torch.stack([row.sigma for row in rows]).to(device)
                with trial(self.family):
                    conds = comfy.samplers.cond_cat([self._conds(row, x[:1]) for row in rows])
                    conds["transformer_options"] = options.of_call(rows, sigma)
                    return options.run(lambda: model.model.apply_model(x, sigma, **conds))

            # some models find the next noise level by the options, and an untested one may
            reads_levels = model.model.model_config.unet_config.get("meanflow", False)
            has_one_level = options.are_read or reads_levels or not self.family.is_tested

            def call_key(row: DenoiserRow) -> Hashable:
                return row.sigma.item() if has_one_level else None, self._call_key(row)

            yield Network(
                self.modules,
                forward,
                self._stream,
                call_key,
                lambda path: any(part in path for part in self.row.folded),
                evictable=lambda: evictable_bytes(device),
                worn_bytes=room.worn_bytes if room else math.inf,
            )

    def _conds(self, row: DenoiserRow, x: Tensor) -> dict[str, Any]:
        beside = conditions_for(self.row.start, self.start_picture, x)
        return conds_of(self.model, row, beside, x)

    def _call_key(self, row: DenoiserRow) -> Hashable:
        """Return what rows of one call have in common: sizes, and what is constant in a call."""
        if row.prompt not in self._call_keys:
            x = row.latents[None].to(self.model.load_device)
            self._call_keys[row.prompt] = tuple(
                (name, *cond.size(), repr(cond.cond))
                if isinstance(cond, comfy.conds.CONDConstant)
                else (name, *cond.size())
                for name, cond in self._conds(row, x).items()
            )
        return self._call_keys[row.prompt]

    def _stream(self, path: str) -> str:
        if self.row.reads_text and re.search(self.row.reads_text, path):
            return TEXT_STREAM
        return stream_of(path, self.row.text_layers)

    def sigmas(self, steps: int) -> Tensor:
        sampling = self.model.get_model_object("model_sampling")
        sigmas: Tensor = comfy.samplers.calculate_sigmas(sampling, "normal", steps)
        return sigmas

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        sampling = self.model.get_model_object("model_sampling")
        zeros = torch.zeros_like(noise)
        start: Tensor = sampling.noise_scaling(sigma, noise, zeros, max_denoise=True)
        return start

    def noised(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        sampling = self.model.get_model_object("model_sampling")
        noised: Tensor = sampling.noise_scaling(sigma, noise, clean)
        return noised

    def latent_shape(self, resolution: int, frames: int = 1) -> tuple[int, ...]:
        return self.shape_of_picture(resolution, resolution, frames)

    def shape_of_picture(self, width: int, height: int, frames: int = 1) -> tuple[int, ...]:
        """Return the shape of the latents of a picture or video whose sides are in pixels."""
        latents = self.model.get_model_object("latent_format")
        length = (self.family.latent_frames(frames),) * (latents.latent_dimensions - 2)
        sides = (height // self.row.downscale, width // self.row.downscale)
        return latents.latent_channels, *length, *sides

    def make_room(
        self, shape: Sequence[int], samples: int, takes: TakenByLayers
    ) -> tuple[Room, ComfyModel]:
        """Share out the device's memory for a merge. Return how, and this model when it keeps that
        much free.

        Args:
            shape: (channels, ..., height, width) of the latents.
            samples: Samples of the merge.
            takes: Modules, device -> what each layer takes.
        """
        device = self.model.load_device
        to_load = self.model.model_size() - self.model.loaded_size()
        texts = self.clip.patcher
        of_texts = takes(dict(texts.model.named_modules()), texts.load_device)
        room = share_out(
            # the MODEL's own question adds a large reserve where ComfyUI loads weights on demand
            lambda count: self.model.model.memory_required(
                input_shape=[2 * count * (1 + self.references), *shape]
            ),
            samples,
            _ON_CPU if device.type == "cpu" else _MOST_SAMPLES_PER_CALL,
            bytes_to_have(self.model) - to_load,
            LayerBytes.most(takes(self.modules, device).values()),
        )
        texts_take = LayerBytes.most(of_texts.values()).beside(0)
        start = self.start_picture
        return room, ComfyModel(*self.given, start=start, room=room, of_texts=texts_take)

    @cached_property
    def keys(self) -> HostKeys:
        modules = dict(self.model.model.named_modules()) | dict(
            self.clip.cond_stage_model.named_modules()
        )
        keys = comfy.lora.model_lora_keys_unet(self.model.model, {})
        keys = comfy.lora.model_lora_keys_clip(self.clip.cond_stage_model, keys)
        return model_keys(
            self.family,
            modules,
            keys,
            comfy.utils.unet_to_diffusers(self.model.model.model_config.unet_config),
            prediction_type(self.model),
        )

    def adapter(
        self, use: LoraUse, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> Adapter:
        """Return a LoRA's tensors as an adapter of this model, at the strengths of its use. A part
        of strength 0 changes nothing.

        The file is read as ComfyUI's loader reads it: alphas in the metadata, which only diffusers
        reads, do not count. Changes of text encoders that are never merged are left out.

        Raises:
            AdapterError: See `kohya.parse`; or it changes only such text encoders.
            ConfigError: Its block weights or left out layers do not fit this LoRA or model.
        """
        if any(map(_OF_TWO.search, tensors)):
            raise AdapterError(
                f"{use.name}: its file holds a LoRA for each of two models, Wan 2.2's for high and "
                "for low noise. Split it, and merge each part on its own model"
            )
        tensors = converted(tensors)
        merged = {
            key: tensor
            for key, tensor in tensors.items()
            if not self.texts.leaves_out(key, self.keys)
        }
        left_out = tuple(key for key in tensors if key not in merged)
        if left_out and not merged:
            raise AdapterError(
                f"{use.name}: it changes nothing but a text encoder that is never merged, with "
                f"keys such as {left_out[0]!r}. Choose a LoRA that changes the diffusion model"
            )
        adapter = kohya.parse(
            use.name,
            merged,
            self.keys,
            metadata,
            dense_delta=HostDeltas(self.model, self.clip, self.keys, self._strengths(use)),
            progress=lambda *_: heed_cancel(),
        )
        weights = layer_weights(use.name, use.blocks, use.without)
        adapter = weights.applied_to(replace(adapter, left_out=left_out))
        text, denoiser = adapter.split(self.is_text_module)
        text = text.scaled(use.strength_clip)
        return denoiser.scaled(use.strength_model).joined_with(text)

    def _strengths(self, use: LoraUse) -> Callable[[str], float]:
        """Return the strength at which a LoRA's change of a module is used."""
        weights = layer_weights(use.name, use.blocks, use.without)

        def strength_at(path: str) -> float:
            of_part = use.strength_clip if is_text(path) else use.strength_model
            return of_part * weights.of(path)

        return strength_at

    def patched(self, *adapters: Adapter) -> tuple[Any, Any]:
        """Return clones of MODEL and CLIP that carry the adapters, as stock LoraLoaders would patch
        them one after the other.
        """
        model, clip = self._clones()
        for adapter in adapters:
            keys = set(kohya.to_tensors(adapter, self.keys.base_of_module, self.keys.kernels))
            text, denoiser = adapter.split(self.is_text_module)
            add_adapter(model, denoiser, keys)
            add_adapter(clip, text, keys)
        return model, clip

    @property
    def loader(self) -> ComfyModel:
        return self

    def prove_reading(self, use: LoraUse, adapter: Adapter, tensors: Mapping[str, Tensor]) -> None:
        """Compare a LoRA as `adapter` has read it with what the stock LoraLoader makes of the same
        tensors; those that it is known to misread are left out.

        Raises:
            AdapterError: They differ, see `proof.prove_reading`; or that loader fails.
        """
        tensors = converted(tensors)
        misread = misread_by_host(tensors, self.keys)
        patches = patches_of_file(use.name, tensors, self.keys, misread)
        strength_of = self._strengths(use)
        model, clip = self._clones()
        for entry, patch in patches.items():
            module = HostWeight.of(entry).module
            strength = strength_of(module)
            if strength and (self.texts.is_swept(module) or not is_text(module)):
                (clip if is_text(module) else model).add_patches({entry: patch}, strength)
        read = adapter.select(lambda path: path not in misread)
        proof.prove_reading(read, self._weights_of(model, clip))

    def fresh(self) -> ComfyModel:
        """Return the model without the texts that it has read."""
        return ComfyModel(*self.given)

    def weights_with(self, adapter: Adapter) -> Iterator[PatchedWeight]:
        return self._weights_of(*self.patched(replace(adapter, vectors={})))

    def _weights_of(self, model: Any, clip: Any) -> Iterator[PatchedWeight]:
        """Yield the weights with more patches on clones of MODEL and CLIP than on these."""
        for ours, theirs in ((self.model, model), (self.clip.patcher, clip.patcher)):
            yield from patched_weights(ours, theirs, self.keys.shapes)

    def _clones(self) -> tuple[Any, Any]:
        """Return clones that leave their places in the host's list of loaded models to the user's
        own MODEL and CLIP.

        The host gives the place of a freed clone to its parent. If both are freed at once, as with
        the frames of an error, the place would stay taken by a model that nobody can unload.
        """
        model, clip = self.model.clone(), self.clip.clone()
        model.parent = self.model.parent
        clip.patcher.parent = self.clip.patcher.parent
        return model, clip

    def lora_model_tensors(self, adapter: Adapter) -> dict[str, Tensor]:
        """Return the diffusion model's part as core's LORA_MODEL: a state dict with the model's own
        key names.
        """
        _, denoiser = adapter.split(self.is_text_module)
        return kohya.to_tensors(
            denoiser, {path: path for path in self.keys.base_of_module}, self.keys.kernels
        )
