"""The proof before a merge, with ComfyUI's own classes and its own loader of LoRAs. What the proof makes
of other faults is in `tests/core/test_proof.py`.

    python tests/support/proof_checks.py COMFYUI

writes a line of JSON per case: the notes of the proof, or its error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import family_checks
import in_comfy

# isort: split
import tiny_hosts
import torch
from iteris_pack.nodes.host.diffusion_model import ComfyModel
from iteris_pack.nodes.host.families import HOST_FAMILIES
from iteris_pack.nodes.keys import HostKeys, HostWeight

from iteris_core import IterisError
from iteris_core.diffusion.proof import notes_of_rounding, prove_loras, prove_merged

FP8 = torch.float8_e4m3fn
CALIBRATION = family_checks.SMALL
Wrong = AbstractContextManager[Any]


def forgotten_order() -> Wrong:
    """Read files as if no weight had rows in another order than the files."""
    part_of = HostWeight.part_of

    def forgetful(weight: HostWeight, d_out: int) -> Any:
        part = part_of(weight, d_out)
        return None if part is None else replace(part, reorder=None)

    return mock.patch.object(HostWeight, "part_of", forgetful)


def forgotten_keys() -> Wrong:
    """Read files as if nobody knew the keys of single blocks, which the host knows."""
    place_of = HostKeys.place_of
    return mock.patch.object(
        HostKeys, "place_of", lambda keys, base: None if "single_" in base else place_of(keys, base)
    )


def uncalled_layers() -> Wrong:
    """Let layers behind an activation be computed from their weights, as int8 layers are."""

    def fused(self: torch.nn.Sequential, x: torch.Tensor) -> torch.Tensor:
        *before, last = self
        for module in before:
            x = module(x)
        return last.forward(x)

    return mock.patch.object(torch.nn.Sequential, "forward", fused)


def forgotten_blocks() -> Wrong:
    """Let the host's loader put a file on the model as if it had no block weights."""
    strengths = ComfyModel._strengths
    return mock.patch.object(
        ComfyModel,
        "_strengths",
        lambda host, use: strengths(host, replace(use, blocks="", without=())),
    )


def renamed(tensors: family_checks.Tensors, old: str, new: str) -> family_checks.Tensors:
    """Return tensors of which those of diffusers' names that begin with a word have names as kohya's
    trainers make them, beginning with another.
    """
    found = {}
    for key, tensor in tensors.items():
        base, dot, ending = key.rpartition(".lora_")
        is_old = dot and base.startswith(old)
        kohya = f"{new}{base.removeprefix(old).replace('.', '_')}{dot}{ending}"
        found[kohya if is_old else key] = tensor
    return found


def with_bias(host: ComfyModel, tensors: family_checks.Tensors) -> family_checks.Tensors:
    """Return a LoRA's tensors with a large change of one bias, which rows do not wear, and with an
    alpha, which is in the file alone.
    """
    places = host.keys.module_of_base
    path, base = next(
        (path, base)
        for base, path in places.items()
        if f"{base}.lora_B.weight" in tensors and f"{path}.bias" in host.model.model.state_dict()
    )
    rank = tensors[f"{base}.lora_A.weight"].shape[0]
    return {
        **tensors,
        f"{base}.diff_b": torch.full(host.keys.shapes[path][:1], 3.0),
        f"{base}.alpha": torch.tensor(float(rank)),
    }


@dataclass(frozen=True)
class Case:
    """One proof.

    Args:
        family: Name of a tiny model.
        wrong: Context in which the LoRA is read and proved.
        dtype: Number format of the diffusion model's weights.
        strength: Strength of the LoRA.
        blocks: Weights of its blocks.
        without: Its layers that are left out.
        renamed: How some names of the file begin, and how they shall begin in kohya's style.
        untested: Whether its class is in no table.
        clip: Name of the tiny model whose CLIP is connected, if it is another one's.
        more: Tensors that are added to its file.
    """

    family: str
    wrong: Callable[[], Wrong] = nullcontext
    dtype: torch.dtype = torch.float32
    strength: float = 1.0
    blocks: Any = ""
    without: Any = ()
    renamed: tuple[str, str] = ("nothing", "")
    untested: bool = False
    clip: str = ""
    more: Mapping[str, torch.Tensor] = field(default_factory=dict)


