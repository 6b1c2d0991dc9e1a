"""T5, FLAN-T5, BART and BLIP, whole, on tiny random models."""

import shutil
from dataclasses import replace
from functools import partial

import language_families
import pytest
import tiny_language
import torch
from language_families import captions, texts

from iteris_core import MergeConfig, Task, merge
from iteris_core.base_models import load_processor
from iteris_core.language import blip, t5
from iteris_core.language.job import DEFAULT, AdapterTask, load_adapter
from iteris_core.language.samples import Example
from iteris_core.language.teachers import Teachers
from iteris_core.memory import Room
from iteris_core.tasks import PRESERVE_TASK

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    made = {}

    def case(name):
        if name not in made:
            made[name] = language_families.make(name, tmp_path_factory.mktemp("family"))
        return made[name]

    return case


NIGHTLY = [pytest.param(name, marks=pytest.mark.nightly) for name in ("FLAN-T5", "BART")]


@pytest.fixture(params=["T5", "BLIP", *NIGHTLY])
def case(request, cases):
    return cases(request.param)


@pytest.fixture
def of_t5(cases):
    return cases("T5")


@pytest.fixture
def of_blip(cases):
    return cases("BLIP")


def assert_close(found, expected, tolerance):
    assert set(found) == set(expected)
    for path, delta in expected.items():
        want = delta.dense()
        have = found[path].dense()
        assert ((have - want).norm() / want.norm()).item() < tolerance, path


def test_one_adapter_merges_to_itself(case):
    number = 1
    task = AdapterTask(case.adapters[number], case.samples(0))
    result = case.merge(tasks=[task], config=MergeConfig(alpha=1e-3))
    expected = case.deltas(case.adapters[number])
    assert_close(result.adapter.deltas, expected, 1e-4)
    assert max(entry.residual for layer in result.report.layers for entry in layer.tasks) < 1e-3


def test_peft_loads_the_merge(case, tmp_path):
    result = case.merge(str(case.folder / "base"))
    result.save(tmp_path / "out")
    expected = case.logits(tiny_language.with_deltas(case.base(), result.adapter.deltas))
    found = case.logits(tiny_language.peft(case.base(), tmp_path / "out"))
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert not torch.allclose(case.logits(case.base()), expected, atol=1e-2)


def test_without_targets_the_teachers_answer_and_both_rows_read_it(case):
    """The answers are those of PEFT's model and its own `generate`."""
    written = []
    for task in case.tasks(targets=False):
        model = tiny_language.peft(case.base(), task.folder).eval()
        written.append(replace(task, examples=[answered_by(case, model, e) for e in task.examples]))
    found = case.merge(tasks=case.tasks(targets=False)).adapter.deltas
    assert_close(found, case.merge(tasks=written).adapter.deltas, 1e-5)


def answered_by(case, model, example):
    settings = {"do_sample": False, "num_beams": 1, "max_new_tokens": 32}
    with torch.no_grad():
        if case.samples is texts:
            ids = model.generate(input_ids=example.input[None], **settings)[0, 1:]
            ends = (ids == model.config.eos_token_id).nonzero()
            return replace(example, target=ids[: int(ends[0]) + 1] if len(ends) else ids)
        ids = model.generate(
            pixel_values=example.input[None], input_ids=torch.tensor([[4, 2]]), **settings
        )[0]
        ends = (ids == 2).nonzero()
        return replace(example, target=ids[: int(ends[0])] if len(ends) else ids[:-1])


def test_preserve_samples_are_a_task_with_an_empty_mix(case):
    ordinary = case.samples(7)
    kept = case.merge(tasks=[*case.tasks(), AdapterTask(None, ordinary, 2.0)])
    base = case.base()
    adapters = [load_adapter(base, folder) for folder in case.adapters]
    mixes = [{0: 1.0}, {1: 1.0}, {}]
    tasks = [*(task.examples for task in case.tasks()), ordinary]
    teachers = Teachers(base, adapters, mixes)
    reader = load_processor(str(case.folder / "base")) if case.family is blip.FAMILY else None
    network, rows = case.family.prepare(teachers, tasks, case.family.options, reader)
    same = [Task(str(g), rows[g], mix, (1.0, 1.0, 2.0)[g]) for g, mix in enumerate(mixes)]
    by_hand = merge(network, adapters, same, DEFAULT).adapter.deltas
    assert_close(kept.adapter.deltas, by_hand, 1e-6)
    assert [task.task for task in kept.report.layers[0].tasks] == ["one", "two", PRESERVE_TASK]
    settings = kept.report.settings
    assert (settings["samples"], settings["weights"]) == ([4, 4, 4], [1.0, 1.0, 2.0])


def test_adapters_in_folders_of_one_name_are_told_apart(of_t5, tmp_path):
    folders = [tmp_path / side / "final" for side in ("a", "b")]
    for folder, adapter in zip(folders, of_t5.adapters, strict=True):
        shutil.copytree(adapter, folder)
    tasks = [AdapterTask(folder, of_t5.samples(k)) for k, folder in enumerate(folders)]
    result = of_t5.merge(tasks=tasks)
    assert list(result.report.residuals(wears=True)) == ["final (1)", "final (2)"]


