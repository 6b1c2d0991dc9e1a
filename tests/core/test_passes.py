"""What a merge costs, counted: it is known before it starts, and the pages say it in pictures."""

from dataclasses import replace
from pathlib import Path

import pytest
from fake_host import FakeHost, as_used

from iteris_core import MergeConfig
from iteris_core.diffusion import job
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.cost import ALONE
from iteris_core.diffusion.job import MergeSettings, merge_and_check, planned, rows_of

ROOT = Path(__file__).parents[2]
DEFAULTS = Calibration(resolution=64)
SMALL = replace(DEFAULTS, trajectories=5, held_out=2)
SCENES = replace(
    SMALL,
    companions=("chair", "big dog"),
    scene_weight=0.3,
    scene_prefix_share=0.0,
    scene_forms=("{first} and {second}", "{first} {style}"),
)
SETTINGS = MergeSettings(MergeConfig(samples_per_chunk=8))


def loras_of(host, count, *parts):
    prompts = "<{}>", "a photo of <{}> on a beach"
    return [
        host.lora(name, *parts, prompts=[prompt.format(name) for prompt in prompts])
        for name in "abc"[:count]
    ]


@pytest.mark.parametrize(
    ("count", "calibration", "settings"),
    [
        (1, SMALL, SETTINGS),
        (2, SMALL, SETTINGS),
        (2, DEFAULTS, SETTINGS),
        (2, replace(SMALL, timesteps=3, unconditional_share=0.3), SETTINGS),
        (2, replace(SMALL, cfg=1.0), SETTINGS),
        (2, replace(SMALL, preserve_weight=0.0, held_out=0), SETTINGS),
        (2, SMALL, replace(SETTINGS, correct_strength=True)),
        (2, SMALL, replace(SETTINGS, config=replace(SETTINGS.config, size=200))),
        (3, SCENES, SETTINGS),
        (2, replace(SCENES, scene_pictures=False), SETTINGS),
    ],
)
def test_the_rows_of_a_merge_are_known_before_it_starts(count, calibration, settings):
    host = FakeHost()
    loras = loras_of(host, count)
    cost = planned(host, loras, calibration.for_family(host.family), settings)
    assert host.unet_batches == []
    seen = {}

    def listen(stage, done, total):
        seen[stage.name] = sum(map(len, host.unet_batches))

    merge_and_check(host, loras, calibration, settings, listen)
    measured, checked = seen["Sampling"], sum(map(len, host.unet_batches))
    assert measured == cost.sampling
    assert checked - measured == cost.sweep + cost.check
    assert cost.rows == checked
    # the sample that runs alone follows the last layer, with which the stage ends
    assert seen["Diffusion model"] - measured in (cost.sweep, cost.sweep - 2 * ALONE)


def test_the_captions_of_a_merge_whose_cost_is_known_are_not_read_again(monkeypatch):
    host = FakeHost()
    loras = loras_of(host, 2)
    read = []
    check = job.check_captions
    monkeypatch.setattr(job, "check_captions", lambda *given: read.append(check(*given)))
    cost = planned(host, loras, SMALL.for_family(host.family), SETTINGS)
    known = merge_and_check(host, loras, SMALL, SETTINGS, cost=cost)
    assert len(read) == 1
    merge_and_check(host, loras, SMALL, SETTINGS)
    assert len(read) == 2
    assert known.report.fidelity


def test_a_style_and_a_subject_are_counted_too():
    host = FakeHost()
    loras = [
        as_used(lora, kind=kind)
        for lora, kind in zip(loras_of(host, 2), ("subject", "style"), strict=True)
    ]
    cost = planned(host, loras, SCENES.for_family(host.family), SETTINGS)
    merge_and_check(host, loras, SCENES, SETTINGS)
    assert sum(map(len, host.unet_batches)) == cost.rows


def test_loras_of_the_text_encoder_alone_sample_only_for_the_check():
    host = FakeHost()
    loras = loras_of(host, 2, ("te",))
    cost = planned(host, loras, SMALL.for_family(host.family), SETTINGS)
    merge_and_check(host, loras, SMALL, SETTINGS)
    assert (cost.sampling, cost.sweep) == (0, 0)
    assert sum(map(len, host.unet_batches)) == cost.check


@pytest.mark.parametrize(
    ("page", "count", "words"),
    [
        ("README.md", 2, "two LoRAs take"),
        ("docs/models.md", 2, "two LoRAs take"),
        ("docs/models.md", 3, "three LoRAs take"),
    ],
)
def test_the_pages_say_how_many_pictures_a_merge_costs(page, count, words):
    host = FakeHost()
    cost = planned(host, loras_of(host, count), DEFAULTS.for_family(host.family), SETTINGS)
    said = (ROOT / page).read_text(encoding="utf-8").partition(words)[2]
    assert f"about {cost.pictures} pictures" in said[:100]


def test_the_rows_are_known_before_they_are_run():
    host = FakeHost()
    loras = loras_of(host, 2)
    expected = rows_of(host, loras, SMALL.for_family(host.family), SETTINGS)
    merge_and_check(host, loras, SMALL, SETTINGS)
    assert sum(map(len, host.unet_batches)) == expected
