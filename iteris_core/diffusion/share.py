"""How much of a LoRA is in a picture, of what its own picture has.

A diffusion model also tells where a picture comes from. For a noisy picture, a LoRA's estimate and
the base model's differ by what the LoRA does there. s tells how far the clean picture x lies along
this difference, and o how far off its line:

    s(x) = <x - base(x_t), lora(x_t) - base(x_t)> / ||lora(x_t) - base(x_t)||^2
    o(x) = ||x - base(x_t)||^2 - s(x)^2 ||lora(x_t) - base(x_t)||^2

An estimate is the mean of all clean pictures that the noise may hide, so s is 1 on average over
pictures that the LoRA would draw, and 0 over pictures of the base model. (The difference of two
such errors classifies pictures in Li et al. 2023, arXiv:2303.16203.) With guidance both become
larger, so both are taken relative to the LoRA's own pictures from the same noise. What else was
added to a picture counts against the LoRA, since too many LoRAs at once leave a mush that lies far
along each of them:

    share = s / s_own - max(0, o / o_own - 1) / 4
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..adapters import Adapter
from ..errors import CalibrationError
from ..memory import with_smaller_calls
from ..progress import nobody
from ..rows.wearing import Mix, Rows, outputs_of
from .contexts import Texts, Tokenized, written_for
from .model import DenoiserRow, DiffusionHost, Encoded
from .sampling import mix_in, noise

# Noise levels of a run of so many steps at which pictures are looked at: in the middle, where what
# is drawn is decided.
STEPS = 6
LEVELS = (2, 3)
# A LoRA whose own pictures show less of it can hardly be told from the base model; what a picture
# lacks of it is then relative to this.
_LEAST = 0.2
# How much counts against a LoRA what else is in a picture; chosen in one world, tried in another.
_OTHERS = 0.25


@dataclass(frozen=True)
class PromptPictures:
    """Pictures of one prompt from one noise, as clean latents (channels, ..., height, width).

    Args:
        alone: Number of a LoRA -> the picture that it draws alone.
        judged: The pictures in which the LoRAs are looked for, such as the merge's.
    """

    prompt: str
    alone: Mapping[int, Tensor]
    judged: Sequence[Tensor]


@dataclass(frozen=True)
class Look:
    """A picture as seen by a LoRA: the means of s and o over its looks, see the module."""

    along: float
    off: float

    @classmethod
    def of(cls, picture: Tensor, estimates: Sequence[tuple[Tensor, Tensor]]) -> Look | None:
        """Look at a picture; None where the LoRA does nothing.

        Args:
            picture: Clean latents.
            estimates: The LoRA's and the base model's estimate for each noisy picture.

        Raises:
            CalibrationError: An estimate is not finite.
        """
        found = []
        for of_lora, of_base in estimates:
            effect = (of_lora.double() - of_base.double()).flatten()
            rest = (picture.double() - of_base.double()).flatten()
            energy, along = effect.dot(effect), rest.dot(effect)
            if not torch.isfinite(energy + along):
                raise CalibrationError(
                    "the pictures, or the model's estimates of them, are not finite: a precision "
                    "that overflows. Load the model in bfloat16 or float32"
                )
            if energy:
                share = along / energy
                found.append((share.item(), (rest.dot(rest) - share * along).item()))
        if not found:
            return None
        along_all, off_all = zip(*found, strict=True)
        return cls(statistics.fmean(along_all), statistics.fmean(off_all))


def share_of(picture: Look, own: Sequence[Look]) -> float:
    """Return how much of a LoRA is in a picture, 0 to 1; see the module.

    Args:
        own: Looks at the LoRA's own pictures, at least one.
    """
    along = statistics.fmean(look.along for look in own)
    off = statistics.fmean(look.off for look in own)
    others = max(0.0, picture.off - off) / off if off > 0 else 0.0
    share = 1 + (picture.along - along) / max(along, _LEAST) - _OTHERS * others
    return max(0.0, min(1.0, share))


def looking_noise(shape: Sequence[int], number: int, level: int) -> Tensor:
    """Return the noise under which the pictures of a prompt are looked at.

    Its seed is negative, which no sampling run has, and another for each prompt and level.

    Args:
        number: Number of the prompt, from 0 on.
        level: Place in `LEVELS`.
    """
    return noise(shape, -1 - number * len(LEVELS) - level)


def shares(
    model: DiffusionHost,
    adapters: Sequence[Adapter],
    pictures: Sequence[PromptPictures],
    rows_per_call: int = 8,
) -> list[list[dict[int, float]]]:
    """Return the share of each LoRA in each judged picture: prompt by prompt, for each picture the
    number of a LoRA that drew the prompt alone -> its share, 0 to 1. LoRAs that do nothing there
    are left out.

    Args:
        adapters: The LoRAs, with their strengths, which the pictures number.

    Raises:
        IterisError: A prompt that is too long, outputs that are not finite, or too little memory.
    """
    prompts = _encoded(model, adapters, pictures, rows_per_call)
    sigmas = model.sigmas(STEPS).float().cpu()
    parts = [adapter.select(lambda path: not model.is_text_module(path)) for adapter in adapters]
    rows = Rows(DenoiserRow.digest)

    def looked_at(number: int, k: int, picture: Tensor) -> list[tuple[int, int]]:
        text = pictures[number].prompt
        numbers = []
        for place, level in enumerate(LEVELS):
            grain = looking_noise(picture.shape, number, place)
            noisy = model.noised(picture, grain, sigmas[level])
            of_lora, of_base = (
                DenoiserRow(noisy, sigmas[level], prompts[text, worn]) for worn in (k, None)
            )
            numbers.append((rows.add(of_lora, mix_in(parts, {k: 1.0})), rows.add(of_base, {})))
        return numbers

    rows_of = {
        (n, k): [looked_at(n, k, picture) for picture in (own, *of.judged)]
        for n, of in enumerate(pictures)
        for k, own in of.alone.items()
    }
    with model.denoiser(STEPS) as network:
        outputs = with_smaller_calls(
            lambda size: outputs_of(network, parts, rows, size, nobody),
            rows_per_call,
            "looking at the pictures",
        )
    own: dict[int, list[Look]] = {}
    judged: dict[tuple[int, int], list[Look | None]] = {}
    for (n, k), of_pictures in rows_of.items():
        of = pictures[n]
        alone, *judged[n, k] = [
            Look.of(picture, [(outputs[a], outputs[b]) for a, b in of_picture])
            for picture, of_picture in zip((of.alone[k], *of.judged), of_pictures, strict=True)
        ]
        own.setdefault(k, []).extend([alone] if alone else [])
    found: list[list[dict[int, float]]] = [[{} for _ in of.judged] for of in pictures]
    for (n, k), looks in judged.items():
        for of_picture, look in zip(found[n], looks, strict=True):
            if look is not None and own[k]:
                of_picture[k] = share_of(look, own[k])
    return found


def _encoded(
    model: DiffusionHost,
    adapters: Sequence[Adapter],
    pictures: Sequence[PromptPictures],
    rows_per_call: int,
) -> dict[tuple[str, int | None], Encoded]:
    """Return each prompt as each LoRA that drew it reads it, and as the base model (None) does."""
    parts = [adapter.select(model.is_text_module) for adapter in adapters]
    tokenized = Tokenized.of(model, [Texts(of.prompt, of.prompt) for of in pictures])
    asked = list(dict.fromkeys((of.prompt, k) for of in pictures for k in (*of.alone, None)))
    pieces: list[tuple[Any, Mix]] = [
        (piece, () if k is None else tuple(mix_in(parts, {k: 1.0}).items()))
        for prompt, k in asked
        for piece in tokenized.pieces[prompt]
    ]
    written: list[Any] = []
    if pieces:
        with model.text_encoder() as network:
            written = with_smaller_calls(
                lambda size: written_for(network, pieces, size, parts),
                rows_per_call,
                "reading the prompts",
            )
    following = iter(written)
    found = {}
    for prompt, k in asked:
        rows = list(islice(following, len(tokenized.pieces[prompt])))
        found[prompt, k] = tokenized.context(Texts(prompt, prompt), rows, rows).teacher
    return found
