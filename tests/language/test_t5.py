"""T5 and BART: encoder, decoder and cross-attention, on tiny random models."""

import copy
import json
from dataclasses import replace
from functools import partial

import pytest
import tiny_language
import torch

from iteris_core import (
    Adapter,
    AdapterError,
    CalibrationError,
    ConfigError,
    LowRankDelta,
    MergeConfig,
    Task,
    merge,
)
from iteris_core.algebra import reference
from iteris_core.files import peft
from iteris_core.language.job import DEFAULT, PRESERVE_WEIGHT, AdapterTask, Preserve
from iteris_core.language.merged_model import save_merged_model
from iteris_core.language.samples import Encoded
from iteris_core.language.t5 import (
    KINDS,
    load_base,
    merge_t5,
    network_of,
    prepare,
    stream_of,
    write,
)
from iteris_core.language.teachers import Teachers
from iteris_core.language.text_samples import TextOptions, TextSample, read_texts, read_token_ids
from iteris_core.rows.wearing import layer_hooks

LENGTHS = [(7, 4), (3, 6), (9, 1), (5, 5)]


def samples_of(seed, lengths=LENGTHS, *, targets=True):
    generator = torch.Generator().manual_seed(seed)

    def ids(length):
        return torch.randint(2, 60, (length,), generator=generator)

    drawn = [(ids(n), ids(m)) for n, m in lengths]
    return [TextSample(text, target if targets else None) for text, target in drawn]


def tasks(folders, samples, weights=(1.0, 1.0)):
    """Adapters with their samples, as `merge_t5` takes them."""
    return [AdapterTask(*task) for task in zip(folders, samples, weights, strict=False)]


def teachers(model, adapters, mixes=({0: 1.0}, {1: 1.0}), samples_per_call=8):
    return Teachers(model, adapters, mixes, samples_per_call)


def answered(model, adapters, samples, mix, samples_per_call=8):
    """Samples of one task with what its teacher answers."""
    who = teachers(model, adapters, [mix], samples_per_call)
    return who.answered([samples], partial(write, model))[0]


def both(seed=0, **options):
    return [samples_of(seed, **options), samples_of(seed + 1, **options)]


@pytest.fixture(scope="module")
def base(t5_folder):
    return load_base(str(t5_folder / "base"))


@pytest.fixture(scope="module")
def folders(t5_folder):
    return [t5_folder / "one", t5_folder / "two"]


def assert_close(found, expected, tolerance):
    assert set(found) == set(expected)
    for path, delta in expected.items():
        want = delta.dense()
        have = found[path].dense()
        assert ((have - want).norm() / want.norm()).item() < tolerance, path


def test_one_adapter_merges_to_itself_in_encoder_decoder_and_cross_attention(base, folders):
    result = merge_t5(base, tasks(folders[1:], [samples_of(0)]), MergeConfig(alpha=1e-3))
    expected = peft.load(folders[1], tiny_language.shapes(base)).deltas
    assert len(expected) == 2 * 6 + 2 * 10
    assert_close(result.adapter.deltas, expected, 1e-4)
    assert max(entry.residual for layer in result.report.layers for entry in layer.tasks) < 1e-3


@pytest.mark.parametrize(
    "options", [{}, {"target": "delta"}, {"target": "delta", "ridge": "paper", "balance": "full"}]
)
def test_sweep_and_iteration_agree(base, folders, options):
    swept = merge_t5(base, tasks(folders, both()), MergeConfig(samples_per_chunk=3, **options))
    iterated = merge_t5(
        base, tasks(folders, both()), MergeConfig(engine="iterate", max_iter=40, **options)
    )
    assert_close(swept.adapter.deltas, iterated.adapter.deltas, 2e-4)


