"""Merges of LoRAs of diffusion models.

lora_rows, row_uses, lora_use, prompts: rows of text, and LoRAs as their user wants them merged
calibration, presets: the settings, and those of a word
choices: the captions that are made of a LoRA's prompts, and the noise levels that are kept
captions, scenes, regions: caption forms, captions where several LoRAs meet, and where each counts
plans, sampling, samples: each task's captions, its sampling runs, and what rows read
job, cost, stages, merging: what is merged, at what cost and in which steps, and the merge
waiting: what rows will hold while they wait, told before the long stages
polish, gradients: gradient steps at the output, after a merge
proof: whether files are read as the host's own loader reads them
share: how much of a LoRA is in a picture
recipe: what a merged file remembers
model: what a host has to offer; loading, diffusers_model, lora_files: `diffusers` as a host
"""
