"""A merge of Stable Diffusion LoRAs, checked on captions and seeds that it has not seen."""

import itertools
from dataclasses import replace

import pytest
import torch
from fake_host import use

from iteris_core import BaselineOptions, ConfigError, MergeConfig
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.check_of_pairs import TogetherPlan
from iteris_core.diffusion.choices import base_captions, own_captions
from iteris_core.diffusion.cost import check_parts
from iteris_core.diffusion.drawn import LEVELS, PATH, STEPS
from iteris_core.diffusion.held_out import HeldOutCheck, make_check_plans
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.merging import merge_and_check
from iteris_core.diffusion.sampling import noise
from iteris_core.files.families import FAMILIES

CALIBRATION = Calibration(
    trajectories=4, timesteps=2, sampling_steps=4, resolution=64, cfg=3.0, held_out=2
)


@pytest.fixture
def merged(host):
    loras = [host.lora("a"), host.lora("text only", ("te",), ["<y> dog"])]
    loras.append(host.lora("unet only", ("unet",), ["<z> car"]))
    return loras, host.merge(loras, CALIBRATION)[0]


def plans_of(loras, calibration=CALIBRATION):
    return make_check_plans([lora.use for lora in loras], calibration)


def check_of(host, loras, **more):
    plans = plans_of(loras)
    adapters = [lora.adapter for lora in loras]
    return HeldOutCheck(host, adapters, plans, CALIBRATION, samples_per_chunk=100, **more)


def measured_rows(host, plans):
    """Return what the UNet was asked last: rows of each plan and mix; halves share theirs."""
    asked = iter(host.unet_batches[-1])
    known = {}
    found = []
    for plan in plans:
        for mix in range(3):
            names = [(plan.name, i) for i in range(plan.sample_count())]
            if isinstance(plan, TogetherPlan) and mix:
                kept = range(CALIBRATION.timesteps)
                names = [(half.number, i) for half in plan.halves for i in kept]
            rows = []
            for name in names:
                if (mix, name) not in known:
                    known[mix, name] = next(asked)
                rows.append(known[mix, name])
            parts = zip(*((row.latents, row.sigma, row.prompt.tokens) for row in rows), strict=True)
            found.append([torch.stack(part).double() for part in parts])
    assert next(asked, None) is None
    return found


def reads(model, text):
    return torch.cat(list(model.te(torch.stack(model.tokenize(text)))))


def test_what_the_pictures_keep_is_judged_by_the_loras_themselves(host, merged):
    """Drawn and judged anew by patched models, one row at a time."""
    loras, result = merged
    measured = check_of(host, loras).measure(result.adapter)
    sigmas = host.sigmas(STEPS)
    student = host.patched(result.adapter)
    for k, (entry, lora) in enumerate(zip(measured, loras, strict=False)):
        (plan,) = [plan for plan in plans_of(loras) if plan.name == entry.task]
        teacher = host.patched(lora.adapter)
        shares = []
        for i, caption in enumerate(plan.captions):
            seed = (CALIBRATION.seed + 7919) * 1_000_003 + k * 1009 + i
            of_models = []
            for model in (teacher, student):

                def clean(x, sigma, text, model=model):
                    context = reads(model, text)[None]
                    return model.u(x[None].double(), sigma[None].double(), context)[0].float()

                x = host.start(noise((4, 8, 8), seed), sigmas[0])
                for sigma, following in itertools.pairwise(sigmas[list(PATH)]):
                    picture = clean(x, sigma, caption)
                    if sigma < sigmas[0]:
                        without = clean(x, sigma, "")
                        picture = without + CALIBRATION.cfg * (picture - without)
                    x = x + (x - picture) / sigma * (following - sigma)
                looks = []
                for level in LEVELS:
                    noisy = x + sigmas[level] * noise((4, 8, 8), seed + 1 + level)
                    given = noisy[None].double(), sigmas[level][None].double()
                    with_lora, without = (
                        judge.u(*given, reads(judge, caption)[None])[0] for judge in (teacher, host)
                    )
                    effect = with_lora - without
                    looks.append(((x - without) * effect).sum() / effect.square().sum())
                of_models.append(float(sum(looks) / len(looks)))
            shares.append(of_models)
        alone = sum(own for own, _ in shares) / len(shares)
        expected = [1 + (merged - alone) / max(alone, 0.2) for _, merged in shares]
        assert [run.strength for run in entry.runs] == pytest.approx(expected, rel=1e-3)
        errors = [abs(1 - kept) for kept in expected]
        assert [run.error for run in entry.runs] == pytest.approx(errors, abs=1e-3)


