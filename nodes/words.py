"""What the nodes call the settings of the core, in their inputs and in all that they tell."""

from __future__ import annotations

# Input of Merge settings -> field of the core, of which it is the value.
OF_CALIBRATION = {
    "sample_runs": "trajectories",
    "latents_per_run": "timesteps",
    "sampling_steps": "sampling_steps",
    "resolution": "resolution",
    "cfg": "cfg",
    "negative_prompt": "negative_prompt",
    "negative_share": "unconditional_share",
    "company_share": "composition_share",
    "protect_base": "preserve_weight",
    "check_runs": "held_out",
    "seed": "seed",
}
OF_CONFIG = {
    "smoothing": "alpha",
    "method": "method",
    "engine": "engine",
    "ridge": "ridge",
    "balance": "balance",
    "input_mix": "input_mix",
    "layer_gain": "unit_gain",
}
# Inputs whose values are others than the core's.
OF_OTHERS = {
    "protected_prompts": "preserve_captions",
    "quality_kept": "kept_energy",
    "precision": "output_dtype",
    "reproduce": "target",
    "together": "scene_weight",
    "forms": "scene_forms",
    "pictures": "scene_pictures",
    "companions": "companions",
    "priority": "weight",
}
TARGETS = {"whole output": "full_output", "what the LoRA adds": "delta"}
NAMES = {field: name for name, field in (OF_CALIBRATION | OF_CONFIG | OF_OTHERS).items()} | {
    **{f"target={value}": name for name, value in TARGETS.items()},
    "scene_weight=0": "off, without Scene prompts",
    "scene_pictures=False": "off",
}
