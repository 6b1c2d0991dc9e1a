"""Blocks of models, as block weights and reports name them."""

from __future__ import annotations

import re

OTHER = "other"  # what is in no block
_BLOCKS = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"decoder\.(?:\w+\.)*?(?:block|layers?)\.(\d+)\.", "DEC{:02}"),
        (r"^(?:clip_g|text_encoder_2)\.(?:.+\.)?encoder\.layers\.(\d+)\.", "TG{:02}"),
        (r"(?:^|\.)encoder\.layers\.(\d+)\.", "TE{:02}"),
        (r"(?:^|\.)input_blocks\.(\d+)\.", "IN{:02}"),
        (r"(?:^|\.)middle_block\.", "MID"),
        (r"(?:^|\.)output_blocks\.(\d+)\.", "OUT{:02}"),
        (r"(?:^|\.)down_blocks\.(\d+)\.", "DOWN{}"),
        (r"(?:^|\.)mid_block\.", "MID"),
        (r"(?:^|\.)up_blocks\.(\d+)\.", "UP{}"),
        (r"(?:^|\.)encoder\.(?:block|layer)\.(\d+)\.", "ENC{:02}"),
        (r"^diffusion_model\.double_(?:blocks|layers)\.(\d+)\.", "D{:02}"),
        (r"^diffusion_model\.single_(?:blocks|layers)\.(\d+)\.", "S{:02}"),
        (r"^diffusion_model\.noise_refiner\.(\d+)\.", "NR{:02}"),
        (r"^diffusion_model\.context_refiner\.(\d+)\.", "CR{:02}"),
        (r"^diffusion_model\.low_noise\.blocks\.(\d+)\.", "L{:02}"),
        (
            r"^diffusion_model\.(?:joint_blocks|transformer_blocks|blocks|layers)\.(\d+)\.",
            "B{:02}",
        ),
    )
)


def block_of(path: str) -> str:
    """Return a layer's block of the model, as block weights name it.

    >>> block_of("diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q")
    'IN04'
    """
    for pattern, name in _BLOCKS:
        found = pattern.search(path)
        if found:
            return name.format(*map(int, found.groups()))
    return OTHER
