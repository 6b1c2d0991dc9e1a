"""Diffusion models: captions, plans, sampling runs, samples, the merge, the check on unseen
samples, the recipe.
"""
