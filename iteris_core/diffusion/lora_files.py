"""LoRA files of a Stable Diffusion model in `diffusers`, read at strengths and written in the style
of kohya or of diffusers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..adapters import Adapter
from ..errors import AdapterError
from ..files import diffusers, kohya, peft
from ..files.adapter_kinds import own_dense_delta
from ..files.block_weights import layer_weights
from ..files.tensors import read_tensors
from ..files.writing import write_tensors
from ..layers import stored_weight
from .diffusers_model import DiffusersModel

Style = Literal["kohya", "diffusers"]


def read_lora(
    model: DiffusersModel,
    path: Path,
    strength: float = 1.0,
    strength_text: float | None = None,
    *,
    blocks: str = "",
    without: Sequence[str] = (),
) -> Adapter:
    """Read a LoRA file for this model, in the spelling of kohya, LyCORIS, diffusers (old and new),
    PEFT or ComfyUI.

    Args:
        strength: Strength of the UNet part, folded into the deltas.
        strength_text: Strength of the text encoder part, folded in too; None: as `strength`.
        blocks, without: As in `LoraUse`; blocks and paths of the UNet go by the names of its
            original code: ``diffusion_model.input_blocks...``

    Raises:
        AdapterError: Tensors that do not fit the model, or that only ComfyUI's own code can apply.
        ConfigError: Block weights or left out layers that this LoRA or model does not have.
    """

    def weight_at(module: str) -> Tensor:
        return stored_weight(module, model.modules[module]).float().cpu()

    weights = layer_weights(path.stem, blocks, without, model.family, model.own_path)
    tensors, metadata = read_tensors(path)
    adapter = kohya.parse(
        path.stem,
        diffusers.with_alphas(path.stem, tensors, metadata),
        model.keys,
        metadata,
        dense_delta=own_dense_delta(weight_at),
    )
    text, unet = weights.applied_to(adapter).split(model.is_text_module)
    text = text.scaled(strength if strength_text is None else strength_text)
    return unet.scaled(strength).joined_with(text)


def check_style(adapters: Iterable[Adapter], style: Style) -> None:
    """Refuse a style that cannot hold these adapters or a merge of them, as before a long merge.

    Raises:
        AdapterError: The style has no place for what an adapter changes.
    """
    for adapter in adapters if style == "diffusers" else ():
        if adapter.vectors:
            raise AdapterError(
                f"{adapter.name}: it changes biases or norms ({min(adapter.vectors)!r} among "
                f"{len(adapter.vectors)}), which diffusers' format cannot hold; save in the style "
                "of kohya"
            )


def save_lora(
    model: DiffusersModel,
    adapter: Adapter,
    path: Path,
    style: Style = "kohya",
    metadata: Mapping[str, str] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write a LoRA file in one step: it is there whole or not at all.

    Args:
        adapter: Adapter in the precision of the file.
        style: Style of the keys: ``kohya``, read by ComfyUI, A1111 and diffusers; or ``diffusers``,
            read by diffusers and ComfyUI.
        metadata: More strings for the file, such as the recipe.

    Raises:
        AdapterError: The style has no place for what the adapter changes.
        NameTakenError: The file is there and `overwrite` is False; it is untouched.
        SaveError: It cannot be written; names the cause. What was there is untouched.
    """
    check_style([adapter], style)
    if style == "kohya":
        tensors, content = kohya.file_of(adapter, model.keys, metadata or {})
    else:
        tensors = peft.to_tensors(adapter, model.keys.kernels, prefix="")
        content = diffusers.metadata_of(adapter, model.keys) | dict(metadata or {})
    write_tensors(tensors, path, content, overwrite=overwrite)
