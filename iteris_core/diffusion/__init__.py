"""Merges of LoRAs of diffusion models: prompts and captions, sampling runs, scenes of several
LoRAs, the merge and what it costs, the proof against the host's own loader, the check on unseen
prompts, and the recipe. A host's model comes in by the protocols of `model`.
"""
