"""A sweep that is cancelled, runs out of memory, or meets an unfit network."""

import logging
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
import toy

from iteris_core import (
    Adapter,
    AdapterError,
    CalibrationError,
    LowRankDelta,
    MergeConfig,
    Sample,
    SolveError,
    Task,
    merge,
)
from iteris_core.engines.measure import Measurement
from iteris_core.errors import OutOfMemoryError
from iteris_core.memory import Room

ONE_BY_ONE = Room(samples_per_chunk=1)


@pytest.mark.parametrize(
    "settings",
    [{}, {"method": "regmean"}, {"engine": "iterate", "max_iter": 3}],
    ids=str,
)
def test_every_layer_is_told_when_it_is_solved(settings):
    net = toy.build("stack")
    adapters = [net.adapter("a"), net.adapter("b")]
    tasks = toy.own_tasks(net, adapters)
    steps = []

    def progress(*step):
        steps.append(step)

    merge(net.network(), adapters, tasks, toy.exact(**settings), room=ONE_BY_ONE, progress=progress)
    count = len(net.targets) * settings.get("max_iter", 1)
    assert steps == [(done, count) for done in range(1, count + 1)]


def test_a_forward_of_somebody_else_is_left_alone():
    net = toy.build("stack")
    adapters = [net.adapter()]
    row = net.make_row()
    answers = []
    expected = toy.run(net.model, [row])
    tasks, config = toy.own_tasks(net, adapters), toy.exact()
    asked = lambda *_: answers.append(toy.run(net.model, [row]))  # noqa: E731
    merge(net.network(), adapters, tasks, config, room=ONE_BY_ONE, progress=asked)
    assert len(answers) == len(net.targets)
    assert all(torch.equal(answer, expected) for answer in answers)


@pytest.mark.parametrize("fits", [1, 3])
def test_out_of_memory_it_goes_on_with_smaller_chunks_from_the_layer_it_had_reached(fits, caplog):
    caplog.set_level(logging.INFO, "iteris")
    net, adapters, tasks = toy.pair("attention")
    tasks.append(Task("preserve", net.samples(2), {}))
    told = []

    def small_memory(module, args, output):
        if args[0].shape[0] > 2 * fits:
            raise torch.OutOfMemoryError("no room")

    handle = net.model.cross_attention["o"].register_forward_hook(small_memory)
    listen = lambda *step: told.append(step)  # noqa: E731
    result = merge(net.network(), adapters, tasks, toy.exact(), progress=listen)
    handle.remove()
    expected = toy.naive_fixed_point(net, adapters, tasks)
    assert toy.largest_error(toy.dense(result.adapter), expected) < 1e-9
    assert told == [(done, len(net.targets)) for done in range(1, len(net.targets) + 1)]
    assert [layer.path for layer in result.report.layers] == list(net.targets)
    assert [len(rows) for rows in result.outputs] == [3, 3, 2]
    halved = [record.args for record in caplog.records if "out of memory" in record.message]
    assert halved == [("the sweep", size) for size in (4, 2, 1) if 2 * size > fits]
    assert toy.hook_count(net.model) == 0


@pytest.mark.parametrize("engine", ["sweep", "iterate"])
def test_out_of_memory_in_a_solve_the_layer_is_named_at_once(engine, monkeypatch):
    net, adapters, tasks = toy.pair("stack")
    full = Mock(side_effect=torch.OutOfMemoryError("no room"))
    monkeypatch.setattr(Measurement, "solve", full)
    config = toy.exact(engine=engine)
    said = "layer 'down1' ran out of memory while it was solved.* fewer LoRAs"
    with pytest.raises(OutOfMemoryError, match=said):
        merge(net.network(), adapters, tasks, config, room=Room(4))
    assert full.call_count == 1


def early(net, rows, calls):
    return net.model.down2(net.model.down1(torch.stack([row[0] for row in rows])))


