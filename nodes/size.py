"""How large a merged LoRA is, as the merge node says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ..iteris_core import ConfigError
from ..iteris_core.config import MOST_RANK
from ..iteris_core.diffusion.presets import Changes
from ..iteris_core.settings import settings, shown

if TYPE_CHECKING:
    import torch

    from ..iteris_core.diffusion.lora_use import LoadedLora

Way = Literal["as is", "smaller", "rank", "MB"]
SMALLER = 0.99  # of its effect that every layer keeps
_BYTES_OF_NAMES = 500  # of a layer's three tensors in the file's header
_MOST_MB = 10_000  # of a merged LoRA; more than the largest models have


@settings
class Size:
    """The size of a merged LoRA.

    Args:
        way: "as is": the sum of the LoRAs' ranks; "smaller": what matters least is cut; "rank" and
            "MB": as `value` says.
        value: One rank for all layers, or the size of the file in MB.

    Raises:
        ConfigError: A value that makes no sense.
    """

    way: Way = "as is"
    value: Annotated[float, Field(ge=0, le=MOST_RANK)] = 32.0

    def __post_init__(self) -> None:
        if self.way == "rank" and not (self.value >= 1 and self.value == int(self.value)):
            raise ConfigError(
                f"size is rank, and size_value is {shown(self.value)}; a rank is a whole number "
                "from 1 on, such as 32"
            )
        if self.way == "MB" and not 0 < self.value <= _MOST_MB:
            raise ConfigError(
                f"size is MB, and size_value is {shown(self.value)}; the size of a file is above 0 "
                f"MB, and {_MOST_MB} MB at most"
            )

    def check_alone(self, given: Changes) -> None:
        """Refuse a quality together with a rank or a size in MB.

        Raises:
            ConfigError: Each of them would decide the ranks.
        """
        quality = given.config.get("kept_energy")
        if quality is not None and self.way in ("rank", "MB"):
            raise ConfigError(
                f"size is {self.way} and quality_kept is {quality:g}, but each of them decides the "
                "ranks. Set quality_kept of Merge settings to 1, or size to 'as is'"
            )

    def changes(self, loras: Sequence[LoadedLora], dtype: torch.dtype) -> Changes:
        """Return what this size sets of a merge.

        Args:
            loras: The LoRAs, over whose layers a size in MB is shared out.
            dtype: The precision of the merged LoRA.

        Raises:
            ConfigError: The file has no room for rank 1 at every layer.
        """
        if self.way == "smaller":
            return Changes(config={"kept_energy": SMALLER})
        if self.way == "rank":
            return Changes(config={"rank": int(self.value)})
        if self.way == "MB":
            return Changes(config={"size": weights_in(self.value, dtype, loras)})
        return Changes()


def weights_in(megabytes: float, dtype: torch.dtype, loras: Sequence[LoadedLora]) -> int:
    """Return how many weights a file of this size has room for, in all factors together.

    Raises:
        ConfigError: It has no room for rank 1 at every layer.
    """
    from ..iteris_core.adapters import target_shapes

    shapes = target_shapes([lora.adapter for lora in loras])
    names = _BYTES_OF_NAMES * len(shapes)
    weights = int((megabytes * 1e6 - names) / dtype.itemsize)
    least = sum(map(sum, shapes.values()))
    if weights < least:
        raise ConfigError(
            f"size_value is {megabytes:g} MB; the smallest merge of these LoRAs, rank 1 in all "
            f"{len(shapes)} layers, takes {(least * dtype.itemsize + names) / 1e6:.1f} MB. Allow "
            "more"
        )
    return weights
