"""T5, FLAN-T5, BART and BLIP: encoder, decoder, cross-attention and vision tower, on tiny random
models.
"""

import copy
from dataclasses import replace
from functools import partial

import language_families
import pytest
import tiny_language
import torch
from language_families import captions, texts
from transformers import BlipForConditionalGeneration

from iteris_core import Adapter, LowRankDelta, MergeConfig, Task, merge
from iteris_core.algebra import reference
from iteris_core.files.pretrained import load_adapter, load_processor
from iteris_core.language import blip, t5
from iteris_core.language.caption_samples import CaptionOptions, CaptionSample, encode_captions
from iteris_core.language.job import DEFAULT, PRESERVE, AdapterTask, Preserve
from iteris_core.language.samples import Encoded
from iteris_core.language.teachers import Teachers
from iteris_core.language.text_samples import TextOptions, TextSample
from iteris_core.rows.wearing import layer_hooks

pytestmark = pytest.mark.slow

QUERY = "text_decoder.bert.encoder.layer.0.attention.self.query"


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


# --- what holds for every family ---


def test_one_adapter_merges_to_itself(case):
    number = 1
    task = AdapterTask(case.adapters[number], case.samples(0))
    result = case.merge(tasks=[task], config=MergeConfig(alpha=1e-3))
    expected = case.deltas(case.adapters[number])
    assert_close(result.adapter.deltas, expected, 1e-4)
    assert max(entry.residual for layer in result.report.layers for entry in layer.tasks) < 1e-3


def test_sweep_and_iteration_agree(case):
    base = case.base(torch.float64)
    tasks = case.tasks()
    swept = case.merge(base, tasks, MergeConfig(samples_per_chunk=3, alpha=1e-3))
    looped = MergeConfig(engine="iterate", max_iter=60, alpha=1e-3)
    iterated = case.merge(base, tasks, looped)
    assert_close(swept.adapter.deltas, iterated.adapter.deltas, 1e-5)


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
        written.append(replace(task, samples=[answered_by(case, model, s) for s in task.samples]))
    found = case.merge(tasks=case.tasks(targets=False)).adapter.deltas
    assert_close(found, case.merge(tasks=written).adapter.deltas, 1e-5)


def answered_by(case, model, sample):
    settings = {"do_sample": False, "num_beams": 1, "max_new_tokens": 32}
    with torch.no_grad():
        if case.samples is texts:
            ids = model.generate(input_ids=sample.input[None], **settings)[0, 1:]
            ends = (ids == model.config.eos_token_id).nonzero()
            return replace(sample, target=ids[: int(ends[0]) + 1] if len(ends) else ids)
        ids = model.generate(
            pixel_values=sample.image[None], input_ids=torch.tensor([[4, 2]]), **settings
        )[0]
        ends = (ids == 2).nonzero()
        return replace(sample, caption=ids[: int(ends[0])] if len(ends) else ids[:-1])


def test_preserve_samples_are_a_task_with_an_empty_mix(case):
    ordinary = case.samples(7)
    plain = case.merge()
    kept = case.merge(preserve=Preserve(ordinary, 2.0))
    base = case.base()
    adapters = [load_adapter(base, folder) for folder in case.adapters]
    mixes = [{0: 1.0}, {1: 1.0}, {}]
    tasks = [*(task.samples for task in case.tasks()), ordinary]
    teachers = Teachers(base, adapters, mixes)
    reader = load_processor(str(case.folder / "base")) if case.family is blip.FAMILY else None
    network, rows = case.family.prepare(teachers, tasks, case.family.options, reader)
    same = [Task(str(g), rows[g], mix, (1.0, 1.0, 2.0)[g]) for g, mix in enumerate(mixes)]
    by_hand = merge(network, adapters, same, DEFAULT).adapter.deltas
    assert_close(kept.adapter.deltas, by_hand, 1e-6)
    assert [task.task for task in kept.report.layers[0].tasks] == ["one", "two", PRESERVE]
    settings = kept.report.settings
    assert (settings["samples"], settings["weights"]) == ([4, 4, 4], [1.0, 1.0, 2.0])
    if case.samples is texts:
        before, after = (drift(base, r.adapter.deltas, ordinary) for r in (plain, kept))
        assert after < 0.9 * before