def test_figures_are_those_of_patched_models(host, merged):
    loras, result = merged
    measured = check_of(host, loras).measure(result.adapter)
    plans = plans_of(loras)
    assert [entry.task for entry in measured] == [plan.name for plan in plans]
    assert [entry.kind for entry in measured] == ["own"] * 3 + ["together"] * 3 + ["base"]
    measured, plans = measured[len(loras) :], plans[len(loras) :]
    rows = measured_rows(host, plans)
    student_model = host.patched(result.adapter)
    stacked = host.patched(*(lora.adapter for lora in loras))
    for g, (entry, plan) in enumerate(zip(measured, plans, strict=True)):
        asked = rows[3 * g : 3 * g + 3]
        teacher_model = host.patched(*(loras[k].adapter for k in plan.mix))
        models = [teacher_model, student_model, host if plan.mix else stacked]
        outputs = [model.u(*args) for model, args in zip(models, asked, strict=True)]
        if entry.kind == "together":
            kept = [half for half in plan.halves for _ in range(CALIBRATION.timesteps)]
            masks = [half.region((4, 8, 8)) for half in kept]
            assert {mask.sum().item() for mask in masks} == {32}  # half of a picture each
            outputs = [output * torch.stack(masks)[:, None] for output in outputs]
        of_runs = [output.split(plan.samples_of_runs()) for output in outputs]
        errors = [
            ((student - teacher).norm() / (teacher - reference).norm()).item()
            for teacher, student, reference in zip(*of_runs, strict=True)
        ]
        assert [run.error for run in entry.runs] == pytest.approx(errors, rel=1e-9)
        assert entry.output_error == pytest.approx(sum(errors) / len(errors), rel=1e-9)
        assert entry.samples == len(asked[0][0])
        captions = captions_of(loras, plan)
        reads = zip(models, asked, captions, strict=True)
        for model, (latents, sigma, context), texts in reads:
            assert torch.equal(latents, asked[0][0])
            assert torch.equal(sigma, asked[0][1])
            expected = [model.context(text, context.shape[1]) for text in texts]
            assert all(any(host.is_close(found, text) for text in expected) for found in context)


def captions_of(loras, plan):
    if isinstance(plan, TogetherPlan):
        met = [half.both for half in plan.halves]
        for k in plan.mix:
            assert all("<" in caption.replace(loras[k].use.called, "") for caption in met)
        alone = [half.caption for half in plan.halves]
        assert all(caption.count("<") == 1 for caption in alone)
        return alone, met, met
    if not plan.mix:
        return ([*CALIBRATION.preserve_captions[-2:], ""],) * 3
    (k,) = plan.mix
    seen = own_captions(loras[k].use, CALIBRATION, CALIBRATION.seed + k)
    assert not set(plan.captions) & {*seen, *loras[k].use.prompts}
    return ([*plan.captions, ""],) * 3


@pytest.mark.parametrize(
    ("kinds", "forms", "expected"),
    [
        (("subject", "subject"), None, 2),
        (("subject", "style"), None, 0),
        (("subject",), None, 0),
        (("subject", "subject"), ("{first} behind {second}",), 0),  # they do not lie apart
    ],
)
def test_subjects_are_checked_together_where_they_can_lie_apart(kinds, forms, expected):
    loras = [use(f"{k}", (f"<{k}> cat",), kind=kind) for k, kind in enumerate(kinds)]
    calibration = replace(CALIBRATION, **({"scene_forms": forms} if forms else {}))
    plans = make_check_plans(loras, calibration)
    assert sum(isinstance(plan, TogetherPlan) for plan in plans) == expected


def test_no_caption_and_no_latent_of_the_check_was_in_the_merge(host, merged):
    loras, result = merged
    before = [row.latents for batch in host.unet_batches for row in batch]
    asked = len(host.unet_batches)
    check_of(host, loras).measure(result.adapter)
    after = [row.latents for batch in host.unet_batches[asked:] for row in batch]
    assert not any(torch.equal(new, old) for new in after for old in before)
    assert not set(CALIBRATION.preserve_captions[-2:]) & set(base_captions(CALIBRATION))


