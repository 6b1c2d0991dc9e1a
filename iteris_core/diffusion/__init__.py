"""Merges of LoRAs of Stable Diffusion: captions, sampling runs, the merge, its check and its
recipe.
"""
