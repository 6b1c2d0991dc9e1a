"""A whole Stable Diffusion merge on a host of two tiny networks."""

import json
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from fake_host import EXACT, last_latents, runs_by_task, with_guidance

from iteris_core import (
    Adapter,
    AdapterError,
    CalibrationError,
    ConfigError,
)
from iteris_core.diffusion import merging
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.job import Job, MergeSettings, changed
from iteris_core.diffusion.loaded_loras import LoadedLora
from iteris_core.diffusion.merging import merge_diffusion, merge_loras
from iteris_core.diffusion.presets import PRESETS
from iteris_core.diffusion.recipe import read_recipe
from iteris_core.diffusion.samples import own_captions
from iteris_core.rows import wearing
from iteris_core.rows.wearing import as_worn

SMALL = {"trajectories": 8, "sampling_steps": 4, "resolution": 64, "cfg": 3.0}
PRESERVE = Calibration(
    **SMALL, preserve_captions=("a street", "a lake in the mountains at sunrise")
)
OF_A_STREET = Calibration(**SMALL, preserve_captions=("a street",), negative_prompt="bad")


def test_a_strength_of_0_is_left_out_and_a_weight_of_0_is_noted(host):
    used = host.lora("used", unmatched=("stray",))
    other = host.lora("other", ("unet",), weight=0.0)
    idle = host.lora("idle", strength=0.0, weight=0.0, prompts=())
    result, _ = host.merge([used, idle, other], PRESERVE)
    without, _ = host.merge([used, other], PRESERVE)
    assert host.largest_error(result.adapter, without.adapter) == 0
    unmatched = [note.text for note in result.report.notes if note.kind == "unmatched"]
    assert unmatched == ["used: 1 keys belong to no module of this model: stray"]
    assert [note.text for note in result.report.notes if note.kind == "idle"] == [
        "left out at strength 0: idle",
        "not kept, since their weight is 0: other",
    ]
    job = Job.of(host, [used, idle, other], PRESERVE)
    assert [use.name for use in job.asked] == ["used", "idle", "other"]  # for the recipe
    said = r"none of the LoRAs changes anything: every strength is 0, or .* cancel out"
    with pytest.raises(AdapterError, match=said):
        host.merge([idle], PRESERVE)


def test_a_merge_after_another_one_is_the_same_to_the_byte(host):
    """Whatever a merge leaves in the process, or in the model, decides nothing of the next one."""
    loras = [host.lora("a"), host.lora("b", prompts=["<y> dog"])]
    config = replace(EXACT, output_dtype=torch.float16)
    fresh, _ = type(host)().merge(loras, PRESERVE, config)
    host.merge(loras, replace(PRESERVE, trajectories=18), config)
    after, _ = host.merge(loras, PRESERVE, config)
    assert after.adapter.deltas.keys() == fresh.adapter.deltas.keys()
    for path, delta in after.adapter.deltas.items():
        assert torch.equal(delta.up, fresh.adapter.deltas[path].up), path
        assert torch.equal(delta.down, fresh.adapter.deltas[path].down), path


@pytest.mark.parametrize("config", [EXACT, replace(EXACT, method="np_lora")])
def test_loras_of_biases_alone_are_refused_since_none_could_be_measured(host, config):
    of_bias = Adapter("norms", {}, vectors={"unet.inlet.bias": torch.ones(6)})
    loras = [LoadedLora.of(of_bias, ("<x> cat",)), host.lora("idle", strength=0.0)]
    with pytest.raises(
        AdapterError, match="they change biases and norms alone, which cannot be merged by"
    ):
        host.merge(loras, PRESERVE, config)


def test_a_merge_is_the_same_where_what_rows_wear_has_no_room_to_stay(host, monkeypatch):
    calibration = replace(PRESERVE, sampling_steps=20, polish=1)
    job = Job.of(host, [host.lora("a"), host.lora("b")], calibration)
    made = Mock(side_effect=as_worn)
    monkeypatch.setattr(wearing, "as_worn", made)
    expected = merge_loras(job)
    once = made.call_count
    host.worn_bytes = 0
    found = merge_loras(job)
    assert made.call_count - once > 2 * once
    assert host.largest_error(found.adapter, expected.adapter) == 0