def solve_dense(model, adapters, tasks, config):
    """The paper's equation at every layer, dense, layer by layer in the order of the network; rows
    without any padding.
    """
    order = []
    merged = {}
    paths = {path for adapter in adapters for path in adapter.deltas}
    modules = {path: model.get_submodule(path) for path in paths}

    def run(sample, deltas, seen):
        def hook(path, module, x, y):
            seen[path] = x[0]
            return y + x @ deltas[path].T if path in deltas else y

        with torch.no_grad(), layer_hooks(modules, hook):
            labels = sample.target[None]
            model(
                input_ids=sample.input[None],
                decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels),
                use_cache=False,
            )
        return seen

    dense = [
        {path: delta.up.double() @ delta.down.double() for path, delta in adapter.deltas.items()}
        for adapter in adapters
    ]
    teachers = [[run(s, own, {}) for s in task] for own, task in zip(dense, tasks, strict=True)]
    order = list(teachers[0][0])
    for path in order:
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


def test_padded_texts_of_several_lengths_give_what_the_equation_gives_without_padding(
    base, folders, t5_folder
):
    double = load_base(str(t5_folder / "base"), torch.float64)
    config = MergeConfig(
        target="delta",
        alpha=1e-3,
        samples_per_chunk=3,
        output_dtype=torch.float64,
        unit_gain=1.0,
    )
    found = merge_t5(double, tasks(folders, both()), config).adapter.deltas
    adapters = [peft.load(folder, tiny_language.shapes(base)) for folder in folders]
    expected = solve_dense(double, adapters, both(), config)
    assert set(found) == set(expected)
    for path, want in expected.items():
        assert ((found[path].dense() - want).norm() / want.norm()).item() < 1e-7, path


def test_settings_of_ones_own_have_the_same_defaults_as_none(base, folders):
    """Any `MergeConfig` had another unit gain than no `MergeConfig`."""
    plain = merge_t5(base, tasks(folders, both()))
    given = merge_t5(base, tasks(folders, both()), MergeConfig())
    assert given.report.settings == plain.report.settings
    assert plain.report.settings["config"]["unit_gain"] == 1
    for path, delta in plain.adapter.deltas.items():
        assert torch.equal(delta.dense(), given.adapter.deltas[path].dense())
    asked = merge_t5(base, tasks(folders, both()), MergeConfig(unit_gain=2.0))
    assert asked.report.settings["config"]["unit_gain"] == 2


def test_counting_the_padding_is_another_answer_and_equals_rows_that_end_in_real_padding(
    base, folders
):
    ignored = merge_t5(base, tasks(folders, both())).adapter.deltas
    counted = merge_t5(
        base, tasks(folders, both()), options=TextOptions(padding="count")
    ).adapter.deltas
    assert (
        max(((counted[path].dense() - ignored[path].dense()).norm()).item() for path in ignored)
        > 1e-2
    )
    network, rows = prepare(teachers(base, []), both(), TextOptions(padding="count"))
    assert all(not sample.token_weights for task in rows for sample in task)
    assert rows[0][1].teacher.mask.tolist() == [1] * 3 + [0] * 6
    assert network.stream("encoder.x") == "encoder"


def test_without_targets_the_teachers_answer_and_both_rows_read_it(base, folders):
    adapters = [peft.load(folder, tiny_language.shapes(base)) for folder in folders]
    inputs = [Encoded(sample.input, None) for sample in samples_of(0)]
    for k, folder in enumerate(folders):
        answers = [
            sample.target
            for sample in answered(base, adapters, inputs, {k: 1.0}, samples_per_call=3)
        ]
        model = tiny_language.peft(tiny_language.t5(), folder)
        for sample, answer in zip(inputs, answers, strict=True):
            own = model.generate(input_ids=sample.read[None], do_sample=False, max_new_tokens=32)[
                0, 1:
            ]
            ends = (own == 1).nonzero()
            assert answer.tolist() == (own[: int(ends[0]) + 1] if len(ends) else own).tolist()
    written = [
        [
            TextSample(s.read, s.target)
            for s in answered(base, adapters, [Encoded(t.input, None) for t in task], {k: 1.0})
        ]
        for k, task in enumerate(both())
    ]
    automatic = merge_t5(base, tasks(folders, both(targets=False))).adapter.deltas
    assert_close(automatic, merge_t5(base, tasks(folders, written)).adapter.deltas, 1e-5)


