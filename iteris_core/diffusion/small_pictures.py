"""One small picture for each LoRA, drawn by a row that wears it. The first LoRA's is also drawn by
the model that the host patches with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adapters import Adapter
from ..devices import exact_products
from ..errors import AdapterError, CalibrationError
from ..layers import is_quantised
from ..network import Network
from ..rows.wearing import layer_hooks, wearing
from .calibration import Calibration
from .model import DenoiserRow, DiffusionHost, Encoded
from .sampling import Sampler, noise

# Side in pixels, at most: a small picture runs through the same layers. With half of it, SD1.5's
# innermost attention would read a single token, where q and k do nothing.
_SIDE = 128
_EXACT = {torch.float32, torch.float64}


class View(NamedTuple):
    """The caption that one row reads, and the adapter that it wears."""

    caption: str
    adapter: Adapter = Adapter("nothing", {})


class Drawn(NamedTuple):
    """What one row draws: its estimate of the clean latents, float32 on the CPU; the layers of its
    adapter that the model did not call; and whether the host rounds no weight of these layers.
    """

    picture: Tensor
    missed: Sequence[str]
    is_exact: bool


class Pictures(NamedTuple):
    """The picture of the base model, those of rows that each wear an adapter, and the picture of
    the model that the host has patched with the first adapter.
    """

    base: Tensor
    worn: Sequence[Drawn]
    loaded: Tensor

    @property
    def is_exact(self) -> bool:
        return self.worn[0].is_exact

    @property
    def difference(self) -> float:
        """The distance of the first row and the patched model, relative to the larger effect of
        both; 0 where neither does anything.
        """
        worn = self.worn[0].picture
        effect = max((picture - self.base).norm().item() for picture in (worn, self.loaded))
        return (self.loaded - worn).norm().item() / effect if effect else 0.0


def pictures_of(model: DiffusionHost, views: Sequence[View], calibration: Calibration) -> Pictures:
    """Draw a picture of each view, and one by the model that the host patches with the first view's
    adapter.
    """
    first = views[0]
    assert model.loader is not None
    patched = model.loader.with_adapter(first.adapter)
    plain = [View(first.caption)]
    # all texts first, so that text encoder and diffusion model need not make room for each other
    prompts = _encoded(model, [*plain, *views])
    of_patched = _encoded(patched, plain)
    base, *worn = _draw(model, [*plain, *views], prompts, calibration)
    # twice: a host that loads weights when they are called rounds those that stay, after their use
    *_, loaded = _draw(patched, plain * 2, of_patched * 2, calibration)
    if not base.picture.isfinite().all():
        raise CalibrationError(
            "the base model's own picture is not finite before any LoRA is on it. Load the model "
            "in another precision (bfloat16 or float32), and see if it draws at all"
        )
    for view, drawn in zip([first, *views], [loaded, *worn], strict=True):
        if not drawn.picture.isfinite().all():
            raise AdapterError(
                f"{view.adapter.name}: the model's picture is finite without this LoRA, but not "
                "with it. Use it at a lower strength, or load the model in bfloat16 or float32"
            )
    return Pictures(base.picture, worn, loaded.picture)


@torch.no_grad()
def _encoded(model: DiffusionHost, views: Sequence[View]) -> list[tuple[Encoded, list[str], bool]]:
    """Return each caption as its row encodes it, the layers of its adapter that were missed, and
    whether none of them is rounded.
    """
    pieces = [model.tokenize(view.caption) for view in views]
    if not any(pieces):
        return [(model.encoded(view.caption, []), [], True) for view in views]
    found = []
    with model.text_encoder() as network:
        for view, of_view in zip(views, pieces, strict=True):
            adapter, _ = view.adapter.split(model.is_text_module)
            with _watched(network, adapter, len(of_view)) as seen:
                outputs: Sequence[Any] = list(network.forward(of_view))
            found.append((model.encoded(view.caption, outputs), sorted(seen.missed), seen.is_exact))
    return found


@torch.no_grad()
def _draw(
    model: DiffusionHost,
    views: Sequence[View],
    prompts: Sequence[tuple[Encoded, list[str], bool]],
    calibration: Calibration,
) -> list[Drawn]:
    """Return a model's pictures of prompts, each drawn in a call of its own, so that all are
    rounded alike. All are drawn from one small noisy picture for each expert, at the middle of its
    part of a sampling run.
    """
    found = []
    small = replace(calibration, resolution=min(calibration.resolution, _SIDE))
    with model.denoiser() as network:
        sampler = Sampler.of(model, network, small)
        noisy = list(_noisy(sampler, calibration.seed))
        for view, (prompt, of_text, text_is_exact) in zip(views, prompts, strict=True):
            _, adapter = view.adapter.split(model.is_text_module)
            with _watched(network, adapter, 1) as seen, exact_products(noisy[0][0].device):
                pictures = [network.forward([DenoiserRow(*x, prompt)])[0].float() for x in noisy]
            picture = torch.stack(pictures).cpu()
            is_exact = text_is_exact and seen.is_exact
            found.append(Drawn(picture, [*of_text, *sorted(seen.missed)], is_exact))
    return found


def _noisy(sampler: Sampler, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield noisy latents with their level, for each expert at the middle of its levels."""
    nothing = torch.empty(0)
    for expert in sampler.network.experts:
        own = [
            sigma
            for sigma in sampler.sigmas[:-1]
            if expert.runs(DenoiserRow(nothing, sigma, Encoded(nothing)))
        ]
        if not own:
            raise CalibrationError(
                f"a sampling run has no noise level at which the {expert.name} works. Check the "
                "shift of both models (ModelSamplingSD3)"
            )
        sigma = own[len(own) // 2]
        yield sampler.start(noise(sampler.shape, seed)[None], sigma)[0], sigma


@dataclass
class _Seen:
    """The layers of an adapter that have not run so far; and whether, in all that have, the host
    keeps the sum of weight and change in float32 or better.
    """

    missed: set[str]
    is_exact: bool = True


@contextmanager
def _watched(network: Network, adapter: Adapter, rows: int) -> Iterator[_Seen]:
    """Let all rows wear an adapter, and yield what is seen of its layers."""
    seen = _Seen(set(adapter.deltas))

    def ran(path: str, module: torch.nn.Module, _x: Tensor, y: Tensor) -> Tensor:
        seen.missed.discard(path)
        weight = getattr(module, "weight", None)
        # a host may keep a float32 weight on file, and patch the half that it casts it to
        is_exact = isinstance(weight, Tensor) and {weight.dtype, y.dtype} <= _EXACT
        seen.is_exact &= is_exact and not is_quantised(module)
        return y

    modules = {path: network.modules[path] for path in adapter.deltas}
    worn = wearing(network.modules, [adapter], [{0: 1.0}] * rows, folds_rows=network.folds_rows)
    with layer_hooks(modules, ran), worn:
        yield seen
