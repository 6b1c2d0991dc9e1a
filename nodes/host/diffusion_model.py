"""A MODEL and a CLIP with the interface that the core expects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import comfy.utils
import torch
from torch import Tensor

from ...iteris_core import Adapter, IterisError, Network
from ...iteris_core.diffusion.lora_use import LoraUse
from ...iteris_core.diffusion.model import UnetRow, unet_stream
from ...iteris_core.files import kohya
from ...iteris_core.files.families import FAMILIES
from ...iteris_core.network import TEXT_STREAM
from ..keys import HostKeys, is_text, model_keys
from .deltas import HostDeltas
from .latent_cache import memory_of
from .patches import add_adapter

_LATENT_CHANNELS = 4
_MOST_SAMPLES_PER_CHUNK = 8


class ComfyStableDiffusion:
    """A MODEL and a CLIP as the core's `StableDiffusion`. Patches that they already carry belong to
    the base model.

    Args:
        model: ModelPatcher of an SD1.5 UNet; never changed.
        clip: CLIP of the same checkpoint; never changed.

    Raises:
        IterisError: Another kind of model.
    """

    def __init__(self, model: Any, clip: Any) -> None:
        _check_model(model)
        _check_clip(clip)
        self.model = model.clone()
        self.clip = clip.clone()
        self.memory_required = 0.0

    def is_text_module(self, path: str) -> bool:
        return is_text(path)

    def tokenize(self, caption: str) -> Sequence[Any]:
        """Return a caption's pieces without emphasis, which would add rows to the batch."""
        return [[(token, 1.0) for token, *_ in piece] for piece in self.clip.tokenize(caption)["l"]]

    def token_positions(self, text: str) -> Sequence[int]:
        """Return the positions of the tokens of a text's words in its context, without start, end
        and padding.
        """
        pieces = self.clip.tokenize(text, return_word_ids=True)["l"]
        words = [word for piece in pieces for _, _, word in piece]
        return [position for position, word in enumerate(words) if word]

    @contextmanager
    def text_encoder(self) -> Iterator[Network]:
        def forward(pieces: Sequence[Any]) -> Tensor:
            contexts = self.clip.encode_from_tokens({"l": list(pieces)})  # (1, rows * 77, 768)
            return contexts.reshape(len(pieces), -1, contexts.shape[-1])

        yield Network(
            dict(self.clip.cond_stage_model.named_modules()), forward, lambda path: TEXT_STREAM
        )

    @contextmanager
    def unet(self) -> Iterator[Network]:
        model = self.model
        comfy.model_management.load_models_gpu([model], memory_required=self.memory_required)
        device = model.load_device

        def forward(rows: Sequence[UnetRow]) -> Tensor:
            x = torch.stack([row.latents for row in rows]).to(device)
            sigma = torch.stack([row.sigma for row in rows]).to(device)
            context = torch.stack([row.context for row in rows]).to(device)
            options = comfy.model_patcher.create_model_options_clone(model.model_options)[
                "transformer_options"
            ]
            return model.model.apply_model(
                x, sigma, c_crossattn=context, transformer_options=options
            )

        model.pre_run()
        try:
            yield Network(dict(model.model.named_modules()), forward, unet_stream, memory_of(model))
        finally:
            model.cleanup()

    def sigmas(self, steps: int) -> Tensor:
        return comfy.samplers.calculate_sigmas(
            self.model.get_model_object("model_sampling"), "normal", steps
        )

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        return 4, resolution // 8, resolution // 8

    def make_room(self, resolution: int, samples: int) -> tuple[int, bool]:
        """Choose the size of forward calls for this many samples, and remember the memory to keep
        free.

        Returns:
            Number of samples (two rows each) in one call, and whether paused samples must be parked
            in host memory.
        """
        side = resolution // 8
        device = self.model.load_device

        def takes(count: int) -> float:
            return self.model.memory_required([2 * count, 4, side, side])

        free = comfy.model_management.get_free_memory(device)
        at_once = max(
            (n for n in range(1, _MOST_SAMPLES_PER_CHUNK + 1) if takes(n) < free / 4), default=1
        )
        park = device.type != "cpu" and takes(samples) > 0.7 * free
        self.memory_required = takes(2 * at_once if park else samples)
        return at_once, park

    @cached_property
    def keys(self) -> HostKeys:
        modules = dict(self.model.model.named_modules()) | dict(
            self.clip.cond_stage_model.named_modules()
        )
        keys = comfy.lora.model_lora_keys_unet(self.model.model, {})
        keys = comfy.lora.model_lora_keys_clip(self.clip.cond_stage_model, keys)
        return model_keys(
            FAMILIES["SD1.5"],
            modules,
            keys,
            comfy.utils.unet_to_diffusers(self.model.model.model_config.unet_config),
        )

    def adapter(
        self, use: LoraUse, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> Adapter:
        """Return a LoRA's tensors as an adapter of this model, at the strengths of its use. A part
        of strength 0 changes nothing.

        The file is read as ComfyUI's loader reads it: alphas in the metadata, which only diffusers
        reads, do not count.

        Raises:
            AdapterError: See `kohya.parse`.
        """
        strengths = use.strength_model, use.strength_clip
        adapter = kohya.parse(
            use.name,
            tensors,
            self.keys,
            metadata,
            dense_delta=HostDeltas(self.model, self.clip, self.keys, *strengths),
            progress=lambda done, total: (
                comfy.model_management.throw_exception_if_processing_interrupted()
            ),
        )
        text, unet = adapter.split(self.is_text_module)
        return unet.scaled(use.strength_model).joined_with(text.scaled(use.strength_clip))

    def patched(self, adapter: Adapter) -> tuple[Any, Any]:
        """Return clones of MODEL and CLIP that carry the adapter, as the stock LoraLoader would
        patch them.
        """
        model = self.model.clone()
        clip = self.clip.clone()
        keys = set(kohya.to_tensors(adapter, self.keys.base_of_module, self.keys.kernels))
        text, unet = adapter.split(self.is_text_module)
        add_adapter(model, unet, keys)
        add_adapter(clip, text, keys)
        return model, clip

    def lora_model_tensors(self, adapter: Adapter) -> dict[str, Tensor]:
        """Return the UNet part as core's LORA_MODEL: a state dict with the model's own key
        names.
        """
        _, unet = adapter.split(self.is_text_module)
        return kohya.to_tensors(
            unet, {path: path for path in self.keys.base_of_module}, self.keys.kernels
        )


def _check_model(model: Any) -> None:
    config = model.model.model_config
    kind = type(config)
    if kind is not comfy.supported_models.SD15:
        raise IterisError(
            f"the MODEL is a {kind.__name__} model; IterIS merges LoRAs of SD1.5. Load an SD1.5 "
            "checkpoint"
        )
    channels = config.unet_config.get("in_channels", _LATENT_CHANNELS)
    if channels != _LATENT_CHANNELS:
        what = {9: "an inpainting", 8: "a picture-editing (InstructPix2Pix)"}.get(
            channels, "an unusual"
        )
        raise IterisError(
            f"the MODEL is {what} checkpoint: its UNet reads {channels} channels, and calibration "
            f"has the {_LATENT_CHANNELS} of a plain SD1.5 UNet. Merge on a plain SD1.5 checkpoint; "
            "the merged LoRA works on both"
        )


def _check_clip(clip: Any) -> None:
    if clip is None:
        raise IterisError(
            "the CLIP input is empty: this checkpoint has no text encoder. Load one with a CLIP "
            "loader"
        )
    encoders = sorted(clip.tokenize(""))
    if not hasattr(clip.cond_stage_model, "clip_l") or encoders != ["l"]:
        raise IterisError(
            f"the CLIP is a {type(clip.cond_stage_model).__name__} with the text encoders "
            f"{', '.join(encoders)}; SD1.5 has CLIP-L alone. Connect the CLIP of an SD1.5 "
            "checkpoint, or load CLIP-L with type stable_diffusion"
        )