def test_the_encoder_alone_equals_the_encoder_of_the_whole(base, folders):
    whole = merge_t5(base, tasks(folders, both())).adapter.deltas
    result = merge_t5(
        base, tasks(folders, both(targets=False)), options=TextOptions(modules="encoder")
    )
    assert_close(
        result.adapter.deltas,
        {path: d for path, d in whole.items() if path.startswith("encoder.")},
        1e-5,
    )
    (note,) = result.report.notes
    assert note.kind == "left_out" and "deltas of the decoder are left out" in note.text


def test_the_head_can_be_merged_too(base, t5_folder, tmp_path):
    options = {"targets": ("lm_head", "v"), "ensure_weight_tying": False}
    folders = [
        tiny_language.adapter(t5_folder / "base", tmp_path / str(seed), seed, **options)
        for seed in (7, 8)
    ]
    result = merge_t5(base, tasks(folders, both()))
    assert result.adapter.deltas["lm_head"].rank == 8
    assert result.report.layers[-1].path == "lm_head"


@pytest.fixture(scope="module")
def flan(tmp_path_factory):
    """A FLAN-T5 in small: gated feed-forward layers, and a head that is not the embedding; two
    adapters, one of them a DoRA.
    """
    folder = tmp_path_factory.mktemp("flan")
    model = tiny_language.t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(60, 32) / 4)
    model.save_pretrained(folder / "base")
    tiny_language.adapter(folder / "base", folder / "one", 1, ("q", "v", "wi_0", "wi_1", "wo"))
    tiny_language.adapter(folder / "base", folder / "dora", 2, ("q", "wi_1"), use_dora=True)
    return folder


def test_a_flan_t5_and_a_dora_of_it_merge_too(flan, tmp_path):
    base = load_base(str(flan / "base"))
    assert not torch.equal(base.lm_head.weight, base.shared.weight)
    alone = merge_t5(
        base, tasks([flan / "one"], [samples_of(0)]), MergeConfig(alpha=1e-3)
    ).adapter.deltas
    assert "decoder.block.1.layer.2.DenseReluDense.wi_1" in alone
    assert_close(alone, peft.load(flan / "one", tiny_language.shapes(base)).deltas, 1e-4)
    dora = merge_t5(base, tasks([flan / "dora"], [samples_of(0)]), MergeConfig(alpha=1e-3))
    peft.save(dora.adapter, tmp_path / "out", "base", "SEQ_2_SEQ_LM")
    expected = tiny_language.logits(
        tiny_language.peft(load_base(str(flan / "base")), flan / "dora")
    )
    assert torch.allclose(
        tiny_language.logits(tiny_language.peft(load_base(str(flan / "base")), tmp_path / "out")),
        expected,
        atol=1e-3,
    )
    both_ways = [
        merge_t5(
            base,
            tasks([flan / "one", flan / "dora"], both()),
            MergeConfig(engine=engine, max_iter=60),
        )
        for engine in ("sweep", "iterate")
    ]
    assert_close(both_ways[0].adapter.deltas, both_ways[1].adapter.deltas, 2e-4)


def test_the_whole_model_of_a_flan_t5_keeps_its_own_head(flan, tmp_path):
    result = merge_t5(str(flan / "base"), tasks([flan / "one"], [samples_of(0)]))
    save_merged_model(load_base(str(flan / "base")), result.adapter, tmp_path / "out", kinds=KINDS)
    expected = tiny_language.logits(
        tiny_language.with_deltas(load_base(str(flan / "base")), result.adapter.deltas)
    )
    assert torch.allclose(
        tiny_language.logits(load_base(str(tmp_path / "out"))), expected, atol=1e-5
    )


