"""What a merge says about itself: figures of each layer, what was kept of each LoRA, the word for
it, warnings and notes.
"""