def another_way(net, rows, calls):
    x = torch.stack([row[0] for row in rows])
    return net.model(x) if calls < 4 else net.model.up2(net.model.down1(x))


def twice(net, rows, calls):
    return net.model(toy.run(net.model, rows))


def one_by_one(net, rows, calls):
    return torch.cat([toy.run(net.model, [row]) for row in rows])


SOME = ["down1", "middle", "up2"]


@pytest.mark.parametrize(
    ("forward", "paths", "message"),
    [
        (twice, None, "layer 'down1' is reached twice in one forward pass"),
        (early, None, "never ran 3 of 5 target layers, such as 'middle'"),
        (another_way, SOME, "chunk 0 reached 'middle' while chunk 2 reached 'up2'"),
        (one_by_one, None, "layer 'down1' got 1 rows in a batch of 2"),
    ],
)
def test_a_network_that_cannot_be_swept_is_refused(forward, paths, message):
    net = toy.build("stack")
    adapters = [net.adapter(paths=paths or net.targets)]
    calls = []

    def run(rows):
        calls.append(rows)
        return forward(net, rows, len(calls))

    tasks, solved = toy.own_tasks(net, adapters), []
    with pytest.raises(CalibrationError, match=message):
        progress = lambda *step: solved.append(step)  # noqa: E731
        merge(net.network(run), adapters, tasks, toy.exact(), room=ONE_BY_ONE, progress=progress)
    assert len(solved) == (forward is another_way)
    assert toy.hook_count(net.model) == 0


def test_a_wrong_number_of_token_weights_is_refused():
    net = toy.build("stack")
    adapters = [net.adapter("a")]
    tasks = [Task("a", [Sample(net.make_row(), token_weights={"image": torch.ones(7)})], {0: 1.0})]
    said = r"'down1' sees 4 tokens a row, but a sample has \(7,\) token weights.*'image'"
    with pytest.raises(CalibrationError, match=said):
        toy.merge_toy(net, adapters, tasks)


@pytest.mark.parametrize(
    ("path", "shape", "message"),
    [
        ("nowhere", (4, 4), "adapter 'a' changes 'nowhere', which this model does not have"),
        ("", (6, 6), "adapter 'a' changes '', which is a Convolution of toy; only"),
        ("inlet", (6, 4), "adapter 'a' has a delta of 6 x 4 for 'inlet', whose weight is 6 x 3"),
    ],
)
def test_a_delta_that_does_not_fit_is_refused(path, shape, message):
    net = toy.build("convolution")
    adapter = Adapter("a", {path: LowRankDelta(torch.ones(shape[0], 1), torch.ones(1, shape[1]))})
    with pytest.raises(AdapterError, match=message):
        toy.merge_toy(net, [adapter], [Task("a", net.samples(1), {0: 1.0})])


class Unsteady(torch.nn.Module):
    """A layer behind a part that may drop numbers, or look at other rows."""

    def __init__(self, part):
        super().__init__()
        self.part = part
        self.layer = torch.nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(self.part(x))


class InAForward(torch.nn.Module):
    """A layer that drops numbers without a module for it, as those of transformers do."""

    def __init__(self):
        super().__init__()
        self.dropout = 0.1

    def forward(self, x):
        return torch.nn.functional.dropout(x, self.dropout, self.training)


