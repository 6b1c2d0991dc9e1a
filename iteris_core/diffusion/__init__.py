"""Merges of LoRAs of diffusion models.

lora_rows, lora_use: rows of text, and LoRAs as their user wants them merged
calibration: the settings, the presets, and the captions made of a LoRA's prompts
captions, scenes: caption forms, and captions where several LoRAs meet
plans, sampling, samples: each task's captions, its sampling runs, and what rows read
job, cost, merging: what is merged and at what cost, and the merge
polish: steps of gradient at the output, after a merge
proof: whether files are read as the host's own loader reads them
held_out, drawn, together: the check on unseen prompts and seeds
recipe: what a merged file remembers
model: what a host has to offer; loading, pipeline, lora_files: `diffusers` as a host
"""
