"""What the nodes call the settings of the core, in their inputs and in all that they tell."""

from __future__ import annotations

from ..iteris_core.config import MergeConfig
from ..iteris_core.diffusion.calibration import Calibration
from ..iteris_core.diffusion.lora_use import LoraUse
from ..iteris_core.settings import TOGETHER, names_of

NO_LORA = (
    "there is no LoRA to merge: press '+ Add LoRA', switch a row on, or connect LoRAs to more_loras"
)
TARGETS = {"whole output": "full_output", "what the LoRA adds": "delta"}
NAMES = names_of(Calibration, MergeConfig, LoraUse) | {
    "rank": "size",
    **{f"target={value}": name for name, value in TARGETS.items()},
    "scene_weight=0": "off",
    f"scene_weight={TOGETHER}": "on",
}
