"""Limits of what is read from files, which come from strangers.

Each is several times what the largest real files have, and low enough that a small file can neither
hold up a reader nor fill the memory. A file beyond one is refused with its name, except where a
limit says otherwise.
"""

from __future__ import annotations

# A header names every tensor and holds the metadata. Those of LoRAs have some 2,500 keys (0.4 MB),
# and kohya's trainers add tags of several MB.
HEADER_BYTES = 20_000_000
# LyCORIS' LoHa of a whole SDXL has some 5,500.
TENSORS = 30_000
# The longest have some 120.
KEY_LETTERS = 300
# Type, shape and place of one tensor.
ENTRY_LETTERS = 1_000
# A convolution over time has 5.
DIMENSIONS = 8
# Numbers of one tensor, where a side of 0 counts as 1: torch counts in 64 bits.
NUMBERS = 2**40
# kohya's trainers write some 80, other programs some 200.
METADATA_FIELDS = 10_000

# Rank of the factors of one layer: several times the width of most layers.
RANK = 16_384
# Numbers of a product of factors: as many as the layer's weight has, or so many, which is more than
# those at the narrow ends of a model need (rank 1024 at 640 channels makes 6 million).
PRODUCT_NUMBERS = 2**23

# JSON in the metadata, in PEFT's settings, in recipes. What is beyond them counts as unreadable.
# Every value follows a comma or a bracket; 500,000 counted tags would be 10 MB.
JSON_SEPARATORS = 500_000
JSON_LEVELS = 50
# PEFT's adapter_config.json; one with a pattern for each layer has 0.5 MB.
SETTINGS_BYTES = 10_000_000
# Patterns of PEFT's settings with a gap (`.*`); each is compared with each layer.
GAPPED_PATTERNS = 16

# A file of another program beside a LoRA's, with what Civitai says about it: its pictures and their
# prompts take up to 0.5 MB.
SIDECAR_BYTES = 4_000_000
# A picture beside a LoRA's file, which is sent to the page as it is.
PICTURE_BYTES = 16_000_000

# Trigger words: a phrase in which an author lists all of them has some 300 letters. What is longer
# is a description, and left out.
WORD_LETTERS = 2_000
# Words between commas that are looked at.
LISTED_WORDS = 1_000
# The name of a base model in the metadata; what is longer is none.
NAME_LETTERS = 200

# The budget of one look at a file, beside its tensors: texts that are parsed, and time on the
# processor. The largest real ones take 12 MB (tags stand in the header and are parsed again) and
# half a second; the time also bounds how long a slow machine may be kept.
LOOK_BYTES = 40_000_000
LOOK_SECONDS = 5.0
# Of tensors that are measured, a slow machine reads several times as many.
BYTES_A_SECOND = 10_000_000
# Letters of keys in which the family of a file is looked for, and of tags in which its subject is:
# those of real files have 0.2 million.
SEARCHED_LETTERS = 1_000_000
# Tags of a training folder that a merged file keeps, the commonest, and letters of all of them.
MERGED_TAGS = 1_000
MERGED_TAG_LETTERS = 1_000_000