def drift(base, deltas, samples):
    """Return how far a model with these deltas answers from the base, relative to the base."""
    changed = tiny_language.with_deltas(copy.deepcopy(base), deltas)
    with torch.no_grad():
        pairs = [
            [
                model(input_ids=s.input[None], decoder_input_ids=s.target[None]).logits
                for model in (base, changed)
            ]
            for s in samples
        ]
    moved = sum((a - b).norm() ** 2 for a, b in pairs)
    return (moved / sum(a.norm() ** 2 for a, _ in pairs)).sqrt().item()


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


STREAMS = {
    (t5, "encoder"): [
        "encoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.1.EncDecAttention.k",
        "model.encoder.layers.0.fc1",
        "model.decoder.layers.0.encoder_attn.v_proj",
    ],
    (t5, "decoder"): [
        "decoder.block.0.layer.1.EncDecAttention.q",
        "lm_head",
        "model.decoder.layers.0.encoder_attn.q_proj",
        "decoder.block.0.layer.0.SelfAttention.v",
    ],
    (blip, "image"): [
        "text_decoder.bert.encoder.layer.0.crossattention.self.key",
        "vision_model.encoder.layers.0.self_attn.qkv",
    ],
    (blip, "text"): ["text_decoder.bert.encoder.layer.0.crossattention.self.query"],
}


def test_streams():
    for (family, stream), paths in STREAMS.items():
        assert {family.stream_of(path) for path in paths} == {stream}


# --- encoder-decoders ---


def solve_dense(model, adapters, tasks, config):
    """The paper's equation at every layer, dense, layer by layer in the order of the network; rows
    without any padding.
    """
    merged = {}
    modules = {p: model.get_submodule(p) for adapter in adapters for p in adapter}

    def run(sample, deltas, seen):
        def hook(path, module, x, y):
            seen[path] = x[0]
            return y + x @ deltas[path].T if path in deltas else y

        with torch.no_grad(), layer_hooks(modules, hook):
            decoder_ids = model.prepare_decoder_input_ids_from_labels(sample.target[None])
            model(input_ids=sample.input[None], decoder_input_ids=decoder_ids, use_cache=False)
        return seen

    dense = [
        {path: delta.up.double() @ delta.down.double() for path, delta in adapter.items()}
        for adapter in adapters
    ]
    teachers = [[run(s, own, {}) for s in task] for own, task in zip(dense, tasks, strict=True)]
    for path in list(teachers[0][0]):
        at_layer = []
        for g, task in enumerate(tasks):
            x = torch.cat([seen[path] for seen in teachers[g]])
            student = torch.cat([run(s, merged, {})[path] for s in task])
            own = dense[g].get(path, torch.zeros(*modules[path].weight.shape, dtype=torch.float64))
            at_layer.append(reference.TaskRows(x, student, own, reference.balance(x, own)))
        over_isotropic = [
            row.weight * row.teacher.square().sum() / row.teacher.shape[1]
            for row in at_layer
            if row.delta.any()
        ]
        factor = sum(over_isotropic) / len(over_isotropic)
        at_layer = [
            row if row.delta.any() else row._replace(weight=row.weight * factor) for row in at_layer
        ]
        merged[path] = reference.solve(*reference.normal_equations(at_layer, alpha=config.alpha))
    return merged


def test_padded_texts_give_what_the_equation_gives_without_padding(of_t5):
    config = MergeConfig(
        target="delta",
        alpha=1e-3,
        samples_per_chunk=3,
        output_dtype=torch.float64,
        unit_gain=1.0,
    )
    double = of_t5.base(torch.float64)
    found = of_t5.merge(double, config=config).adapter.deltas
    adapters = [of_t5.deltas(folder) for folder in of_t5.adapters]
    expected = solve_dense(double, adapters, [texts(0), texts(1)], config)
    assert set(found) == set(expected)
    for path, want in expected.items():
        assert ((found[path].dense() - want).norm() / want.norm()).item() < 1e-7, path


