"""Whole merges with scene tasks: only the intended tokens of text and picture count."""

from dataclasses import replace

import torch
import toy
from fake_host import EXACT, PIECE, last_latents, runs_by_task, with_guidance

from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.model import PictureTokens
from iteris_core.diffusion.regions import region_masks
from iteris_core.diffusion.samples import own_captions
from iteris_core.diffusion.scenes import make_scenes

_SMALL = {"trajectories": 8, "sampling_steps": 4, "resolution": 64, "cfg": 3.0}
_SMALL |= {"unconditional_share": 0.5, "preserve_weight": 0.0, "companions": ("chair", "big dog")}
_SMALL |= {"scene_weight": 0.1, "scene_prefixes": ()}
IN_TEXT = Calibration(**_SMALL, scene_forms=("{first} behind {second}", "{first} inside {second}"))
PICTURES = replace(IN_TEXT, scene_forms=("{first} and {second}", "{first} above {second}"))
FULL = replace(EXACT, target="full_output", rank="full")


# a model in which words cannot be paired
UNPAIRED = PictureTokens(1, lambda caption: len(caption.split()))


def two_loras(host, parts=("te", "unet")):
    return [host.lora(name, parts, (f"<{name}>",)) for name in "ab"]


def scenes_of(host, loras, calibration):
    return make_scenes([lora.use for lora in loras], calibration, host.token_positions)


def pairs_of(word, student, teacher):
    """Return the positions of a word, the ends and the common padding in two captions of one piece."""
    captions = [caption.split() for caption in (student, teacher)]
    padding = range(max(map(len, captions)) + 1, PIECE)
    return [[words.index(word), len(words), *padding] for words in captions]


def dense_task(teacher, student, delta, weight=1.0):
    return toy.DenseTask(torch.cat(teacher), torch.cat(student), delta, weight)


def left_alone(host, calibration):
    loras = two_loras(host, ("unet",))
    result, _ = host.merge(loras, calibration, FULL)
    without, _ = host.merge(loras, replace(calibration, scene_weight=0.0), FULL)
    pairs = {
        path: [one.adapter.deltas[path].dense() for one in (result, without)]
        for path in ("unet.inlet", "unet.q", "unet.k", "unet.v")
    }
    return {path: torch.allclose(*pair, rtol=1e-9, atol=1e-9) for path, pair in pairs.items()}


def test_in_the_text_only_a_teachers_own_words_and_the_ends_count(host):
    """Keys of cross-attention read the contexts themselves."""
    loras = two_loras(host, ("unet",))
    result, _ = host.merge(loras, IN_TEXT, FULL)
    tasks = []
    scenes = scenes_of(host, loras, IN_TEXT)
    for k, lora in enumerate(loras):
        captions = own_captions(lora.use, IN_TEXT, k)
        read = [
            host.context(text, host.PIECE * len(host.tokenize(text)))
            for text in [*captions, *[""] * (len(captions) // 2)]  # half of them also without it
        ]
        tasks.append(dense_task(read, read, lora.adapter.deltas["unet.k"].dense()))
    for k, lora in enumerate(loras):
        parts = [(s.caption, m.caption) for s in scenes for m in s.members if m.lora == k]
        pairs = [
            [
                host.context(caption, host.PIECE)[numbers]
                for caption, numbers in zip(both, pairs_of(f"<{'ab'[k]}>", *both), strict=True)
            ]
            for both in parts
        ]
        student, teacher = zip(*pairs, strict=True)
        tasks.append(dense_task(teacher, student, lora.adapter.deltas["unet.k"].dense(), 0.1))
        assert not torch.equal(tasks[-1].x, tasks[-1].x_student)
    expected = toy.solve_densely(host.u.k.weight, tasks, FULL)
    torch.testing.assert_close(
        result.adapter.deltas["unet.k"].dense(), expected, rtol=1e-7, atol=1e-7
    )


def test_scenes_in_the_text_leave_the_picture_side_alone(host):
    same = {"unet.inlet": True, "unet.q": True, "unet.k": False, "unet.v": False}
    assert left_alone(host, IN_TEXT) == same


def test_in_pictures_each_teacher_counts_in_its_own_region(host):
    """The inlet reads the latents themselves, the same for teacher and student."""
    loras = two_loras(host, ("unet",))
    result, _ = host.merge(loras, PICTURES, FULL)
    rows = [(row.latents.double(), row.sigma.double()) for row, _ in host.merge_rows()]
    scenes = scenes_of(host, loras, PICTURES)
    tokens = [(x / (1 + sigma**2).sqrt()).flatten(1).T for x, sigma in rows]
    runs_of_a = runs_by_task(loras, PICTURES, host.token_positions)["a"]
    # each LoRA's own task: the kept latents, half of them also without the caption
    own = len(runs_of_a) * 3 // 2
    tasks = []
    for k, lora in enumerate(loras):
        x = tokens[k * own : (k + 1) * own]
        tasks.append(dense_task(x, x, lora.adapter.deltas["unet.inlet"].dense()))
    left = iter(tokens[2 * own :])
    for k, lora in enumerate(loras):
        areas = [member.area for scene in scenes for member in scene.members if member.lora == k]
        masks = [region_masks(area.layout, 2, 8, 8)[area.number].flatten() for area in areas]
        x = [next(left)[mask.bool()] for mask in masks]
        tasks.append(dense_task(x, x, lora.adapter.deltas["unet.inlet"].dense(), 0.1))
    assert next(left, None) is None
    expected = toy.solve_densely(host.u.inlet.weight.flatten(1), tasks, FULL)
    torch.testing.assert_close(
        result.adapter.deltas["unet.inlet"].dense(), expected, rtol=1e-6, atol=1e-6
    )


def test_in_a_scenes_run_each_teacher_draws_its_own_region(host):
    loras = two_loras(host)
    host.merge(loras, PICTURES, FULL)
    teachers = [host.patched(lora.adapter) for lora in loras]
    scenes = scenes_of(host, loras, PICTURES)
    rows = [row for row, _ in host.merge_rows()]
    of_scenes = runs_by_task(loras, PICTURES, host.token_positions)["a in scenes"]
    for number, scene in enumerate(scenes):

        def denoise(x, sigma, scene=scene):
            joined = torch.zeros_like(x)
            for member in scene.members:
                teacher = teachers[member.lora]
                region = region_masks(member.area.layout, 2, 8, 8)[member.area.number]
                texts = [
                    teacher.context(text, 2 * host.PIECE)[None] for text in (member.caption, "")
                ]
                good, bad = (teacher.u(x.double(), sigma[None].double(), text) for text in texts)
                joined += region * with_guidance(host, good, bad, sigma).float()
            return joined

        sigma, expected = last_latents(host, of_scenes[number], denoise)
        for member in scene.members:
            context = teachers[member.lora].context(member.caption, 2 * host.PIECE)
            same = [row for row in rows if host.is_close(row.prompt.tokens, context)]
            same = [row.latents for row in same if row.sigma == sigma]
            assert any(torch.allclose(x, expected, rtol=1e-4, atol=1e-4) for x in same)


def test_where_words_cannot_be_paired_regions_alone_count(host):
    """The inlet reads the latents themselves, and nothing of a scene counts in the text."""
    host.picture_tokens = UNPAIRED
    same = {"unet.inlet": False, "unet.q": False, "unet.k": True, "unet.v": True}
    assert left_alone(host, PICTURES) == same
