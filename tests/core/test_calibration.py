"""Captions, kept noise levels, noise and the sampler that calibrates."""

import math
from collections import Counter

import pytest
import torch
from fake_host import use
from hypothesis import given
from hypothesis import strategies as st

from iteris_core import CalibrationError, ConfigError
from iteris_core.diffusion.calibration import COMPANIONS, PRESERVE_CAPTIONS, Calibration
from iteris_core.diffusion.runs import Run, is_chosen, staggered
from iteris_core.diffusion.samples import base_captions, own_captions
from iteris_core.diffusion.sampling import noise
from iteris_core.files.families import FAMILIES


def test_a_half_of_the_noise_levels_is_measured_whole_and_alone():
    high, low, whole = (Calibration(noise_levels=name) for name in ("high", "low", "all"))
    assert [*high.measured_levels, *low.measured_levels] == [*whole.measured_levels]
    for half in (high, low):
        paths = [Run.of(half, 0, run).path for run in range(100)]
        assert {path[-1] for path in paths} == set(half.measured_levels)
        assert all(path[0] == 0 for path in paths), "from pure noise"


@given(
    runs=st.integers(1, 60),
    share=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    seed=st.integers(0, 100),
)
def test_a_share_of_the_captions_puts_ordinary_things_beside_the_prompt(runs, share, seed):
    captions = own_captions(
        use("a", ["<a>"]), Calibration(trajectories=runs, composition_share=share), seed
    )
    composed = [caption for caption in captions if caption != "<a>"]
    assert len(captions) == runs
    assert len(composed) == math.floor(runs * share)
    assert all(
        "<a>" in caption and any(thing in caption for thing in COMPANIONS) for caption in composed
    )


def test_company_is_put_beside_the_bare_subject():
    prompts = ("a photo of sks dog on the beach, best quality", "a portrait of sks dog")
    calibration = Calibration(trajectories=8, composition_share=0.5, companions=("a cup",))
    for lora in (
        use("a", prompts, trigger_words=("sks",)),
        use("a", prompts, trigger="sks dog"),
        use("a", prompts),
    ):
        composed = [
            form.format(prompt="sks dog", thing="a cup") for form in calibration.compositions
        ]
        assert set(own_captions(lora, calibration, 0)) - set(prompts) <= set(composed)
        assert set(own_captions(lora, calibration, 0)) >= set(prompts)


def test_empty_prompts_are_refused():
    for prompts in ([], [""], ["<a>", "  \n"], [", ."]):
        said = r"a prompt is empty, or .*; write at least one that"
        with pytest.raises(CalibrationError, match=said):
            own_captions(use("a", prompts), Calibration(), 0)


def test_the_preserve_task_reads_a_caption_a_run_and_skips_none():
    every = Calibration(trajectories=30)
    assert set(base_captions(every)) == set(PRESERVE_CAPTIONS)
    two = Calibration(trajectories=5, preserve_captions=("one", "two"))
    assert base_captions(two) == ["one", "two", "one", "two", "one"]


@given(steps=st.integers(1, 40), number=st.integers(0, 10_000))
def test_a_run_goes_from_pure_noise_through_different_levels_in_usual_steps(steps, number):
    calibration = Calibration(sampling_steps=steps)
    path = Run.of(calibration, 0, number).path
    assert path[0] == 0
    assert list(path) == sorted(set(path))
    assert path[-1] < calibration.levels
    # half a step more or less, but at least one
    assert abs(len(path) - 1 - path[-1] * steps / calibration.levels) <= 1


@given(steps=st.integers(1, 40))
def test_a_few_staggered_runs_cover_all_noise_levels_evenly(steps):
    calibration = Calibration(sampling_steps=steps)
    levels = calibration.levels
    counts = Counter(Run.of(calibration, 0, number).path[-1] for number in range(200))
    few = {Run.of(calibration, 0, number).path[-1] for number in range(math.ceil(2.5 * levels))}
    assert few == set(counts) == set(range(levels))
    assert max(counts.values()) - min(counts.values()) <= 6 + 0.02 * max(counts.values())


@given(runs=st.integers(1, 60), share=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
def test_the_chosen_latents_are_the_share_of_all(runs, share):
    chosen = [is_chosen(0, share, start) for start in staggered(runs)]
    assert sum(chosen) == math.floor(runs * share)


@pytest.mark.parametrize("runs", [20, 60])
def test_what_is_chosen_goes_along_with_neither_noise_nor_company(runs):
    calibration = Calibration()
    of_noise = [[] for _ in range(4)]  # quarters of the levels
    of_company = []
    for number, start in enumerate(staggered(runs)):
        chosen = is_chosen(0, 0.5, start)
        level = Run.of(calibration, 0, number).path[-1]
        of_noise[level * len(of_noise) // calibration.levels].append(chosen)
        if is_chosen(number, 0.5):  # as captions of a single prompt are
            of_company.append(chosen)
    for chosen in of_noise:
        assert abs(sum(chosen) - len(chosen) / 2) <= 1
    assert abs(sum(of_company) - len(of_company) / 2) <= 2


def test_noise_is_standard_normal_and_belongs_to_its_seed():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = noise((4, 32, 32), 7)
    assert torch.equal(first, noise((4, 32, 32), 7))
    assert not torch.equal(first, noise((4, 32, 32), 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.dtype == torch.float32
    assert abs(first.mean()) < 0.05
    assert abs(first.std() - 1) < 0.05


REFUSED = [
    ({"trajectories": 0}, "trajectories is 0; it must be a whole number from 1 to 1000"),
    ({"resolution": 500}, "resolution is 500; it must be a multiple of 64"),
    ({"unconditional_share": math.nan}, "unconditional_share is nan; it must be a number from 0"),
    ({"companions": ()}, "composition captions need companions and compositions; give both, or"),
    ({"compositions": ("{prompt} alone",)}, "must have {prompt} and {thing}, once each, and no"),
    ({"compositions": ("{prompt} and {thing",)}, "'{prompt} and {thing' cannot be read"),
    ({"preserve_captions": ()}, "preserve_captions is empty; write some, or set preserve_weight"),
]


def test_a_family_has_its_own_frames_and_draws_no_others():
    wan, sdxl = (FAMILIES[name] for name in ("Wan", "SDXL"))
    for asked, frames, latent in ((0, 9, 3), (1, 1, 1), (13, 13, 4)):
        calibration = Calibration(frames=asked).for_family(wan)
        assert (calibration.frames, wan.latent_frames(calibration.frames)) == (frames, latent)
        assert calibration.for_family(wan) == calibration
    assert Calibration().for_family(sdxl).frames == 1
    with pytest.raises(ConfigError, match=r"frames is 8; Wan draws videos of 1, 5, 9, 13 \.\.\."):
        Calibration(frames=8).for_family(wan)
    with pytest.raises(ConfigError, match="frames is 9, and SDXL draws single pictures"):
        Calibration(frames=9).for_family(sdxl)


def test_a_setting_outside_its_range_is_refused():
    for settings, message in REFUSED:
        with pytest.raises(ConfigError, match=message):
            Calibration(**settings)
    assert Calibration(preserve_weight=0.0, preserve_captions=()).preserve_captions == ()