def test_counting_the_padding_is_another_answer(of_t5):
    counting = TextOptions(padding="count")
    ignored = of_t5.merge().adapter.deltas
    counted = of_t5.merge(options=counting).adapter.deltas
    assert max((counted[p].dense() - ignored[p].dense()).norm().item() for p in ignored) > 1e-2
    _, rows = t5.prepare(Teachers(of_t5.base(), [], [{}, {}]), [texts(0), texts(1)], counting)
    assert all(not sample.token_weights for task in rows for sample in task)
    assert rows[0][1].teacher.mask.tolist() == [1] * 3 + [0] * 6


def test_the_encoder_alone_equals_the_encoder_of_the_whole(of_t5):
    whole = of_t5.merge().adapter.deltas
    tasks = of_t5.tasks(targets=False)
    result = of_t5.merge(tasks=tasks, options=TextOptions(modules="encoder"))
    expected = {path: delta for path, delta in whole.items() if path.startswith("encoder.")}
    assert_close(result.adapter.deltas, expected, 1e-5)
    (note,) = result.report.notes
    assert note.kind == "left_out" and "deltas of the decoder are left out" in note.text


def test_the_head_can_be_merged_too(of_t5, tmp_path):
    options = {"targets": ("lm_head", "v"), "ensure_weight_tying": False}
    base = of_t5.folder / "base"
    folders = [tiny_language.adapter(base, tmp_path / str(k), k, **options) for k in (7, 8)]
    tasks = [AdapterTask(folder, texts(k)) for k, folder in enumerate(folders)]
    result = of_t5.merge(tasks=tasks)
    assert result.adapter.deltas["lm_head"].rank == 8
    assert result.report.layers[-1].path == "lm_head"


@pytest.mark.parametrize("options", [{}, {"head": True}], ids=str)
def test_outputs_are_those_of_the_model_and_0_where_there_is_padding(of_t5, options):
    base = of_t5.base()
    path = "decoder.block.0.layer.0.SelfAttention.q"
    adapter = Adapter("decoder", {path: LowRankDelta(torch.ones(32, 1), torch.ones(1, 32))})
    (rows,) = t5.prepare(Teachers(base, [adapter], [{}]), [texts(0)], TextOptions())[1]
    with torch.no_grad():
        outputs = t5.network_of(base, **options).forward([sample.teacher for sample in rows])
        for sample, found, given in zip(rows, outputs, texts(0), strict=True):
            inputs = {"input_ids": given.input[None]}
            states = base.get_encoder()(**inputs).last_hidden_state
            if options:
                states = base(**inputs, labels=given.target[None]).logits
            else:
                read = sample.teacher.decoder_ids[None, : len(given.target)]
                answers = base.get_decoder()(input_ids=read, encoder_hidden_states=states)
                states = answers.last_hidden_state
            length = states.shape[1]
            torch.testing.assert_close(found[:length], states[0], rtol=1e-4, atol=1e-5)
            assert not found[length:].any()


def test_a_model_that_asks_for_several_answers_gives_one_as_a_teacher(of_t5):
    model = of_t5.base()
    inputs = [Encoded(sample.input, None) for sample in texts(0)]

    def answers():
        (found,) = Teachers(model, [], [{}]).answered([inputs], partial(t5.write, model))
        return [sample.target.tolist() for sample in found]

    expected = answers()
    model.generation_config.num_return_sequences = 2
    assert answers() == expected


# --- captions ---


def test_padding_of_captions_does_not_count(of_blip):
    """Shorter captions alone give the same as beside long ones."""
    base = of_blip.base(torch.float64)
    two = [[s for s in captions(seed) if len(s.caption) == 5] * 2 for seed in (0, 1)]
    longest = CaptionSample(two[0][0].image, torch.arange(3, 30))
    folders = [*of_blip.adapters, of_blip.adapters[0]]
    config = MergeConfig(alpha=1e-3)

    def merged(third, options=None):
        samples = zip(folders, [*two, third], [1, 1, 0], strict=True)
        tasks = [AdapterTask(*task) for task in samples]
        return of_blip.merge(base, tasks, config, options=options).adapter.deltas

    alone = merged(two[0])
    assert_close(merged([longest]), alone, 1e-5)
    counted = merged([longest], CaptionOptions(padding="count"))
    assert not torch.allclose(counted[QUERY].dense(), alone[QUERY].dense(), atol=1e-3)