@pytest.mark.parametrize(
    ("part", "found"),
    [
        (torch.nn.Dropout(0.1), r"'part' of the model, a Dropout, drops numbers at random"),
        (torch.nn.AlphaDropout(0.1), "a AlphaDropout, drops numbers"),
        (torch.nn.RReLU(), "a RReLU, drops numbers"),
        (InAForward(), "a InAForward of .*, drops numbers"),
        (torch.nn.BatchNorm1d(6), "a BatchNorm1d, normalises each row by all rows"),
    ],
    ids=["dropout", "alpha", "rrelu", "functional", "batchnorm"],
)
def test_a_model_in_training_mode_that_drops_or_mixes_rows_is_refused(part, found):
    """What a part does counts, and not the mode."""
    model = Unsteady(part).requires_grad_(False)
    net = toy.Toy(model, ("layer",), lambda: (torch.randn(6, 6),))
    adapters = [net.adapter()]
    tasks = toy.own_tasks(net, adapters)
    for engine in ("sweep", "iterate"):
        with pytest.raises(CalibrationError, match=f"{found}.*call eval\\(\\) of the model"):
            merge(net.network(), adapters, tasks, MergeConfig(engine=engine))
    model.eval()
    merge(net.network(), adapters, tasks, MergeConfig(engine="iterate"))
    model.part = torch.nn.BatchNorm1d(6, track_running_stats=False).eval()
    with pytest.raises(CalibrationError, match="normalises each row by all rows of its batch"):
        merge(net.network(), adapters, tasks)
    model.part = torch.nn.Dropout(0.0).train()
    merge(net.network(), adapters, tasks)


@pytest.mark.parametrize("engine", ["sweep", "iterate"])
def test_a_model_that_writes_all_its_answers_into_one_tensor_loses_none(engine):
    net, adapters, tasks = toy.pair("stack")
    buffer = toy.run(net.model, [task.samples[0].teacher for task in tasks])  # 2 rows

    def into_one(rows):
        return buffer.copy_(toy.run(net.model, rows))

    config = toy.exact(engine=engine)
    found, expected = (
        merge(net.network(forward), adapters, tasks, config, room=ONE_BY_ONE).outputs
        for forward in (into_one, None)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_merge_tells_that_biases_are_outside_its_figures_and_what_their_mean_loses():
    net = toy.build("stack")
    both, one, none = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0]), torch.zeros(2)
    adapters = [
        replace(net.adapter("a"), vectors={"norm.weight": both, "x.bias": one}),
        replace(net.adapter("b"), vectors={"norm.weight": both, "x.bias": none}),
        net.adapter("c"),
    ]
    notes = toy.merge_toy(net, adapters, toy.own_tasks(net, adapters)).report.notes
    (found,) = [note.text for note in notes if note.kind == "vectors"]
    # of a: ((2 - 4/3)^2 + (4 - 4/3)^2) / (4 + 16), of b: (2 - 4/3)^2 / 4, and the rest is not b's
    assert "merged by their mean (distance of the mean: " in found and "a 61%" in found
    notes = toy.merge_toy(net, adapters[2:], toy.own_tasks(net, adapters[2:])).report.notes
    assert [note for note in notes if note.kind == "vectors"] == []


@pytest.mark.parametrize("engine", ["sweep", "iterate"])
def test_an_answer_that_its_precision_cannot_hold_is_an_error_and_never_a_result(engine):
    net = toy.build("stack")
    adapters = [net.adapter("a").scaled(1e12), net.adapter("b")]
    tasks = toy.own_tasks(net, adapters)
    with pytest.raises(SolveError, match=r"layer 'down1'.*more than float16 can hold; save in bfl"):
        toy.merge_toy(net, adapters, tasks, output_dtype=torch.float16, engine=engine)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_outputs_that_overflow_in_the_layer_itself_are_told_from_a_singular_matrix(precision):
    layer = torch.nn.Linear(8, 4).half().requires_grad_(False)
    layer.weight.fill_(6e4)
    net = toy.Toy(torch.nn.Sequential(layer), ("0",), lambda: (torch.rand(30, 8).half(),))
    adapters = [net.adapter()]
    tasks = toy.own_tasks(net, adapters)
    said = "outputs hold NaN or infinite numbers though its inputs"
    with pytest.raises(SolveError, match=said), toy.factorised_in(precision):
        merge(net.network(), adapters, tasks)
    merge(net.network(), adapters, tasks, MergeConfig(target="delta"))