def test_progress_is_told_by_stages_and_can_cancel(of_t5):
    told = []
    of_t5.merge(tasks=of_t5.tasks(targets=False), progress=lambda *step: told.append(step))
    answers = [(done, total) for stage, done, total in told if str(stage) == "Teachers' answers"]
    layers = [(done, total) for stage, done, total in told if str(stage) == "Layers"]
    assert answers == [(1, 2), (2, 2)]
    assert layers[-1] == (32, 32) and len(answers) + len(layers) == len(told)

    def cancel(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        of_t5.merge(progress=cancel)


def test_padded_texts_give_what_each_gives_alone_without_padding(of_t5):
    config = MergeConfig(target="delta", alpha=1e-3, output_dtype=torch.float64, unit_gain=1.0)
    base = of_t5.base(torch.float64)
    found = of_t5.merge(base, config=config).adapter.deltas
    adapters = [load_adapter(base, folder) for folder in of_t5.adapters]
    tasks = []
    for k in (0, 1):
        teachers = Teachers(base, adapters, [{k: 1.0}])
        alone = [t5.FAMILY.prepare(teachers, [[sample]], t5.FAMILY.options) for sample in texts(k)]
        tasks.append(Task(str(k), [rows[0][0] for _, rows in alone], {k: 1.0}))
    network, _ = alone[0]
    one_by_one = merge(network, adapters, tasks, config, room=Room(1))
    assert_close(found, one_by_one.adapter.deltas, 1e-7)


def test_the_head_can_be_merged_too(of_t5, tmp_path):
    options = {"targets": ("lm_head", "v"), "ensure_weight_tying": False}
    base = of_t5.folder / "base"
    folders = [tiny_language.adapter(base, tmp_path / str(k), k, **options) for k in (7, 8)]
    tasks = [AdapterTask(folder, texts(k)) for k, folder in enumerate(folders)]
    result = of_t5.merge(tasks=tasks)
    assert result.adapter.deltas["lm_head"].rank == 8
    assert result.report.layers[-1].path == "lm_head"


def test_padding_of_captions_does_not_count(of_blip):
    """Shorter captions alone give the same as beside long ones."""
    base = of_blip.base(torch.float64)
    two = [[s for s in captions(seed) if len(s.target) == 5] * 2 for seed in (0, 1)]
    longest = Example(two[0][0].input, torch.arange(3, 30))
    folders = [*of_blip.adapters, of_blip.adapters[0]]
    config = MergeConfig(alpha=1e-3)

    def merged(third):
        samples = zip(folders, [*two, third], [1, 1, 0], strict=True)
        tasks = [AdapterTask(*task) for task in samples]
        return of_blip.merge(base, tasks, config).adapter.deltas

    assert_close(merged([longest]), merged(two[0]), 1e-5)


def test_teachers_write_after_the_prompts_as_the_models_own_generate_does(of_blip):
    processor = load_processor(str(of_blip.folder / "base"))
    base = of_blip.base()
    prompts = ["w5 w6", "", "w5 w6", "w7"]
    pairs = zip(captions(0, targets=False), prompts, strict=True)
    samples = [replace(sample, prompt=prompt) for sample, prompt in pairs]
    tokens = [blip.encoded(sample, processor, base, blip.FAMILY.options) for sample in samples]
    teachers = Teachers(base, [load_adapter(base, of_blip.adapters[0])], [{0: 1.0}])
    (found,) = teachers.answered([tokens], partial(blip.write, base, max_new_tokens=5))
    model = tiny_language.peft(tiny_language.blip(), of_blip.adapters[0]).eval()
    for sample, written in zip(samples, found, strict=True):
        ids = processor.tokenizer(sample.prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            own = model.generate(
                pixel_values=sample.input[None], input_ids=ids, max_new_tokens=5, do_sample=False
            )[0].tolist()
        assert written.target.tolist() == (own[: own.index(2)] if 2 in own else own[:-1])


REFUSED = [  # family, what is asked of it, what the message names
    ("T5", lambda case: AdapterTask(case.adapters[0], []), "no samples for"),
    ("T5", lambda case: merge_one(case, Example(torch.tensor([99]))), "0 to 59"),
    ("T5", lambda case: merge_one(case, Example(torch.tensor([], dtype=int))), "1 or more"),
    (
        "T5",
        lambda case: merge_one(case, Example("x"), str(case.folder / "base")),
        "no tokenizer",
    ),
    ("T5", lambda case: case.family.load("/nowhere/t5"), "no such folder"),
    ("T5", lambda case: case.family.load(str(case.adapters[0])), "cannot be loaded"),
    ("BLIP", lambda case: t5.load_base(str(case.folder / "base")), "is a model of the kind 'blip'"),
    ("BART", lambda case: merge_one(case, Example(torch.full((65,), 5))), "model reads 64; set"),
    ("BLIP", lambda case: merge_one(case, Example(ZEROS[:, :8, :8], IDS)), "(3, 16, 16)"),
    ("BLIP", lambda case: merge_one(case, Example(ZEROS, 33 * IDS)), "ids from 0 to 49"),
]
ZEROS, IDS = torch.zeros(3, 16, 16), torch.tensor([3])


def merge_one(case, sample, base=None):
    return case.merge(base, [AdapterTask(case.adapters[0], [sample])])


def test_what_cannot_be_used_is_refused(cases):
    for name, call, said in REFUSED:
        with pytest.raises(ValueError) as raised:
            call(cases(name))
        assert said in str(raised.value)