def test_bart_merges_too(tmp_path):
    from transformers import BartForConditionalGeneration

    tiny_language.bart().save_pretrained(tmp_path / "base")
    targets = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1")
    folders = [
        tiny_language.adapter(
            tmp_path / "base",
            tmp_path / str(seed),
            seed,
            targets,
            kind=BartForConditionalGeneration,
        )
        for seed in (1, 2)
    ]
    model = load_base(str(tmp_path / "base"))
    result = merge_t5(model, tasks(folders[:1], [samples_of(0)]), MergeConfig(alpha=1e-3))
    assert_close(
        result.adapter.deltas, peft.load(folders[0], tiny_language.shapes(model)).deltas, 1e-4
    )
    long = [[TextSample(torch.full((65,), 5))], [TextSample(torch.tensor([5]))]]
    with pytest.raises(
        CalibrationError,
        match="a sample has 65 tokens, but this model reads 64; set max_length to 64",
    ):
        merge_t5(model, tasks(folders, long))
    swept, iterated = (
        merge_t5(
            model, tasks(folders, both(targets=False)), MergeConfig(engine=engine, max_iter=30)
        )
        for engine in ("sweep", "iterate")
    )
    assert_close(swept.adapter.deltas, iterated.adapter.deltas, 2e-4)


def test_streams():
    for path in (
        "encoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.1.EncDecAttention.k",
        "model.encoder.layers.0.fc1",
        "model.decoder.layers.0.encoder_attn.v_proj",
    ):
        assert stream_of(path) == "encoder"
    for path in (
        "decoder.block.0.layer.1.EncDecAttention.q",
        "decoder.block.0.layer.1.EncDecAttention.o",
        "lm_head",
        "model.decoder.layers.0.encoder_attn.q_proj",
        "decoder.block.0.layer.0.SelfAttention.v",
    ):
        assert stream_of(path) == "decoder"


def test_a_preserve_task_works_beside_the_adapters(base, folders):
    adapters = [peft.load(folder, tiny_language.shapes(base)) for folder in folders]
    network, rows = prepare(teachers(base, adapters), both(), TextOptions())
    tasks = [
        Task("one", rows[0], {0: 1.0}),
        Task("two", rows[1], {1: 1.0}),
        Task("preserve", rows[1], {}),
    ]
    report = merge(network_of(base), adapters, tasks).report
    assert any(
        entry.task == "preserve" and not entry.wears
        for layer in report.layers
        for entry in layer.tasks
    )
    assert network.modules.keys() == network_of(base).modules.keys()


@pytest.mark.parametrize("options", [{}, {"head": True}, {"decoder": False}], ids=str)
def test_outputs_are_those_of_the_model_and_0_where_there_is_padding(base, options):
    _, (rows, _) = prepare(teachers(base, [adapter_of_the_decoder()]), both(), TextOptions())
    network = network_of(base, **options)
    with torch.no_grad():
        outputs = network.forward([sample.teacher for sample in rows])
        for sample, found, given in zip(rows, outputs, samples_of(0), strict=True):
            inputs = {"input_ids": given.input[None]}
            states = base.get_encoder()(**inputs).last_hidden_state
            if options == {"head": True}:
                states = base(**inputs, labels=given.target[None]).logits
            elif not options:
                read = sample.teacher.decoder_ids[None, : len(given.target)]
                states = base.get_decoder()(
                    input_ids=read, encoder_hidden_states=states
                ).last_hidden_state
            length = states.shape[1]
            torch.testing.assert_close(found[:length], states[0], rtol=1e-4, atol=1e-5)
            assert not found[length:].any()


def adapter_of_the_decoder():
    path = "decoder.block.0.layer.0.SelfAttention.q"
    return Adapter("decoder", {path: LowRankDelta(torch.ones(32, 1), torch.ones(1, 32))})


def drift(base, deltas, samples):
    """Return how far a model with these deltas answers from the base, relative to the base's hidden
    states.
    """
    changed = tiny_language.with_deltas(copy.deepcopy(base), deltas)
    with torch.no_grad():
        pairs = [
            [
                model(input_ids=s.input[None], decoder_input_ids=s.target[None]).logits
                for model in (base, changed)
            ]
            for s in samples
        ]
    return (
        (sum((a - b).norm() ** 2 for a, b in pairs) / sum(a.norm() ** 2 for a, _ in pairs))
        .sqrt()
        .item()
    )