def test_teachers_write_after_the_prompts_as_the_models_own_generate_does(of_blip):
    processor = load_processor(str(of_blip.folder / "base"))
    base = of_blip.base()
    prompts = ["w5 w6", "", "w5 w6", "w7"]
    pairs = zip(captions(0, targets=False), prompts, strict=True)
    samples = [replace(sample, prompt=prompt) for sample, prompt in pairs]
    (tokens,) = encode_captions([samples], processor, base, CaptionOptions())
    teachers = Teachers(base, [load_adapter(base, of_blip.adapters[0])], [{0: 1.0}])
    (found,) = teachers.answered([tokens], partial(blip.write, base, max_new_tokens=5))
    model = tiny_language.peft(tiny_language.blip(), of_blip.adapters[0]).eval()
    for sample, written in zip(samples, found, strict=True):
        ids = processor.tokenizer(sample.prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            own = model.generate(
                pixel_values=sample.image[None], input_ids=ids, max_new_tokens=5, do_sample=False
            )[0].tolist()
        assert written.target.tolist() == (own[: own.index(2)] if 2 in own else own[:-1])


def test_a_patch_embedding_is_saved_as_a_convolution(of_blip, tmp_path):
    options = {"kind": BlipForConditionalGeneration, "task_type": None, "use_dora": True}
    targets = ("patch_embedding", "query")
    tiny_language.adapter(of_blip.folder / "base", tmp_path / "conv", 1, targets, **options)
    tasks = [
        AdapterTask(tmp_path / "conv", captions(0)),
        AdapterTask(of_blip.adapters[0], captions(1)),
    ]
    of_blip.merge(tasks=tasks).save(tmp_path / "out")
    for folder in (tmp_path / "conv", tmp_path / "out"):
        deltas = load_adapter(tiny_language.blip(), folder).deltas
        assert "vision_model.embeddings.patch_embedding" in deltas
        found = of_blip.logits(tiny_language.peft(tiny_language.blip(), folder))
        expected = of_blip.logits(tiny_language.with_deltas(tiny_language.blip(), deltas))
        assert torch.allclose(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


# --- what cannot be used ---

REFUSED = {
    "no samples": ("T5", lambda case: AdapterTask(case.adapters[0], []), "no samples for"),
    "a weight": (
        "T5",
        lambda case: case.merge(tasks=[replace(t, weight=-1.0) for t in case.tasks()]),
        "task 'one' has weight -1.0",
    ),
    "unknown ids": (
        "T5",
        lambda case: merge_one(case, TextSample(torch.tensor([99]))),
        "0 to 59",
    ),
    "no ids": (
        "T5",
        lambda case: merge_one(case, TextSample(torch.tensor([], dtype=int))),
        "1 or more",
    ),
    "no tokenizer": (
        "T5",
        lambda case: merge_one(case, TextSample("x"), str(case.folder / "base")),
        "no tokenizer",
    ),
    "no folder": ("T5", lambda case: case.family.load("/nowhere/t5"), "no such folder"),
    "no model": ("T5", lambda case: case.family.load(str(case.adapters[0])), "cannot be loaded"),
    "another kind": (
        "BLIP",
        lambda case: t5.load_base(str(case.folder / "base")),
        "is a model of the kind 'blip'; choose one of the kinds t5, mt5, bart",
    ),
    "too many tokens": (
        "BART",
        lambda case: merge_one(case, TextSample(torch.full((65,), 5))),
        "a sample has 65 tokens, but this model reads 64; set max_length to 64",
    ),
    "other pixels": (
        "BLIP",
        lambda case: merge_one(case, CaptionSample(torch.zeros(3, 8, 8), torch.tensor([3]))),
        "this model reads (3, 16, 16)",
    ),
    "unknown caption": (
        "BLIP",
        lambda case: merge_one(case, CaptionSample(torch.zeros(3, 16, 16), torch.tensor([99]))),
        "ids from 0 to 49",
    ),
}


def merge_one(case, sample, base=None):
    return case.merge(base, [AdapterTask(case.adapters[0], [sample])])


def test_what_cannot_be_used_is_refused(cases):
    for name, call, said in REFUSED.values():
        with pytest.raises(ValueError) as raised:
            call(cases(name))
        assert said in str(raised.value)
