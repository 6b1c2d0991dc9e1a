"""A proof that LoRAs are read as the host's own loader reads them, and that the host draws with the
merged LoRA what was solved.

One row draws one caption of a LoRA in four ways:

    base     the base model
    worn     a row that wears the LoRA, as the merge measures it
    loaded   the model on which the host's own loader has put the LoRA's file
    patched  the model on which the host has put the LoRA as it was read

``worn`` and ``loaded`` must be the same. Where they are not, ``patched`` says why. If it is not the
same as ``loaded``, the file was misread. If it is, either the host rounds the sums of weights and
LoRA, or rows do not wear what they should. Other strengths tell these apart: rounding hardly grows
with the LoRA, so that its share of the effect falls, and it makes the effect neither stronger nor
weaker. The share of a fault stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..adapters import Adapter
from ..errors import AdapterError, CalibrationError, SolveError
from ..network import Network
from ..progress import Progress, nobody
from ..report.records import Note
from ..rows.wearing import layer_hooks, wearing
from .calibration import Calibration
from .lora_use import LoadedLora
from .model import DenoiserRow, DiffusionHost, Encoded, HostLoader
from .sampling import Sampler, noise

# Shares of a LoRA's effect. Rows and patched models differ by 1e-5 in float32. Rounding makes that
# 0.001 to 0.05 on weights in float16, 0.01 to 0.9 in bfloat16, and 0.1 to 1 in fp8, the more the
# smaller the LoRA. A weight in the wrong order or with the wrong factor makes 0.1 to 1.
TOLERANCE = 0.01
_NOTED = 0.05
# A change of the LoRA that does not count. In 16 bits, two rows that are the same but for the last
# digit drift apart from layer to layer, and this shows how far.
_NUDGE = 1.001
# How much of that drift is allowed.
_DRIFTS = 2.0
# At an eighth of the strength, the share that is rounded grows 8 times, and 2.8 times in fp8, whose
# rounding is random: its steps are rare at a small strength. The share of a fault stays.
_WEAKER = 1 / 8
_GROWTH = 2.0
# The strengths at which its share is looked for, as long as it does not rise, and the LoRA does
# less than the picture itself. Beyond, more of a LoRA does the same, so that a fault's share falls.
_STRONGER = (1.0, 4.0, 16.0, 64.0, 256.0)
_RISE = 1.1
# Where its share has fallen by half, rounding makes a LoRA's effect hardly stronger or weaker: by
# 0.03 at most, in fp8 too. Rows that wear it 1.5 times as strong are off by 0.26 and more.
_BIAS = 0.2
# Side in pixels of what is drawn, at most: a small picture runs through the same layers. With half
# of it, SD1.5's innermost attention would read a single token, where q and k do nothing.
_SIDE = 128
_CHANGED = (
    "Likely another node changes the model's layers, or the model calls some of them in a way of "
    "its own. Connect MODEL and CLIP straight from their loaders; if it stays, report it"
)
_MISREAD = (
    "Likely causes: a kind of key that IterIS misreads, a model that keeps a weight's rows in an "
    "order of its own, or another node that changes MODEL or CLIP. Connect them straight from "
    "their loaders; if it stays, leave this LoRA out, and report it with the output of 'iteris "
    "inspect'"
)


@dataclass(frozen=True)
class Proof:
    """What the proof of a merge's LoRAs found.

    Args:
        rounded: Name of a LoRA -> the share of its effect by which the host rounds it.
    """

    rounded: Mapping[str, float] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[Note, ...]:
        """A note for the report where much is rounded."""
        much = {name: share for name, share in self.rounded.items() if share >= _NOTED}
        if not much:
            return ()
        shares = ", ".join(f"{name} by {share:.0%} of its effect" for name, share in much.items())
        return (
            Note(
                "host",
                "the numbers of this model are too coarse for what a LoRA changes, so that ComfyUI "
                f"rounds it: {shares}. That is so for every LoRA on this model, merged or not. The "
                "merge is measured without this rounding",
            ),
        )

    def joined_with(self, other: Proof) -> Proof:
        return Proof({**self.rounded, **other.rounded})


@dataclass(frozen=True, eq=False)
class View:
    """What one row looks at, and what it wears.

    Args:
        caption: Its caption.
        adapter: What it wears; None: nothing.
    """

    caption: str
    adapter: Adapter | None = None


@dataclass(frozen=True, eq=False)
class Drawn:
    """What one row draws.

    Args:
        picture: Its estimate of the clean latents, float32 on the CPU.
        missed: Layers that its adapter changes, and that the model did not call.
    """

    picture: Tensor
    missed: Sequence[str] = ()


def prove_loras(
    model: DiffusionHost,
    loras: Sequence[LoadedLora],
    calibration: Calibration,
    progress: Progress = nobody,
) -> Proof:
    """Compare each LoRA's rows with the model on which the host's own loader has put its file.

    Args:
        model: The base model.
        loras: The LoRAs of the merge that change something.
        calibration: The calibration of the merge, for this family.
        progress: Listener for (LoRAs done, LoRAs in all).

    Returns:
        How the host rounds; nothing if it has no loader of its own.

    Raises:
        AdapterError: A LoRA is read in another way than the host reads it, or its effect is not
            finite; names it.
        CalibrationError: The base model's picture is not finite, or rows do not draw what the model
            draws that the host patched.
    """
    loader = model.loader
    if loader is None:
        return Proof()
    captions = [caption_of(lora) for lora in loras]
    worn = [View(c, lora.adapter) for c, lora in zip(captions, loras, strict=True)]
    views = [*map(View, captions), *worn]
    hosts = [loader.with_file(lora) for lora in loras]
    # all texts first, so that text encoder and diffusion model need not make room for each other
    prompts = encoded(model, views)
    of_hosts = [encoded(host, [View(c)]) for host, c in zip(hosts, captions, strict=True)]
    drawn = draw(model, views, prompts, calibration)
    proof = Proof()
    for k, lora in enumerate(loras):
        view = [View(captions[k])]
        host = hosts.pop(0)  # with its file's tensors
        comparison = Comparison(
            lora.adapter.name,
            base=drawn[k].picture,
            worn=drawn[len(loras) + k],
            loaded=draw(host, view, of_hosts[k], calibration)[0].picture,
        )
        comparison.check_finite()
        if comparison.difference > TOLERANCE:
            _check_reading(comparison, loader, lora, calibration)
            if not _is_rounding(comparison, model, captions[k], lora.adapter, calibration):
                raise CalibrationError(
                    f"{comparison.name}: its rows do not draw what the model draws that ComfyUI "
                    "patches with it, though its file is read alike: the difference is "
                    f"{comparison.difference:.0%} of what it does to {captions[k]!r}, and no "
                    f"rounding. {_CHANGED}"
                )
        proof = proof.joined_with(comparison.found)
        progress(k + 1, len(loras))
    return proof


def prove_merged(
    model: DiffusionHost,
    merged: Adapter,
    lora: LoadedLora,
    calibration: Calibration,
    proof: Proof,
) -> Proof:
    """Compare a row that wears the merged LoRA with the model that the host patches with it.

    Args:
        model: The base model.
        merged: The merged LoRA.
        lora: The LoRA whose caption is drawn.
        calibration: The calibration of the merge, for this family.
        proof: What was found before the merge.

    Returns:
        What was found before and now.

    Raises:
        SolveError: They differ by more than rounding.
    """
    if model.loader is None:
        return proof
    caption = caption_of(lora)
    comparison = compared("the merged LoRA", model, caption, merged, calibration)
    comparison.check_finite()
    missed = comparison.worn.missed
    if comparison.difference > TOLERANCE and (
        missed or not _is_rounding(comparison, model, caption, merged, calibration)
    ):
        raise SolveError(
            "the MODEL that would be handed out does not draw with the merged LoRA what was "
            f"solved: the difference is {comparison.difference:.0%} of what it does to "
            f"{caption!r}, and no rounding. {_of_missed(missed) or _CHANGED}"
        )
    return proof.joined_with(comparison.found)


@dataclass(frozen=True, eq=False)
class Comparison:
    """A row that wears an adapter, beside the same row of the model that the host patched.

    Args:
        name: Name of the LoRA.
        base: What the base model draws.
        worn: What the row draws that wears the adapter.
        loaded: What the host's model draws.
    """

    name: str
    base: Tensor
    worn: Drawn
    loaded: Tensor

    @property
    def effect(self) -> float:
        """What the LoRA does; the larger of both, since one of them may miss it."""
        return max(_distance(picture, self.base) for picture in (self.worn.picture, self.loaded))

    @property
    def distance(self) -> float:
        return _distance(self.loaded, self.worn.picture)

    @property
    def difference(self) -> float:
        """The distance relative to the effect; 0 where neither does anything."""
        return self.distance / self.effect if self.effect else 0.0

    @property
    def bias(self) -> float:
        """The share of what the row does by which the host's model does more or less of the same;
        infinite if the row does nothing.
        """
        worn = (self.worn.picture - self.base).flatten()
        more = (self.loaded - self.worn.picture).flatten()
        does = worn.dot(worn).item()
        return abs(worn.dot(more).item()) / does if does else math.inf

    @property
    def found(self) -> Proof:
        """What it shows of the host's rounding, once nothing else can be the cause."""
        return Proof({self.name: self.difference})

    def check_finite(self) -> None:
        """Refuse pictures that are not finite.

        Raises:
            AdapterError, CalibrationError: Says whose they are.
        """
        if not self.base.isfinite().all():
            raise CalibrationError(
                "the base model's own picture is not finite before any LoRA is on it. Load the "
                "model in another precision (bfloat16 or float32), and see if it draws at all"
            )
        if not (self.worn.picture.isfinite().all() and self.loaded.isfinite().all()):
            raise AdapterError(
                f"{self.name}: with this LoRA the model's picture is not finite, though it is "
                "without it. Use it at a lower strength, or load the model in bfloat16 or float32"
            )


