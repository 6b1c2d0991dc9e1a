"""Two MODELs that share the noise levels of sampling runs, as one `DiffusionHost`: Wan 2.2's expert
for high noise, where a run begins, and the one for low noise, which goes on with it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ...iteris_core import Adapter, IterisError, Network
from ...iteris_core.diffusion.lora_use import LoraUse
from ...iteris_core.diffusion.model import DenoiserRow, PatchedWeight
from ...iteris_core.files.families import Family
from ...iteris_core.memory import Room
from ...iteris_core.network import Expert
from ..expert_files import LOW_INPUT, expert_of, split_by_expert
from ..keys import UNET_PREFIX
from .diffusion_model import ComfyModel, Modules, TakenByLayers
from .folders import lora_names

_LOW = f"{UNET_PREFIX}low_noise."


def is_low(path: str) -> bool:
    """Whether a module or parameter is the low noise model's."""
    return path.startswith(_LOW)


def low_path(path: str) -> str:
    """Return the path in the pair of what the low noise model calls so; texts are shared."""
    return _LOW + path.removeprefix(UNET_PREFIX) if path.startswith(UNET_PREFIX) else path


def own_path(path: str) -> str:
    """Return what the model itself calls a path in the pair."""
    return UNET_PREFIX + path.removeprefix(_LOW) if is_low(path) else path


def _renamed(adapter: Adapter, name: Callable[[str], str]) -> Adapter:
    return replace(
        adapter,
        deltas={name(path): delta for path, delta in adapter.deltas.items()},
        vectors={name(path): vector for path, vector in adapter.vectors.items()},
    )


class ComfyPair(ComfyModel):
    """Two experts. What is not overridden here is the high noise model's.

    Args:
        high: The model for the levels from the family's boundary up.
        low: The one for all others, of the same class.

    Raises:
        IterisError: Models of a family that has single models, or of two classes.
    """

    def __init__(self, high: ComfyModel, low: ComfyModel) -> None:
        vars(self).update(vars(high))  # its clones, its room, and the texts that it has read
        self.low = low
        if not self.row.low_noise_below:
            raise IterisError(
                f"{LOW_INPUT} is for models that come as a pair, such as Wan 2.2's, and MODEL is "
                f"{self.row.family.name}, which is one model. Disconnect it"
            )
        if low.row is not self.row or low.keys.shapes != self.keys.shapes:
            raise IterisError(
                f"MODEL and {LOW_INPUT} are of two kinds; connect the high noise and the low noise "
                "model of one pair, such as both for text to video"
            )

    @property
    def family(self) -> Family:
        return replace(self.row.family, experts=2)

    @property
    def modules(self) -> Modules:
        of_low = {low_path(path): module for path, module in self.low.modules.items()}
        return {**super().modules, **of_low}

    @contextmanager
    def denoiser(self) -> Iterator[Network]:
        with ExitStack() as stack:
            at_once = _OneAtATime([super().denoiser, self.low.denoiser], stack)
            of_high = at_once.opened(0)

            def forward(rows: Sequence[DenoiserRow]) -> Tensor:
                answer: Tensor = at_once.opened(self._number(rows[0])).forward(rows)
                return answer

            def call_key(row: DenoiserRow) -> Hashable:
                number = self._number(row)
                return number, at_once.known(number).call_key(row)

            yield Network(
                self.modules,
                forward,
                lambda path: of_high.stream(own_path(path)),
                None,
                call_key,
                lambda path: of_high.folds_rows(own_path(path)),
                (
                    Expert("high noise model", lambda path: not is_low(path), self._is_high),
                    Expert("low noise model", is_low, lambda row: not self._is_high(row)),
                ),
                of_high.evictable,
                of_high.worn_bytes,
            )

    def _is_high(self, row: DenoiserRow) -> bool:
        return float(row.sigma) >= self.row.low_noise_below

    def _number(self, row: DenoiserRow) -> int:
        return 0 if self._is_high(row) else 1

    def sigmas(self, steps: int) -> Tensor:
        self._levels = self.low._levels = super().sigmas(steps)
        return self._levels

    def make_room(self, shape: Sequence[int], samples: int, takes: TakenByLayers) -> Room:
        room = super().make_room(shape, samples, takes)
        self.low.room = room
        return room

    def adapter(
        self, use: LoraUse, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> Adapter:
        """Return a LoRA for both experts, for the one that its file's name says, or of a file with
        one for each; see `ComfyModel.adapter`.
        """
        of_high, of_low = self._parts(use, tensors)
        # a file without tensors is refused there
        parts = [super().adapter(use, of_high, metadata)] if of_high or not of_low else []
        if of_low:
            parts.append(_renamed(self.low.adapter(use, of_low, metadata), low_path))
        if len(parts) == 1:
            return parts[0]
        unmatched = dict.fromkeys(key for part in parts for key in part.unmatched)
        return replace(parts[0].joined_with(parts[1]), unmatched=tuple(unmatched))

    def _parts(
        self, use: LoraUse, tensors: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Return what of a file is for the high, and what for the low noise model."""
        split = split_by_expert(tensors)
        if split is not None:
            return split["high"], split["low"]
        expert = expert_of(use.file, lora_names()) if use.file else None
        return ({} if expert == "low" else tensors), ({} if expert == "high" else tensors)

    def prove_reading(self, use: LoraUse, adapter: Adapter, tensors: Mapping[str, Tensor]) -> None:
        high, low = self.halves(adapter)
        of_high, of_low = self._parts(use, tensors)
        if of_high:
            super().prove_reading(use, high, of_high)
        if of_low:
            self.low.prove_reading(use, low, of_low)

    def halves(self, adapter: Adapter) -> tuple[Adapter, Adapter]:
        low, high = adapter.split(is_low)
        return high, _renamed(low, own_path)

    def patched(self, *adapters: Adapter) -> tuple[Any, Any]:
        """Return clones of the high noise MODEL and of CLIP; see `ComfyModel.patched`."""
        return super().patched(*(self.halves(adapter)[0] for adapter in adapters))

    def patched_low(self, adapter: Adapter) -> Any:
        return self.low.patched(self.halves(adapter)[1])[0]

    def with_adapter(self, adapter: Adapter) -> ComfyModel:
        high, low = self.halves(adapter)
        return ComfyPair(super().with_adapter(high), self.low.with_adapter(low))

    def weights_with(self, adapter: Adapter) -> Iterator[PatchedWeight]:
        high, low = self.halves(adapter)
        yield from super().weights_with(high)
        for weight in self.low.weights_with(low):
            yield replace(weight, path=low_path(weight.path))

    def lora_model_tensors(self, adapter: Adapter) -> dict[str, Tensor]:
        return super().lora_model_tensors(self.halves(adapter)[0])


@dataclass
class _OneAtATime:
    """Networks, only one of them open at a time, so that only one MODEL needs memory."""

    openers: Sequence[Callable[[], Any]]
    stack: ExitStack
    networks: dict[int, Network] = field(default_factory=dict)
    current: int = -1

    def opened(self, number: int) -> Network:
        """Return a network, open."""
        if self.current != number:
            self.stack.close()
            self.networks[number] = self.stack.enter_context(self.openers[number]())
            self.current = number
        return self.networks[number]

    def known(self, number: int) -> Network:
        """Return a network that may be closed by now, whose functions about rows still hold."""
        return self.networks.get(number) or self.opened(number)
