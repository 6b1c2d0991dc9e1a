"""Which stages a merge of Stable Diffusion LoRAs goes through, and how far it is among them."""

from __future__ import annotations

from collections.abc import Sequence

from .calibration import Calibration
from .held_out import HELD_OUT_STAGE
from .samples import PromptedAdapter
from .stable_diffusion import SAMPLING_STAGE, TEXT_STAGE, UNET_STAGE, StableDiffusion, StageProgress


def stages_of(
    model: StableDiffusion, loras: Sequence[PromptedAdapter], calibration: Calibration
) -> list[str]:
    """Return the stages of a merge and its check, in order; sampling runs that are known from a
    merge before take no time.
    """
    paths = {path for lora in loras if not lora.adapter.is_idle for path in lora.adapter.deltas}
    of_text = {path for path in paths if model.is_text_module(path)}
    return [
        *([TEXT_STAGE] if of_text else []),
        *([SAMPLING_STAGE, UNET_STAGE] if paths - of_text else []),
        *([HELD_OUT_STAGE] if calibration.held_out else []),
    ]


def numbered(progress: StageProgress, stages: Sequence[str]) -> StageProgress:
    """Return a callback that tells `progress` of "stage 2 of 4: Sampling" instead of "Sampling"."""
    called = {
        stage: f"stage {number} of {len(stages)}: {stage}" for number, stage in enumerate(stages, 1)
    }
    return lambda stage, done, total: progress(called.get(stage, stage), done, total)
