"""How large a merged LoRA is, as the merge node says it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..iteris_core import ConfigError
from ..iteris_core.config import MOST_RANK
from ..iteris_core.diffusion.presets import Changes
from ..iteris_core.settings import settings, shown

Way = Literal["as is", "smaller", "rank"]
SMALLER = 0.99  # of its effect that every layer keeps


@settings
class Size:
    """The size of a merged LoRA.

    Args:
        way: "as is": the sum of the LoRAs' ranks; "smaller": what matters least is cut; "rank": as
            `value` says.
        value: One rank for all layers.

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

    def check_alone(self, given: Changes) -> None:
        """Refuse a quality together with a rank.

        Raises:
            ConfigError: Each of them would decide the ranks.
        """
        quality = given.config.get("kept_energy")
        if quality is not None and self.way == "rank":
            raise ConfigError(
                f"size is {self.way} and quality_kept is {quality:g}, but each of them decides the "
                "ranks. Set quality_kept of Merge settings to 1, or size to 'as is'"
            )

    def changes(self) -> Changes:
        """Return what this size sets of a merge."""
        if self.way == "smaller":
            return Changes(config={"kept_energy": SMALLER})
        if self.way == "rank":
            return Changes(config={"rank": int(self.value)})
        return Changes()
