"""What a merge costs, counted: it is known before it starts, and the pages say it in pictures."""

from dataclasses import replace

import pytest
from fake_host import FakeHost, as_used

from iteris_core import MergeConfig
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.merging import merge_loras
from iteris_core.diffusion.polish import PER_LESSON

DEFAULTS = Calibration(resolution=64)
SMALL = replace(DEFAULTS, trajectories=5)
_FORMS = {"scene_forms": ("{first} and {second}",), "scene_prefixes": ()}
SCENES = replace(SMALL, companions=("chair", "big dog"), scene_weight=0.3, **_FORMS)
SETTINGS = MergeSettings(MergeConfig())


def loras_of(host, count, *parts, kinds=("subject",) * 3):
    prompts = "<{}>", "a photo of <{}> on a beach"
    return [
        as_used(host.lora(name, *parts, prompts=[text.format(name) for text in prompts]), kind=kind)
        for name, kind in zip("abc"[:count], kinds, strict=False)
    ]


@pytest.mark.parametrize(
    ("count", "calibration", "settings", "more"),
    [
        (1, SMALL, SETTINGS, {}),
        (2, DEFAULTS, SETTINGS, {}),
        (2, replace(SMALL, unconditional_share=0.3), SETTINGS, {}),
        (2, replace(SMALL, cfg=1.0), SETTINGS, {}),
        (2, replace(SMALL, preserve_weight=0.0), SETTINGS, {}),
        (3, SCENES, SETTINGS, {}),
        (2, replace(SCENES, scene_forms=("{first} behind {second}",)), SETTINGS, {}),
    ],
)
def test_the_rows_of_a_merge_are_known_before_it_starts(count, calibration, settings, more):
    host = FakeHost()
    planned = Job.of(host, loras_of(host, count, **more), calibration, settings)
    cost = planned.cost
    assert host.unet_batches == []
    seen = {}

    def listen(stage, done, total):
        seen[stage.name] = sum(map(len, host.unet_batches))

    merge_loras(planned, listen)
    measured, whole = seen["Sampling"], sum(map(len, host.unet_batches))
    assert measured == cost.sampling
    assert whole - measured == cost.sweep
    assert cost.rows == whole
    assert seen["Diffusion model"] - measured == cost.sweep


@pytest.mark.parametrize(("count", "calibration"), [(2, DEFAULTS), (3, SCENES)])
def test_the_rows_of_a_polish_are_known_before_it_starts(count, calibration):
    """A row with its gradient is one forward call's here, and counts as three."""
    host = FakeHost()
    steps = 24
    job = Job.of(host, loras_of(host, count), replace(calibration, polish=steps), SETTINGS)
    seen = {}

    def listen(stage, done, total):
        seen[stage.name] = sum(map(len, host.unet_batches))

    merge_loras(job, listen)
    cost = job.cost
    with_gradients = steps * PER_LESSON * len(cost.lessons)
    assert seen["Sampling"] == cost.sampling + cost.polish_sampling
    assert seen["Diffusion model"] - seen["Sampling"] == cost.sweep
    found = seen["Polish"] - seen["Diffusion model"]
    assert found + 2 * with_gradients == pytest.approx(cost.polish, rel=0.03)
    assert cost.rows == cost.sampling + cost.sweep + cost.polish_sampling + cost.polish


@pytest.mark.parametrize("calibration", [DEFAULTS, replace(SCENES, trajectories=20)])
def test_the_rows_with_other_runs_are_about_their_share(calibration):
    host = FakeHost()
    loras = loras_of(host, 3)
    whole, half = (
        Job.of(host, loras, replace(calibration, trajectories=runs), SETTINGS).cost
        for runs in (20, 10)
    )
    assert whole.rows_with(1.0, 0) == whole.rows
    assert whole.rows_with(0.5, 0) == pytest.approx(half.rows, rel=0.05)
    polished = Job.of(host, loras, replace(calibration, trajectories=10, polish=8), SETTINGS).cost
    assert polished.polish > 0
    assert whole.rows_with(0.5, 8) == pytest.approx(polished.rows, rel=0.05)