def test_a_preview_runs_no_model_and_says_so(host):
    calibration, settings = changed(Calibration(**SMALL), MergeSettings(), PRESETS["Preview"])
    subject, style = host.lora("a"), host.lora("b")
    style = replace(style, use=replace(style.use, kind="style"))
    job = Job.of(host, [subject, style], calibration, settings)
    stages = []
    result = merge_loras(job, lambda stage, done, total: stages.append(str(stage)))
    assert host.unet_batches == [] and set(stages) == {"Files"}
    assert job.cost.rows == 0
    path = "unet.q"
    kept = result.adapter.deltas[path].dense().double() @ style.adapter.deltas[path].down.T
    own, other = (lora.adapter.deltas[path] for lora in (style, subject))
    expected = own.dense() @ own.down.T + 2 / 3 * other.dense() @ own.down.T
    torch.testing.assert_close(kept, expected, rtol=1e-4, atol=1e-5)
    report = result.report
    assert report.facts[0].startswith("merged by np_lora from the files alone")
    recipe = read_recipe("x", json.dumps(report.settings))
    again = Job.of(host, [subject, style], recipe.calibration, MergeSettings(recipe.config))
    assert host.largest_error(merge_loras(again).adapter, result.adapter) == 0
    polished = replace(calibration, polish=1)
    with pytest.raises(ConfigError, match="polish would not count"):
        Job.of(host, [subject, style], polished, settings)


