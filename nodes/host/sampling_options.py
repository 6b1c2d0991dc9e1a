"""What ComfyUI's samplers tell a MODEL in each call. Other nodes' patches on the MODEL read it, and
their wrappers are around the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

import comfy.hooks
import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ...iteris_core import CalibrationError, IterisError
from ...iteris_core.diffusion.model import DenoiserRow, Encoded
from ...iteris_core.errors import FAILURES
from ...iteris_core.memory import is_out_of_memory
from .other_nodes import functions_in, wrappers_of

_CHANGES_WEIGHTS = comfy.hooks.EnumHookType.Weight
# Each prompt's mark among the rows of a call.
_MARKS: WeakKeyDictionary[Encoded, Any] = WeakKeyDictionary()


@dataclass(frozen=True)
class SamplingOptions:
    """The options of a MODEL's calls.

    Args:
        model: The MODEL, loaded.
        shared: Options that are the same in all calls.
        levels: All noise levels of a sampling run.
        hooks: Hooks that the CLIP puts on each prompt; None: there are none.
        before_call: See `_gradients`.
    """

    model: Any
    shared: Mapping[str, Any]
    levels: Tensor
    hooks: Any
    before_call: Callable[[], None]

    @property
    def are_read(self) -> bool:
        """Whether functions of other nodes may read the options, so that rows of one call have one
        noise level, as in the host's samplers.
        """
        return any(self.shared.values()) or self.hooks is not None

    def of_call(self, rows: Sequence[DenoiserRow], sigma: Tensor) -> dict[str, Any]:
        """Return the options of one call, which the host may change.

        Args:
            sigma: Their noise levels on the model's device, (rows,).
        """
        of_hooks = self.model.apply_hooks(hooks=self.hooks)
        options: dict[str, Any] = comfy.patcher_extension.merge_nested_dicts(of_hooks, self.shared)
        marks = [_MARKS.setdefault(row.prompt, uuid4()) for row in rows]
        if torch.is_grad_enabled():
            options["optimized_attention_override"] = _attention
        return options | {
            "cond_or_uncond": [int(row.is_negative) for row in rows],
            "uuids": marks,
            "sigmas": sigma[:1],
            "sample_sigmas": self.levels.to(sigma.device),
        }

    def run(self, call: Callable[[], Tensor]) -> Tensor:
        """Return what a call of the model returns.

        Raises:
            CalibrationError: It fails, and functions of other nodes take part.
        """
        self.before_call()
        try:
            return call()
        except FAILURES as error:
            others = functions_in(self.shared)
            if isinstance(error, IterisError) or is_out_of_memory(error) or not others:
                raise
            what = f"the MODEL fails with {type(error).__name__}: {error}"
            raise CalibrationError(what) from error


def _attention(_: Any, *args: Any, **named: Any) -> Tensor:
    """Attend as PyTorch does, in the place of kernels that only draw, such as SageAttention."""
    answer: Tensor = comfy.ldm.modules.attention.attention_pytorch(*args, **named)
    return answer


def conds_of(model: Any, row: DenoiserRow, beside: Mapping[str, Any], x: Tensor) -> dict[str, Any]:
    """Return what a MODEL reads of a row's prompt, made by the host as for its samplers.

    Args:
        beside: What it reads beside the prompt; see `conditions.conditions_for`.
        x: Latents of one row, (1, ...).
    """
    cond = {"cross_attn": row.prompt.tokens[None], **row.prompt.others, **beside, "model_conds": {}}
    # in inference mode, Anima runs some layers here already, one text at a time
    with torch.inference_mode(False), torch.no_grad():
        [made] = comfy.samplers.encode_model_conds(
            model.model.extra_conds,
            [cond],
            x,
            model.load_device,
            "negative" if row.is_negative else "positive",
            latent_shapes=[x.shape],
        )
    return {
        name: cond.process_cond(batch_size=1, area=None)
        for name, cond in made["model_conds"].items()
    }


@contextmanager
def _gradients() -> Iterator[Callable[[], None]]:
    """Yield a function to call before each call of the model. From the first call with gradients
    on, it lets the host's layers run as in training, since its fast ones have no gradients; older
    versions have no fast ones.
    """
    management = comfy.model_management
    before = getattr(management, "in_training", None)

    def in_call() -> None:
        if before is not None and torch.is_grad_enabled():
            management.in_training = True

    try:
        yield in_call
    finally:
        if before is not None:
            management.in_training = before


def loads_on_demand(model: Any) -> bool:
    """Whether ComfyUI loads a model's weights when a layer is called, and gives them up again."""
    is_dynamic = getattr(model, "is_dynamic", None)  # not in older versions
    return is_dynamic is not None and bool(is_dynamic())


@contextmanager
def sampling_options(
    model: Any, clip: Any, levels: Tensor, memory_required: float
) -> Iterator[SamplingOptions]:
    """Load a MODEL, prepare it for calls as the host's samplers do, and yield their options.

    Args:
        model: The MODEL, a clone of one's own.
        clip: The CLIP whose hooks count.
        levels: All noise levels of a sampling run.
        memory_required: Bytes to keep free.

    Raises:
        CalibrationError: Hooks whose strength changes while a picture is sampled, or that the host
            cannot put on the MODEL.
    """
    hooks = clip.apply_hooks_to_conds
    for hook in () if hooks is None else hooks.hooks:
        if hook.hook_keyframe.keyframes:
            raise CalibrationError(
                "the CLIP carries hooks whose strength changes while a picture is sampled "
                "(keyframes), and the rows of a merge wait for each other at different steps of "
                "it. Connect CLIP from before these hooks, and set them on the merged CLIP"
            )
    if hooks is not None and loads_on_demand(model) and hooks.get_type(_CHANGES_WEIGHTS):
        raise CalibrationError(
            "the CLIP carries LoRAs of its prompts (hooks), which ComfyUI does not put on a model "
            "that it loads on demand. Start ComfyUI with --disable-dynamic-vram, or connect CLIP "
            "from before these hooks"
        )
    model.hook_mode = comfy.hooks.EnumHookMode.MinVram  # one group of hooks: nothing to cache
    options = comfy.model_patcher.create_model_options_clone(model.model_options)
    conds = {"positive": [{} if hooks is None else {"hooks": hooks}]}
    comfy.sampler_helpers.prepare_model_patcher(model, conds, options)
    try:
        # models that other nodes have attached, such as a control's, belong to the base
        models = [
            model,
            *comfy.sampler_helpers.get_additional_models_from_model_options(options),
            *model.get_nested_additional_models(),
        ]
        comfy.model_management.load_models_gpu(models, memory_required=memory_required)
        shared = options["transformer_options"] | {"wrappers": wrappers_of(model)[0]}
        comfy.samplers.cast_to_load_options(options, model.load_device, model.model_dtype())
        model.pre_run()
        with _gradients() as before_call:
            yield SamplingOptions(model, shared, levels, hooks, before_call)
    finally:
        comfy.samplers.cast_to_load_options(options, model.offload_device)
        model.cleanup()
        model.restore_hook_patches()


def prediction_type(model: Any) -> str:
    """Return what a MODEL predicts, as files name it, also if a node has set it; empty for flow
    models.
    """
    sampling = model.get_model_object("model_sampling")
    if isinstance(sampling, comfy.model_sampling.V_PREDICTION):
        return "v"
    return "epsilon" if isinstance(sampling, comfy.model_sampling.EPS) else ""
