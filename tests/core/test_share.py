"""How much of a LoRA is in a picture."""

import itertools

import pytest
import torch
from fake_host import FakeHost

from iteris_core import CalibrationError
from iteris_core.diffusion.sampling import euler_steps, noise
from iteris_core.diffusion.share import (
    LEVELS,
    STEPS,
    Look,
    PromptPictures,
    looking_noise,
    share_of,
    shares,
)

SHAPE = (4, 8, 8)


def test_what_lies_along_a_lora_counts_and_what_lies_off_it_does_not():
    base, effect, other = (torch.randn(SHAPE).double() for _ in range(3))
    other -= effect * (other * effect).sum() / effect.square().sum()
    looks = [(base + effect, base)]
    own = Look.of(base + effect + other, looks)
    assert own.along == pytest.approx(1)
    assert own.off == pytest.approx(other.square().sum().item())

    def share(along, times):
        return share_of(Look.of(base + along * effect + times * other, looks), [own])

    assert share(1, 1) == pytest.approx(1)
    assert share(0.6, 1) == share(0.6, 0.5) == pytest.approx(0.6)
    assert share(0.6, 2**0.5) == pytest.approx(0.6 - 0.25)
    assert share(1, 10) == share(0, 1) == share(-1, 0) == 0
    assert share(2, 1) == 1


def test_a_lora_that_its_own_pictures_hardly_show_is_not_found_by_chance():
    weak, other = Look(0.05, 1.0), Look(0.0, 1.0)
    assert share_of(other, [weak]) == pytest.approx(0.75)
    strong = [Look(0.8, 1.0), Look(1.2, 3.0)]  # relative to their mean
    assert share_of(Look(0.5, 4.0), strong) == pytest.approx(0.5 - 0.25)


def test_a_lora_without_an_effect_has_no_look_and_what_is_not_finite_is_refused():
    picture = torch.randn(SHAPE)
    assert Look.of(picture, [(picture, picture)]) is None
    with pytest.raises(CalibrationError, match="not finite"):
        Look.of(picture, [(picture / 0, picture)])


def test_no_two_looks_share_their_noise_nor_has_a_run_any_of_it():
    found = [looking_noise(SHAPE, n, level) for n in range(8) for level in range(len(LEVELS))]
    found += [noise(SHAPE, seed) for seed in range(40)]  # a run's seed is 0 or more
    for one, other in itertools.combinations(found, 2):
        cosine = torch.cosine_similarity(one.flatten(), other.flatten(), 0)
        assert abs(cosine) < 0.3


def drawn(host, prompt, seed):
    """Return what a model draws, as clean latents."""
    context = torch.cat(list(host.te(torch.stack(host.tokenize(prompt)))))[None]
    sigmas = host.sigmas(20).double()

    def denoise(x, sigma):
        return host.u(x, sigma[None], context)

    start = host.start(noise((1, *SHAPE), seed).double(), sigmas[0])
    *_, x = euler_steps(denoise, start, sigmas)
    return denoise(x, sigmas[-2])[0].float()


@pytest.fixture
def scene():
    host = FakeHost()
    loras = [host.lora("a"), host.lora("text only", ("te",))]
    adapters = [lora.adapter for lora in loras]
    pictures = []
    for seed, prompt in enumerate(("<x> cat", "<x> cat on a very long sofa")):
        alone = {k: drawn(host.patched(each), prompt, seed) for k, each in enumerate(adapters)}
        judged = [alone[0], drawn(host.patched(*adapters), prompt, seed), drawn(host, prompt, seed)]
        pictures.append(PromptPictures(prompt, alone, judged))
    return host, adapters, pictures


def test_shares_are_those_of_patched_models(scene):
    host, adapters, pictures = scene
    found = shares(host, adapters, pictures)
    sigmas = host.sigmas(STEPS)
    for k, adapter in enumerate(adapters):
        judge = host.patched(adapter)

        def look(number, picture, judge=judge):
            prompt = pictures[number].prompt
            looks = []
            for place, level in enumerate(LEVELS):
                noisy = picture + sigmas[level] * looking_noise(SHAPE, number, place)
                looks.append(
                    [
                        model.u(
                            noisy[None].double(),
                            sigmas[level][None].double(),
                            torch.cat(list(model.te(torch.stack(model.tokenize(prompt)))))[None],
                        )[0]
                        for model in (judge, host)
                    ]
                )
            return Look.of(picture, looks)

        own = [look(number, of.alone[k]) for number, of in enumerate(pictures)]
        for number, of in enumerate(pictures):
            for at, picture in enumerate(of.judged):
                expected = share_of(look(number, picture), own)
                assert found[number][at][k] == pytest.approx(expected, abs=1e-5)


def test_looking_takes_four_rows_a_picture_and_lora_at_most(scene):
    host, adapters, pictures = scene
    host.unet_batches.clear()
    shares(host, adapters, pictures, rows_per_call=100)
    looked_at = sum(len(of.alone) * (1 + len(of.judged)) for of in pictures)
    assert sum(map(len, host.unet_batches)) <= 2 * len(LEVELS) * looked_at
    assert host.open == []


def test_a_lora_that_draws_a_prompt_alone_is_looked_for_there_and_no_other(scene):
    host, adapters, (first, second) = scene
    of_one = PromptPictures(first.prompt, {1: first.alone[1]}, first.judged)
    found, both = shares(host, adapters, [of_one, second])
    assert [set(of_picture) for of_picture in found] == [{1}] * 3
    assert [set(of_picture) for of_picture in both] == [{0, 1}] * 3
