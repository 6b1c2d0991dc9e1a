"""What cannot be measured is refused before any model runs."""

import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
from fake_host import PIECE, FakeHost, use

from iteris_core import CalibrationError, ConfigError
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.job import Job
from iteris_core.diffusion.loaded_loras import load_each_once
from iteris_core.diffusion.lora_use import MOST_LORAS, check_count
from iteris_core.diffusion.merging import merge_loras
from iteris_core.diffusion.prompts import subject_in

LONG = "word " * (4 * PIECE + 1)
SMALL = Calibration(trajectories=2, sampling_steps=2, resolution=64, cfg=2.0)
SCENES = {"scene_weight": 0.3, "scene_prefixes": ()}


class Idle(FakeHost):
    @contextmanager
    def _part(self, name, model, forward):
        raise AssertionError(f"{name} was opened")
        yield


def merge(host, prompts=("a sks cat",), **calibration):
    loras = [host.lora("a", prompts=prompts), host.lora("b", prompts=("a hat",))]
    return merge_loras(Job.of(host, loras, replace(SMALL, **calibration)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": ("fine", LONG)}, "the prompt 'word word"),
        ({"prompts": ("fine", LONG), "cfg": 1.0}, "the prompt 'word word"),
        ({"negative_prompt": LONG}, "the prompt 'word word"),
        ({"prompts": ("<x>", " ")}, "LoRA 'a': a prompt is empty"),
        ({"prompts": ("x", " ,\u3001. ")}, "LoRA 'a': a prompt is empty, or of punctuation only"),
        ({"preserve_captions": (LONG,)}, "the prompt 'word word"),
        ({"companions": (LONG,)}, r"prompt '.*word.*'\.\.\. has"),
        (SCENES | {"scene_forms": ("{first} and " + 5 * "so " + "{second}",)}, "scene caption"),
    ],
)
def test_captions_that_cannot_be_read_are_refused_before_any_model_runs(changes, said):
    with pytest.raises(CalibrationError, match=said):
        merge(Idle(), **changes)


def test_the_models_run_with_captions_that_are_not():
    with pytest.raises(AssertionError, match="te was opened"):
        merge(Idle(), **SCENES, scene_forms=("{first} {second}",), companions=("a dog",))


def test_a_prompt_of_spaces_is_read_in_one_go():
    start = time.thread_time()
    assert subject_in("a sks" + " " * 60_000 + "cat", ("cat",)).endswith("cat")
    assert time.thread_time() - start < 1


def test_more_loras_than_a_merge_takes_are_refused():
    check_count(MOST_LORAS)
    uses = [use(f"{k}", sha256=f"{k}") for k in range(MOST_LORAS + 1)]
    with pytest.raises(ConfigError, match="there are 101 LoRAs; a merge takes 100 at most"):
        load_each_once(uses, lambda use: pytest.fail("a file was read"))
