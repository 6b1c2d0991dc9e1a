"""Merges of LoRAs of diffusion models.

lora_rows, row_uses, lora_use, prompts: rows of text, and LoRAs as their user wants them merged
loaded_loras: the same with their weights, each once
calibration, presets: the settings, and those of a word
captions, scenes, regions: caption forms, captions where several LoRAs meet, and where each counts
samples, runs: what is measured, one record for each sample, and the sampling runs that it needs
contexts, sampling: what rows read, and the runs themselves
job, cost, stages, merging: what is merged, at what cost and in which steps, and the merge
polish, targets, whitening, descent, gradients: gradient steps at the output, after a merge
proof: whether files are read as the host's own loader reads them
share: how much of a LoRA is in a picture
recipe: what a merged file remembers
model: what a host has to offer; loading, diffusers_model: `diffusers` as a host
"""