def test_teachers_read_their_own_context_and_the_student_reads_the_merged_one(host):
    of_unet, more = host.lora("unet", ("unet",), ["<y> dog"]), host.lora("c", prompts=["<z> car"])
    loras = [host.lora("both"), of_unet, more]
    result, _ = host.merge(loras, PRESERVE)
    student = host.patched(result.adapter)
    encoders = [host.patched(loras[0].adapter), host, host.patched(loras[2].adapter), host]
    captions = [own_captions(lora.use, PRESERVE, PRESERVE.seed + k) for k, lora in enumerate(loras)]
    counts = [entry.tokens // 64 for entry in result.report.layers[-1].tasks]
    pairs = iter(host.merge_rows())
    for g, count in enumerate(counts):
        known = dict.fromkeys([*captions[g], ""] if g < 3 else [*PRESERVE.preserve_captions, ""])
        for _ in range(count):
            teacher, reader = next(pairs)
            length = len(teacher.prompt.tokens)
            read = {text: encoders[g].context(text, length) for text in known}
            (caption,) = (t for t in read if host.is_close(read[t], teacher.prompt.tokens))
            assert host.is_close(reader.prompt.tokens, student.context(caption, length))
            assert not host.is_close(reader.prompt.tokens, teacher.prompt.tokens)
            assert torch.equal(reader.latents, teacher.latents)
            assert torch.equal(reader.sigma, teacher.sigma)
    assert next(pairs, None) is None


def test_text_only_loras_need_no_sampling(host):
    result, stages = host.merge([host.lora("a", ("te",)), host.lora("b", ("te",))], PRESERVE)
    assert {stage for stage, *_ in stages} == {"Text encoder"}
    assert host.unet_batches == []
    assert set(result.adapter.deltas) == {"te.q", "te.v", "te.out"}


def test_latents_come_from_each_teachers_own_guided_sampling(host):
    loras = [host.lora("a"), host.lora("b", prompts=["<y> dog"])]
    calibration = replace(OF_A_STREET, unconditional_share=0.0)
    result, _ = host.merge(loras, calibration)
    assert result.report.layers[-1].tasks[0].tokens == 64 * 8
    pairs = iter(host.merge_rows())
    runs_of_tasks = runs_by_task(loras, calibration, host.token_positions).values()
    teachers = [host.patched(loras[0].adapter), host.patched(loras[1].adapter), host]
    for g, (teacher, runs) in enumerate(zip(teachers, runs_of_tasks, strict=True)):
        captions = own_captions(loras[g].use, calibration, g) if g < 2 else ["a street"] * 8
        for run, caption in zip(runs, captions, strict=True):
            texts = [teacher.context(text, 2 * host.PIECE)[None] for text in (caption, "bad")]

            def denoise(x, sigma, teacher=teacher, texts=texts):
                good, bad = (teacher.u(x.double(), sigma[None].double(), text) for text in texts)
                return with_guidance(host, good, bad, sigma).float()

            sigma, latents = last_latents(host, run, denoise)
            row, _ = next(pairs)
            assert row.sigma == sigma
            torch.testing.assert_close(row.latents, latents, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(
                row.prompt.tokens, teacher.context(caption, len(row.prompt.tokens))
            )
    assert next(pairs, None) is None


def test_no_two_runs_see_the_same_latents(host):
    lora = host.lora("a", ("unet",))
    host.merge([lora, lora], PRESERVE)
    drawn = [row for batch in host.unet_batches[: -host.sweep_batches] for row in batch]
    starts = [row for row in drawn if row.sigma == 10]
    guided = [row for row in drawn if row.sigma < 10]
    assert starts and guided
    for rows, readers in ((starts, 1), (guided, 2)):  # the caption; with guidance another
        different = {tuple(row.latents.flatten()[:4].tolist()) for row in rows}
        assert len(different) * readers == len(rows)


def test_a_merge_depends_on_its_seed_and_on_nothing_else(host):
    loras = [host.lora("a"), host.lora("b")]
    first, _ = host.merge(loras, PRESERVE)
    torch.manual_seed(99)
    again, _ = host.merge(loras, PRESERVE)
    other, _ = host.merge(loras, replace(PRESERVE, seed=1))
    assert host.largest_error(again.adapter, first.adapter) == 0
    assert host.largest_error(other.adapter, first.adapter) > 1e-4


def test_only_one_part_of_the_model_is_open_at_a_time(host):
    seen = set()
    job = Job.of(host, [host.lora("a"), host.lora("b")], PRESERVE, MergeSettings(host.EXACT))
    merge_diffusion(job, lambda stage, *_: seen.add((stage.name, *host.open)))
    assert seen == {("Text encoder", "te"), ("Sampling", "unet"), ("Diffusion model", "unet")}
    assert host.open == []
    assert host.hooks() == 0


def test_memory_that_runs_out_where_no_call_can_be_smaller_is_a_sentence(host, monkeypatch):
    on_the_cpu = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."
    of_a_handle = "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate`"
    errors = map(RuntimeError, (on_the_cpu, of_a_handle, "CUBLAS_STATUS_ALLOC_FAILED"))
    for error in (torch.OutOfMemoryError("full"), *errors, MemoryError()):
        for place, what in ((host, "denoiser"), (merging, "check_called")):
            with monkeypatch.context() as patch:
                patch.setattr(host, "loader", host if place is merging else None)
                patch.setattr(place, what, Mock(side_effect=error))
                doing = "the check of the LoRAs" if place is merging else "the merge"
                with pytest.raises(CalibrationError, match=f"^{doing} ran out .* Close what else"):
                    merge_loras(Job.of(host, [host.lora("a")], PRESERVE, MergeSettings(EXACT)))


def test_prompts_are_read_in_smaller_calls_when_memory_runs_out(host):
    loras = [host.lora("a", parts=("unet",)), host.lora("b", parts=("unet",))]
    expected = merge_diffusion(Job.of(host, loras, PRESERVE, MergeSettings(EXACT))).adapter
    sizes = []

    def small(module, args, output):
        sizes.append(len(args[0]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("full")

    handle = host.te.register_forward_hook(small)
    found = merge_diffusion(Job.of(host, loras, PRESERVE, MergeSettings(EXACT))).adapter
    handle.remove()
    assert max(sizes) > 2 and sizes[-1] <= 2
    for path, delta in expected.deltas.items():
        assert torch.allclose(delta.dense(), found.deltas[path].dense(), atol=1e-9)