def _check_reading(
    comparison: Comparison, loader: HostLoader, lora: LoadedLora, calibration: Calibration
) -> None:
    """Refuse a LoRA that the host's own loader reads in another way, or that is worn in part only.

    Raises:
        AdapterError: Says by how much, and what is likely.
    """
    name = comparison.name
    effect = comparison.effect
    if comparison.worn.missed:
        raise AdapterError(
            f"{name}: what it does can be measured in part only; {comparison.difference:.0%} of "
            f"its effect is missed. {_of_missed(comparison.worn.missed)}"
        )
    view = [View(caption_of(lora))]

    def patched(factor: float) -> Tensor:
        host = loader.with_adapter(lora.adapter.scaled(factor))
        return drawn_by(host, view, calibration)[0].picture

    as_read = patched(1.0)
    misread = _distance(comparison.loaded, as_read) / effect
    if misread <= TOLERANCE:
        return
    drift = _distance(patched(_NUDGE), as_read) / effect
    if misread > _DRIFTS * drift:
        raise AdapterError(
            f"{name}: ComfyUI's own loader makes another change of it than IterIS: they differ by "
            f"{misread:.0%} of what it does to {view[0].caption!r}, and a merge would be measured "
            f"on the wrong LoRA. {_of_unread(lora.adapter.unmatched)}{_MISREAD}"
        )


