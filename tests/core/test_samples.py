"""The list of samples of a merge, of which captions, runs, tasks and cost are read off."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from fake_host import use

from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.cost import cost_of
from iteris_core.diffusion.samples import make_samples, tasks_of, texts_of
from iteris_core.tasks import PRESERVE_TASK

LORAS = [use("dog", ("a sks dog", "sks dog")), use("cat", ("a <c> cat",), weight=2.0)]
CALIBRATION = Calibration(
    trajectories=16, sampling_steps=4, cfg=3.0, scene_weight=0.3, negative_prompt="bad"
)


def positions_of(text):
    return range(1, 1 + len(text.replace(",", " , ").split()))


def samples_of(calibration=CALIBRATION, loras=LORAS):
    return make_samples(loras, calibration, positions_of)


def by_name(samples):
    return {of_task[0].task: of_task for of_task in tasks_of(samples)}


def test_each_task_has_its_samples_in_a_row_and_one_teacher():
    tasks = by_name(samples_of())
    assert {task: (of[0].mix, of[0].weight) for task, of in tasks.items()} == {
        "dog": ({0: 1.0}, 1.0),
        "cat": ({1: 1.0}, 2.0),
        PRESERVE_TASK: ({}, 2.0),
        "dog in scenes": ({0: 1.0}, 0.3),
        "cat in scenes": ({1: 1.0}, 0.6),
    }
    for of_task in tasks.values():
        assert len({(sample.lora, sample.weight) for sample in of_task}) == 1
    assert sum(map(len, tasks.values())) == len(samples_of()), "no task comes twice"
    own = tasks["dog"]
    assert Counter(sample.is_negative for sample in own) == {False: 16, True: 4}
    assert {sample.teacher for sample in own if sample.is_negative} == {"bad"}


def test_a_lora_that_is_called_as_another_task_is_not_mixed_up_with_it():
    """Which the engines then refuse, since a report could not tell them apart."""
    for name in (PRESERVE_TASK, "cat in scenes"):
        tasks = tasks_of(samples_of(loras=[LORAS[1], use(name, ("a hat",))]))
        assert len(tasks) == 5 and len({of_task[0].task for of_task in tasks}) == 4


def test_no_two_tasks_share_noise_but_the_loras_of_a_scene_which_draw_it_together():
    samples = samples_of()
    owners = {}
    for sample in samples:
        if sample.run:
            owners.setdefault(sample.run.seed, set()).add(sample.task)
    shared = {frozenset(tasks) for tasks in owners.values() if len(tasks) > 1}
    assert shared == {frozenset({"dog in scenes", "cat in scenes"})}
    parts = {}
    for sample in samples:
        if sample.area:
            parts.setdefault(sample.run, set()).add(sample.area)
    for areas in parts.values():
        whole = sum(area.mask((4, 8, 8)) for area in areas)
        assert torch.equal(whole, torch.ones(8, 8))


def test_runs_of_one_caption_share_their_first_step():
    for task in ("dog", "cat", PRESERVE_TASK):
        first = {}
        for sample in by_name(samples_of())[task]:
            if not sample.is_negative and sample.run.length:
                first.setdefault(sample.teacher, set()).add(sample.run.first)
        assert all(len(seeds) == 1 for seeds in first.values())


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_negative_prompt_is_read_by_each_teacher_where_there_is_guidance(cfg):
    calibration = replace(CALIBRATION, cfg=cfg, unconditional_share=0.0)
    tasks = by_name(samples_of(calibration))
    texts = {task: texts_of(of_task, calibration) for task, of_task in tasks.items()}
    reads = {task: {each.teacher for each in of_task} for task, of_task in texts.items()}
    for task in ("dog", "cat", PRESERVE_TASK):
        assert ("bad" in reads[task]) == (cfg != 1)
    assert "bad" not in reads["dog in scenes"] | reads["cat in scenes"]
    for of_task in texts.values():
        assert len(of_task) == len(set(of_task))


def test_what_counts_in_the_text_alone_is_noise_and_costs_no_sampling():
    in_text = replace(CALIBRATION, scene_forms=("{first} behind {second}",))
    scenes = [sample for sample in samples_of(in_text) if sample.is_of_scene]
    assert scenes and not any(sample.run or sample.area for sample in scenes)
    alone = replace(CALIBRATION, scene_weight=0.0)
    costs = [
        cost_of(samples_of(each), guided=True, changes_denoiser=True) for each in (in_text, alone)
    ]
    assert costs[0].sampling == costs[1].sampling
    assert costs[0].sweep == costs[1].sweep + 2 * len(scenes)
