"""LoRAs that can be merged, read from what users connect: rows of text, stacks, models, files."""