def _is_rounding(
    comparison: Comparison,
    model: DiffusionHost,
    caption: str,
    adapter: Adapter,
    calibration: Calibration,
) -> bool:
    """Whether rounding explains the difference of a row and the model that the host patched with
    the same adapter.
    """

    def at(strength: float) -> Comparison:
        if strength == 1:
            return comparison
        scaled = adapter.scaled(strength)
        return compared(comparison.name, model, caption, scaled, calibration)

    weak = at(_WEAKER).difference
    before = weak
    for strength in _STRONGER:
        strong = at(strength)
        # false for pictures that are not finite, too
        if strength > 1 and not strong.effect < strong.base.norm().item():
            return False
        if strong.difference * _GROWTH <= weak:
            return strong.bias <= _BIAS
        if strong.difference > _RISE * before:
            return False
        before = strong.difference
    return False


def compared(
    name: str, model: DiffusionHost, caption: str, adapter: Adapter, calibration: Calibration
) -> Comparison:
    """Compare a row that wears an adapter with the model that its host's loader patches with it."""
    assert model.loader is not None
    patched = model.loader.with_adapter(adapter)
    views = [View(caption), View(caption, adapter)]
    # the texts of both first; see `prove_loras`
    prompts = encoded(model, views)
    of_patched = encoded(patched, views[:1])
    base, worn = draw(model, views, prompts, calibration)
    [loaded] = draw(patched, views[:1], of_patched, calibration)
    return Comparison(name, base.picture, worn, loaded.picture)


