"""Names of a Stable Diffusion UNet's modules in its original code, where diffusers has others.

ComfyUI and single-file checkpoints use the original names. The nodes ask ComfyUI itself for this
table; this one serves models of diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_IN_BLOCK = re.compile(
    r"(?P<side>down|up)_blocks\.(?P<level>\d+)\.(?P<kind>[a-z]+)\.(?P<index>\d+)\.(?P<rest>.+)"
)
_IN_MIDDLE = re.compile(r"mid_block\.(?P<kind>[a-z]+)\.(?P<index>\d+)\.(?P<rest>.+)")


def ldm_names(paths: Iterable[str]) -> dict[str, str]:
    """Return diffusers' path of a UNet module -> its original path. Paths without a counterpart are
    omitted.

    Args:
        paths: diffusers' paths of all modules of the UNet; they tell how many blocks it has.
    """
    paths = list(paths)
    in_blocks = [match for match in map(_IN_BLOCK.fullmatch, paths) if match]
    resnets = [
        int(match["index"])
        for match in in_blocks
        if (match["side"], match["kind"]) == ("down", "resnets")
    ]
    layers = max(resnets, default=-1) + 1  # resnets of a down block; an up block has one more
    attending = {
        match["level"]
        for match in in_blocks
        if (match["side"], match["kind"]) == ("up", "attentions")
    }
    names = {path: name for path, name in _ENDS.items() if path in paths}
    for match in in_blocks:
        level = int(match["level"])
        index = int(match["index"])
        if match["kind"] == "downsamplers":
            names[match[0]] = f"input_blocks.{(level + 1) * (layers + 1)}.0.op"
        elif match["kind"] == "upsamplers":
            position = 2 if match["level"] in attending else 1
            names[match[0]] = (
                f"output_blocks.{level * (layers + 1) + layers}.{position}.{match['rest']}"
            )
        else:
            number = level * (layers + 1) + index + (match["side"] == "down")
            block = "input_blocks" if match["side"] == "down" else "output_blocks"
            names[match[0]] = f"{block}.{number}.{_inside(match)}"
    for match in filter(None, map(_IN_MIDDLE.fullmatch, paths)):
        position = 1 if match["kind"] == "attentions" else 2 * int(match["index"])
        names[match[0]] = f"middle_block.{position}.{_inside(match).partition('.')[2]}"
    return names


def _inside(match: re.Match[str]) -> str:
    """Return the rest of an original path behind its block: the place in the block, and the module
    there.
    """
    if match["kind"] == "attentions":
        return f"1.{match['rest']}"
    name, dot, more = match["rest"].partition(".")
    return f"0.{_RESNET.get(name, name)}{dot}{more}"