@pytest.mark.parametrize(("parts", "held_out"), [((("te", "unet"),), 2), ((("unet",), ("te",)), 0)])
def test_stages_are_numbered_as_they_come(host, parts, held_out):
    loras = [host.lora(f"{g}", of) for g, of in enumerate(parts)]
    loras.append(host.lora("idle", strength=0.0))
    calibration = replace(CALIBRATION, held_out=held_out)
    heard = []
    job = Job.of(host, loras, calibration, MergeSettings(host.EXACT))
    merge_and_check(job, lambda stage, done, total: heard.append(stage))
    names = [stage.name for stage in job.stages]
    told = list(dict.fromkeys(heard))
    numbered = [(name, number, len(names)) for number, name in enumerate(names, 1)]
    assert [(stage.name, stage.number, stage.count) for stage in told] == numbered
    starts = [sum(stage.share for stage in told[:i]) for i in range(len(told))]
    assert [stage.starts for stage in told] == pytest.approx(starts)
    assert sum(stage.share for stage in told) == pytest.approx(1)
    assert len(names) == 1 or str(heard[0]) == f"stage 1 of {len(names)}: {names[0]}"


@pytest.mark.parametrize(
    ("kind", "held_out", "told"),
    [("style", 2, "a in the style of b"), ("subject", 2, None), ("style", 0, None)],
)
def test_a_subject_in_a_style_is_told_not_to_be_judged(host, kind, held_out, told):
    loras = [host.lora("a"), host.lora("b")]
    loras[1] = replace(loras[1], use=replace(loras[1].use, kind=kind))
    job = Job.of(host, loras, replace(CALIBRATION, held_out=held_out), MergeSettings(host.EXACT))
    report = merge_and_check(job).report
    unjudged = report.verdict.unjudged
    assert (unjudged and str(unjudged)) == told
    assert ("not judged" in str(report).splitlines()[0]) == bool(told)


@pytest.mark.parametrize("family", ["SD1.5", "SDXL", "SD2.x", "Flux.1", "Qwen-Image"])
def test_the_verdict_knows_a_transformer(host, monkeypatch, family):
    monkeypatch.setattr(host, "family", FAMILIES[family])
    job = Job.of(host, [host.lora("a")], CALIBRATION, MergeSettings(host.EXACT))
    report = merge_and_check(job).report
    assert report.on_transformer == (not family.startswith("SD"))


def test_settings_that_cannot_be_used_are_refused_before_any_work(host):
    for changes, message in (
        ({"method": "ties", "engine": "iterate"}, r"engine is for the method iteris; ties"),
        ({"max_iter": 3}, r"max_iter is for the engine iterate"),
        ({"statistics_bytes": 1}, r"statistics_bytes is for the engine iterate"),
        ({"engine": "iterate", "waiting_bytes": 1}, r"waiting_bytes is for the engine sweep"),
        ({"factorisation": "float32", "target": "delta"}, r"factorisation is 'float32', which"),
        ({"factorisation": "float32", "method": "ties"}, r"factorisation is 'float32', which"),
        ({"baseline": BaselineOptions(density=0.2)}, r"density is not an option of iteris"),
        ({"size": 3}, r"size is 3; 8 layers of rank 1 take"),
    ):
        settings = MergeSettings(MergeConfig(**changes))
        with pytest.raises(ConfigError, match=message):
            merge_and_check(Job.of(host, [host.lora("a")], CALIBRATION, settings))
    assert host.unet_batches == []


def test_every_prompt_is_drawn_alone_in_turn(host):
    lora = host.lora("a", prompts=["<x> cat", "<x> on a chair"]).use
    captions = make_check_plans([lora], replace(CALIBRATION, held_out=3))[0].captions
    assert captions[::2] == lora.prompts
    assert captions[1] not in lora.prompts


def test_text_that_no_lora_changes_is_read_once(host):
    loras = [host.lora(name, ("unet",), [f"<{name}> cat"]) for name in "xy"]
    result = host.merge(loras, CALIBRATION)[0]
    read = []
    with host.te.register_forward_pre_hook(lambda _, inputs: read.extend(inputs[0])):
        check_of(host, loras).measure(result.adapter)
    captions = {reading.teacher for plan in plans_of(loras) for reading in plan.readings()}
    assert len(read) == sum(len(host.tokenize(caption)) for caption in captions)


def test_a_check_is_told_in_the_rows_of_all_its_parts(host, merged):
    loras, result = merged
    steps = []
    check_of(host, loras, progress=lambda *step: steps.append(step)).measure(result.adapter)
    done, total = zip(*steps, strict=True)
    assert set(total) == {sum(check_parts(plans_of(loras), guided=CALIBRATION.is_guided))}
    assert list(done) == sorted(done)
    assert done[-1] == total[-1]