def _of_missed(missed: Sequence[str]) -> str:
    """Return a sentence about layers that the model does not call, or nothing."""
    if not missed:
        return ""
    return (
        f"The model does not call {len(missed)} of its layers, such as {missed[0]!r}, so that "
        "nothing can be measured there: it reads their weights in code of its own, as ComfyUI does "
        "with int8 layers after an activation, or is compiled. Load the model in 16 bit, fp8 or "
        "GGUF, and merge in front of nodes that compile it"
    )


def _of_unread(keys: Sequence[str]) -> str:
    """Return a sentence about keys that were not read, or nothing."""
    if not keys:
        return ""
    return f"{len(keys)} keys of its file were not read, such as {keys[0]!r}. "


def caption_of(lora: LoadedLora) -> str:
    """Return the caption on which a LoRA is proved: its first prompt."""
    return next(iter(lora.use.prompts), "")


def drawn_by(model: DiffusionHost, views: Sequence[View], calibration: Calibration) -> list[Drawn]:
    """Return what rows of a model draw."""
    return draw(model, views, encoded(model, views), calibration)


@torch.no_grad()
def encoded(model: DiffusionHost, views: Sequence[View]) -> list[tuple[Encoded, list[str]]]:
    """Return each caption as its row encodes it, and the layers of its adapter that were missed."""
    pieces = [model.tokenize(view.caption) for view in views]
    if not any(pieces):
        return [(model.encoded(view.caption, []), []) for view in views]
    found = []
    with model.text_encoder() as network:
        for view, of_view in zip(views, pieces, strict=True):
            adapter = _part(view, model, of_text=True)
            with _watched(network, adapter, len(of_view)) as missed:
                outputs: Sequence[Any] = list(network.forward(of_view))
            found.append((model.encoded(view.caption, outputs), sorted(missed)))
    return found


@torch.no_grad()
def draw(
    model: DiffusionHost,
    views: Sequence[View],
    prompts: Sequence[tuple[Encoded, list[str]]],
    calibration: Calibration,
) -> list[Drawn]:
    """Return what rows of a model draw of prompts, each in a call of its own, so that all have the
    same rounding. All see one small noisy picture, at the middle of a sampling run.
    """
    found = []
    small = replace(calibration, resolution=min(calibration.resolution, _SIDE))
    with model.denoiser() as network:
        sampler = Sampler.of(model, network, small)
        sigma = sampler.sigmas[(len(sampler.sigmas) - 1) // 2]
        latents = sampler.start(noise(sampler.shape, calibration.seed)[None], sigma)[0]
        for view, (prompt, of_text) in zip(views, prompts, strict=True):
            with _watched(network, _part(view, model, of_text=False), 1) as missed:
                [picture] = network.forward([DenoiserRow(latents, sigma, prompt)])
            found.append(Drawn(picture.float().cpu(), [*of_text, *sorted(missed)]))
    return found


def _part(view: View, model: DiffusionHost, *, of_text: bool) -> Adapter | None:
    if view.adapter is None:
        return None
    text, denoiser = view.adapter.split(model.is_text_module)
    return text if of_text else denoiser


@contextmanager
def _watched(network: Network, adapter: Adapter | None, rows: int) -> Iterator[set[str]]:
    """Let all rows wear an adapter; yields the paths of its layers that have not run so far."""
    adapters = [] if adapter is None else [adapter]
    waiting = {path for of_one in adapters for path in of_one.deltas}
    mixes: list[Mapping[int, float]] = [dict.fromkeys(range(len(adapters)), 1.0)] * rows

    def ran(path: str, _module: torch.nn.Module, _x: Tensor, y: Tensor) -> Tensor:
        waiting.discard(path)
        return y

    modules = {path: network.modules[path] for path in waiting}
    worn = wearing(network.modules, adapters, mixes, folds_rows=network.folds_rows)
    with layer_hooks(modules, ran), worn:
        yield waiting


def _distance(a: Tensor, b: Tensor) -> float:
    return (a - b).norm().item()