@pytest.mark.parametrize("targets", [True, False])
def test_preserve_samples_keep_the_base_model_and_are_the_task_with_an_empty_mix(
    base, folders, targets
):
    ordinary = samples_of(7, targets=targets)
    plain = merge_t5(base, tasks(folders, both()))
    kept = merge_t5(base, tasks(folders, both()), preserve=Preserve(ordinary, 2.0))
    if targets:
        before, after = (drift(base, result.adapter.deltas, ordinary) for result in (plain, kept))
        assert after < 0.8 * before
    adapters = [peft.load(folder, tiny_language.shapes(base)) for folder in folders]
    mixes = [{0: 1.0}, {1: 1.0}, {}]
    network, rows = prepare(teachers(base, adapters, mixes), [*both(), ordinary], TextOptions())
    same = [Task(str(g), rows[g], mix, (1.0, 1.0, 2.0)[g]) for g, mix in enumerate(mixes)]
    assert_close(kept.adapter.deltas, merge(network, adapters, same, DEFAULT).adapter.deltas, 1e-6)
    assert [task.task for task in kept.report.layers[0].tasks] == [
        "one",
        "two",
        "base model (preserve)",
    ]
    assert (kept.report.settings["samples"], kept.report.settings["weights"]) == (
        [4, 4, 4],
        [1.0, 1.0, 2.0],
    )
    if not targets:
        inputs = [Encoded(sample.input, None) for sample in ordinary]
        written = [TextSample(s.read, s.target) for s in answered(base, adapters, inputs, {})]
        again = merge_t5(base, tasks(folders, both()), preserve=Preserve(written, 2.0))
        assert_close(kept.adapter.deltas, again.adapter.deltas, 1e-5)


def test_a_preserve_task_counts_a_tenth_unless_told_otherwise(base, folders):
    kept = merge_t5(base, tasks(folders, both()), preserve=Preserve(samples_of(7)))
    assert kept.report.settings["weights"] == [1.0, 1.0, PRESERVE_WEIGHT]


def test_a_preserve_weight_of_0_is_no_preserve_task(base, folders):
    plain = merge_t5(base, tasks(folders, both()))
    without = merge_t5(base, tasks(folders, both()), preserve=Preserve(samples_of(7), 0.0))
    assert_close(without.adapter.deltas, plain.adapter.deltas, 1e-7)
    with pytest.raises(ConfigError, match=r"the preserve task has weight -1\.0"):
        Preserve(samples_of(7), -1.0)


def test_a_whole_model_with_a_tied_layer_is_refused(base, tmp_path):
    model = tiny_language.t5(tie_word_embeddings=True)
    adapter = Adapter("head", {"lm_head": LowRankDelta(torch.ones(60, 1), torch.ones(1, 32))})
    with pytest.raises(AdapterError, match="head: 'lm_head' shares its weight with another module"):
        save_merged_model(model, adapter, tmp_path / "out", kinds=KINDS)
    assert list(tmp_path.iterdir()) == []


