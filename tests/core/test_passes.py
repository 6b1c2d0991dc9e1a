"""What a merge costs with the default settings, counted: README says it in pictures."""

from pathlib import Path

import pytest
from fake_host import FakeHost

from iteris_core import MergeConfig
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.job import MergeSettings, merge_and_check

README = Path(__file__).parents[2] / "README.md"
ROWS_OF_A_PICTURE = 2 * 20  # steps with guidance


@pytest.mark.parametrize(("loras", "words"), [(2, "two LoRAs take"), (3, "Three LoRAs\ntake")])
def test_the_readme_says_how_many_pictures_a_merge_costs(loras, words):
    host = FakeHost()
    chosen = [
        host.lora(name, prompts=[f"a photo of {name} dog", f"{name} dog on a beach"])
        for name in "abc"[:loras]
    ]
    settings = MergeSettings(MergeConfig(samples_per_chunk=8))
    merge_and_check(host, chosen, Calibration(resolution=64), settings)
    rows = sum(map(len, host.unet_batches))
    said = README.read_text(encoding="utf-8").partition(words)[2]
    assert f"about {round(rows / ROWS_OF_A_PICTURE)} pictures" in said[:100]