BLOCKS = {
    "blocks": "BASE:-0.5, IN03:0.25, MID:0, OUT:0.5",
    "without": ("*output_blocks.1.*attn2*",),
}
_T5 = {
    "lora_te3_encoder_block_0_layer_0_SelfAttention_q": (48, 48),
    "text_encoder_3.encoder.block.1.layer.1.DenseReluDense.wo": (48, 64),
}
OF_T5 = {
    f"{base}.lora_{end}.weight": torch.ones(shape)
    for base, (d_out, d_in) in _T5.items()
    for end, shape in (("up", (d_out, 1)), ("down", (1, d_in)))
}


def without_row(family: str) -> Wrong:
    """Forget the row of a family's class."""
    config = tiny_hosts.TINY[family].config
    rows = {name: row for name, row in HOST_FAMILIES.items() if name != config}
    return mock.patch.dict(HOST_FAMILIES, rows, clear=True)


CASES = {
    "SD1.5": Case("SD1.5"),
    "SDXL": Case("SDXL"),
    "Wan": Case("Wan"),
    "SD1.5 in blocks": Case("SD1.5", **BLOCKS),
    "SD1.5 in blocks forgotten": Case("SD1.5", forgotten_blocks, **BLOCKS),
    "Flux.1 forgotten order": Case("Flux.1", forgotten_order),
    "Flux.1 forgotten keys": Case("Flux.1", forgotten_keys),
    "Flux.1 uncalled layers": Case("Flux.1", uncalled_layers),
    "Flux.1 in bf16": Case("Flux.1", dtype=torch.bfloat16, strength=0.1),
    "Flux.1 in fp8": Case("Flux.1", dtype=FP8, strength=0.3),
    "Flux.1 in fp8 forgotten order": Case("Flux.1", forgotten_order, dtype=FP8),
    "SDXL in old names": Case("SDXL", renamed=("text_encoder.", "lora_te_")),
    "Z-Image in musubi's names": Case("Z-Image", renamed=("transformer.", "lora_unet_")),
    "Flux.1 with T5": Case("Flux.1", more=OF_T5),
    "Qwen-Image untested": Case("Qwen-Image", untested=True, more=OF_T5),
    "Qwen-Image untested, other CLIP": Case("Qwen-Image", untested=True, clip="SD1.5"),
}


def proved(case: Case) -> dict[str, Any]:
    with case.wrong(), without_row(case.family) if case.untested else nullcontext():
        host = tiny_hosts.host_of(case.family, case.dtype)
        if case.clip:
            host = ComfyModel(host.model, tiny_hosts.clip_of(tiny_hosts.TINY[case.clip]))
        tensors = with_bias(host, family_checks.lora_of(host, 1, "diffusers"))
        tensors = renamed(tensors, *case.renamed) | case.more
        lora = family_checks.loaded(
            host,
            "first",
            tensors,
            "a photo of sks dog",
            strength=case.strength,
            blocks=case.blocks,
            without=case.without,
        )
        assert len(lora.adapter.vectors) == 1
        calibration = CALIBRATION.for_family(host.family)
        steps: list[tuple[int, int]] = []
        try:
            host.prove_reading(lora.use, lora.adapter, tensors)
            rounded = prove_loras(host, [lora], calibration, lambda *step: steps.append(step))
            rounded |= prove_merged(host, lora.adapter, lora, calibration)
        except IterisError as error:
            return {"error": type(error).__name__, "text": str(error)}
        patched = host.with_adapter(lora.adapter)
    return {
        "rounded": rounded,
        "layers": len(lora.adapter.deltas),
        "unmatched": lora.adapter.unmatched[:3],
        "left out": len(lora.adapter.left_out),
        "notes": [n.text for n in notes_of_rounding(rounded)],
        "steps": steps,
        "same texts": patched.texts is host.texts,
        "same clip": patched.clip.patcher.patches_uuid == host.clip.patcher.patches_uuid,
    }


if __name__ == "__main__":
    in_comfy.tell({"case": name, **proved(case)} for name, case in CASES.items())