def test_samples_from_files(tmp_path):
    (tmp_path / "a.txt").write_text("first line\n\n second \n")
    assert read_texts(tmp_path / "a.txt") == [TextSample("first line"), TextSample("second")]
    (tmp_path / "a.jsonl").write_text('{"input": "x", "target": "y"}\n{"input": "z"}\n')
    assert read_texts(tmp_path / "a.jsonl") == [TextSample("x", "y"), TextSample("z")]
    for content, said in (
        ("", "no samples"),
        ('{"input": 1}', 'line 1: has no text "input"'),
        ("\n{", "line 2: no JSON"),
        ("[" * 100000, "no JSON"),
        ('{"input": "x", "target": 1}', '"target" is 1, no text'),
        ('{"input": "x", "target": " "}', "\"target\" is ' ', no text; write one, or leave it out"),
    ):
        (tmp_path / "a.jsonl").write_text(content)
        with pytest.raises(CalibrationError) as error:
            read_texts(tmp_path / "a.jsonl")
        assert said in str(error.value)
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_texts(tmp_path / "nowhere.txt")
    with pytest.raises(CalibrationError, match="no such file"):
        read_token_ids(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL"])
def test_lines_end_at_line_feeds_only_and_a_byte_order_mark_is_no_text(name, tmp_path):
    text = "one\u2028two\x85three"
    (tmp_path / name).write_text(
        "\ufeff" + json.dumps({"input": text}, ensure_ascii=False) + "\r\n", newline=""
    )
    assert read_texts(tmp_path / name) == [TextSample(text)]
    (tmp_path / "a.txt").write_text(f"\ufeff{text}\r\nfour\n", newline="")
    assert read_texts(tmp_path / "a.txt") == [TextSample(text), TextSample("four")]


def test_token_ids_longer_than_counted_padding_are_refused(base):
    texts = [[TextSample("w1")], [TextSample(torch.arange(2, 12))]]
    with pytest.raises(
        CalibrationError,
        match="a sample has 10 tokens, but padding that counts fills up to 6; set max_length",
    ):
        prepare(
            teachers(base, []),
            texts,
            TextOptions(padding="count", max_length=6),
            lambda **text: {"input_ids": [5, 1]},
        )


def test_a_model_that_asks_for_several_answers_gives_one_as_a_teacher(t5_folder):
    model = load_base(str(t5_folder / "base"))
    inputs = [Encoded(sample.input, None) for sample in samples_of(0)]
    expected = answered(model, [], inputs, {})
    model.generation_config.num_return_sequences = 2
    assert [s.target.tolist() for s in answered(model, [], inputs, {})] == [
        s.target.tolist() for s in expected
    ]


def test_progress_is_told_by_stages_and_can_cancel(base, folders):
    told = []
    merge_t5(base, tasks(folders, both(targets=False)), progress=lambda *step: told.append(step))
    answers = [(done, total) for stage, done, total in told if str(stage) == "Teachers' answers"]
    layers = [(done, total) for stage, done, total in told if str(stage) == "Layers"]
    assert answers == [(1, 2), (2, 2)]
    assert layers[-1] == (32, 32) and len(answers) + len(layers) == len(told)

    def cancel(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_t5(base, tasks(folders, both()), progress=cancel)


def test_an_iteration_says_how_far_it_came(base, folders):
    report = merge_t5(
        base, tasks(folders, both()), MergeConfig(engine="iterate", max_iter=2)
    ).report
    assert (
        f"stopped after 2 solves, as many as max_iter allows, last change {report.changes[-1]:.1e}"
        in str(report)
    )
    assert f"stopped after 2 solves, last change {report.changes[-1]:.1e}" in str(
        replace(report, max_iter=None)
    )
    settled = merge_t5(
        base, tasks(folders, both()), MergeConfig(engine="iterate", max_iter=40)
    ).report
    assert f"settled after {len(settled.changes)} solves, last change" in str(settled)
    assert "stopped" not in str(merge_t5(base, tasks(folders, both())).report)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda base, f: AdapterTask(f[0], []), CalibrationError, "no samples for"),
        (
            lambda base, f: merge_t5(base, tasks(f, both(), [1.0, -1.0])),
            CalibrationError,
            "task 'two' has weight -1.0",
        ),
        (
            lambda base, f: merge_t5(base, tasks(f, [[TextSample(torch.tensor([99]))]] * 2)),
            CalibrationError,
            "0 to 59",
        ),
        (
            lambda base, f: merge_t5(
                base, tasks(f, [[TextSample(torch.tensor([], dtype=int))]] * 2)
            ),
            CalibrationError,
            "1 or more",
        ),
        (lambda base, f: TextOptions(padding="some"), ConfigError, "'ignore' or 'count'"),
        (lambda base, f: TextOptions(max_length=0), ConfigError, "from 1 to"),
        (lambda base, f: load_base("/nowhere/t5"), ConfigError, "no such folder"),
        (lambda base, f: load_base(str(f[0])), ConfigError, "cannot be loaded"),
        (
            lambda base, f: merge_t5(str(f[0].parent / "base"), tasks(f, [[TextSample("x")]] * 2)),
            ConfigError,
            "no tokenizer",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(base, folders, call, error, said):
    with pytest.raises(error) as raised:
        call(base, folders)
    assert said in str(raised.value)
