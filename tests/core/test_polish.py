"""The polish lowers the error at the output, and leaves nothing on the model."""

import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import toy
from fake_host import FakeHost
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_map

from iteris_core import (
    Adapter,
    CalibrationError,
    LowRankDelta,
    MergeConfig,
    Network,
    SolveError,
    merge,
)
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.descent import LOOK, Lowest, descend
from iteris_core.diffusion.gradients import frozen, kept_as_copies, recomputed
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.merging import merge_diffusion
from iteris_core.diffusion.polish import PER_LESSON, _Layer, _Teaching, _worn, polish
from iteris_core.diffusion.regions import Region
from iteris_core.diffusion.targets import lessons_of, parted, squared_errors
from iteris_core.diffusion.whitening import Whitening, whitenings
from iteris_core.memory import Room
from iteris_core.network import IMAGE_STREAM
from iteris_core.rows.wearing import answers_of, wearing
from iteris_core.tasks import Sample, Task

WIDTH = 6


class Block(nn.Module):
    """Like those of transformers: it writes into its own input, and keeps it for a norm."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.outer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, scale):
        y = self.outer(torch.tanh(self.inner(functional.layer_norm(x, (WIDTH,)))))
        x += scale * y
        x[..., :2] *= 0.9
        return x


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x):
        x = x.clone()
        for block in self.blocks:
            x = block(x, scale=0.7)
        return x


PATHS = tuple(f"blocks.{i}.{name}" for i in range(2) for name in ("inner", "outer"))


def toy_of(model):
    """Rows are pictures of one channel, whose columns are what the layers read."""
    return toy.Toy(model, PATHS, lambda: (torch.randn(1, 5, WIDTH),))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return toy_of(Model().requires_grad_(False))


def case_of(net):
    """Return two LoRAs, their tasks, and a start that does little of them, all in float32."""
    made = [net.adapter("a"), net.adapter("b"), net.adapter("merged", 4).scaled(0.1)]
    deltas = [{p: d.to(dtype=torch.float32) for p, d in one.deltas.items()} for one in made]
    *adapters, start = (Adapter(one.name, of) for one, of in zip(made, deltas, strict=True))
    return adapters, toy.own_tasks(net, adapters, samples=12), start


def error(net, adapters, tasks, merged):
    errors = []
    for found in toy.output_errors(net.network(), adapters, tasks, merged):
        missing, effect = found.unbind(1)
        errors.append((missing / effect).sqrt().mean().item())
    return sum(errors) / len(errors)


def test_the_error_at_the_output_falls_and_equal_runs_are_equal(net):
    model = net.model
    adapters, tasks, start = case_of(net)
    before = error(net, adapters, tasks, start)
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    polished = [
        polish(net.network(), adapters, tasks, start, 40, rows_per_call=size).adapter
        for size in (16, 16, 6)
    ]
    after = error(net, adapters, tasks, polished[0])
    assert after < 0.85 * before
    for path in PATHS:
        assert polished[0].deltas[path].rank == 4
        assert torch.equal(polished[0].deltas[path].up, polished[1].deltas[path].up)
        torch.testing.assert_close(
            polished[0].deltas[path].dense(), polished[2].deltas[path].dense(), rtol=1e-3, atol=1e-4
        )
    assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_rate_ten_times_too_large_ends_at_the_closed_form(net, monkeypatch):
    """This small model still learns at a rate of 0.5. Without the guard, 5 leaves an error of unseen
    samples that is many times as large.
    """
    monkeypatch.setattr("iteris_core.diffusion.descent._RATE", 5.0)
    adapters, tasks, _ = case_of(net)
    closed = merge(net.network(), adapters, tasks, MergeConfig(output_dtype=torch.float32)).adapter
    unseen = toy.own_tasks(net, adapters, samples=40)
    before = error(net, adapters, unseen, closed)
    found = polish(net.network(), adapters, tasks, closed, 60)
    assert error(net, adapters, unseen, found.adapter) < 1.01 * before
    falling = iter(range(0, -10, -1))  # which the guard takes for an error that always falls
    monkeypatch.setattr(
        "iteris_core.diffusion.polish._Teaching.level", lambda self: float(next(falling))
    )
    unguarded = polish(net.network(), adapters, tasks, closed, 60).adapter
    assert error(net, adapters, unseen, unguarded) > 2 * before


def test_no_step_is_kept_that_does_not_lower_the_error_of_samples_kept_out(net, monkeypatch):
    monkeypatch.setattr("iteris_core.diffusion.descent._RATE", 0.5)
    adapters, tasks, start = case_of(net)
    monkeypatch.setattr("iteris_core.diffusion.polish._Teaching.level", lambda self: 1.0)
    found = polish(net.network(), adapters, tasks, start, 20)
    assert found.lowest == Lowest(1.0, 0)
    assert found.adapter is start


def test_a_descent_ends_where_the_error_falls_no_more():
    """Steps that follow a return to the best factors are given their time."""
    factor = torch.ones(1, requires_grad=True)
    steps = []

    def take_gradients():
        factor.grad = torch.ones(1)

    levels = iter([2.0, 0.9, 0.9, 0.95, 0.5])
    found = descend(
        [factor], 100, take_gradients, lambda: next(levels), lambda *at: steps.append(at)
    )
    assert found == Lowest(0.9, 2 * LOOK)
    assert steps[-2:] == [(4 * LOOK - 1, 100), (100, 100)]
    returned = iter([2.0, 2.0, 2.0, 2.0, 0.9, 0.5, 0.4])
    assert descend([factor], 7 * LOOK, take_gradients, lambda: next(returned)).step == 7 * LOOK


@pytest.mark.parametrize(
    ("levels", "lowest", "moved"),
    [
        # each step moves a factor of one number by 0.03 of its size, times what is in `moved`
        ([0.9, 0.8, 0.7], Lowest(0.7, 3 * LOOK), 3),
        ([0.9, 1.0, 1.0], Lowest(0.9, LOOK), 1),
        ([0.9, 1.1, 0.8], Lowest(0.8, 3 * LOOK), 1.3),
        ([math.nan, 2.0, 0.9], Lowest(0.9, 3 * LOOK), 0.09),
        ([math.inf, 1.2, 1.3], Lowest(), 0),
    ],
)
def test_a_descent_ends_where_the_error_was_lowest(monkeypatch, levels, lowest, moved):
    monkeypatch.setattr("iteris_core.diffusion.descent._WARMUP", 1)
    monkeypatch.setattr("iteris_core.diffusion.descent._cosine", lambda step, steps: 1.0)
    factor = torch.ones(1, requires_grad=True)

    def take_gradients():
        factor.grad = torch.ones(1)

    left = iter(levels)
    assert descend([factor], 3 * LOOK, take_gradients, lambda: next(left)) == lowest
    assert factor.item() == pytest.approx(1 - 0.03 * LOOK * moved, abs=1e-4)
    assert next(left, None) is None


def test_twelve_rows_of_a_lesson_are_kept_out_and_at_most_half():
    taught, kept_out = parted(range(49))
    assert list(kept_out) == [*range(3, 48, 4)]
    assert sorted([*taught, *kept_out]) == list(range(49))
    assert [list(part) for part in parted(range(3))] == [[0, 1], [2]]
    assert [list(part) for part in parted(range(1))] == [[0], [0]]
    assert [list(part) for part in parted(range(4))] == [[0, 2], [1, 3]]


def test_batches_take_each_task_by_its_weight_and_read_all_samples_alike(net):
    adapters, tasks, _ = case_of(net)
    network = net.network()
    tasks[1] = replace(tasks[1], weight=3.0)
    lessons = lessons_of(network, adapters, tasks, 8)
    teaching = _Teaching(network, {}, [t for of in lessons for t in of.taught], lessons, (), 8)
    steps, own = 54, len(lessons[0].taught)
    batches = [teaching.batch() for _ in range(steps)]
    counts = Counter(id(target) for batch in batches for target in batch)
    assert {len(batch) for batch in batches} == {2 * PER_LESSON}
    for lesson, weight in zip(lessons, (1, 3), strict=True):
        expected = weight / 4 * steps * 2 * PER_LESSON / own
        for target in lesson.taught:
            assert counts[id(target)] == pytest.approx(expected, abs=2)


def test_loras_of_a_scene_teach_one_row_each_in_its_part(net):
    """Its error is the sum of theirs, but for what no student changes."""
    adapters, _, start = case_of(net)
    network = net.network()
    left = torch.zeros(5, WIDTH)
    left[:, :2], left[:, 2] = 1, 0.25
    students = [(torch.randn(1, 5, WIDTH),) for _ in range(4)]
    tasks = [
        Task(
            f"{k}",
            [
                Sample((torch.randn(1, 5, WIDTH),), student, {IMAGE_STREAM: Region(mask)})
                for student in students
            ],
            {k: 1.0},
            weight,
        )
        for k, mask, weight in ((0, left, 1.0), (1, 1 - left, 3.0))
    ]
    (lesson,) = lessons_of(network, adapters, tasks, 8)
    assert [target.reads for target in lesson.kept_out] == [students[1], students[3]]
    assert {target.share for target in lesson.taught} == {3 / 2}

    def answers(reads, worn, mix):
        return answers_of(network, worn, [mix] * len(reads), reads)

    expected = torch.zeros(2, 2)  # of each student of two, for those kept out
    for task in tasks:
        mask = task.samples[0].token_weights[IMAGE_STREAM].mask
        teachers = [sample.teacher for sample in task.samples]
        taught, base = answers(teachers, adapters, task.mix), answers(teachers, adapters, {})
        effect = (mask * (taught - base))[[1, 3]].square().flatten(1).sum(1).mean()
        for number, worn in enumerate(({}, {0: 1.0})):
            found = answers(students, [start], worn)
            errors = (mask * (found - taught))[[1, 3]].square().flatten(1).sum(1)
            expected[number] += errors * task.weight / 3 / effect
    plain = squared_errors(network, lesson.kept_out)
    with wearing(network.modules, [start], [{0: 1.0}] * 2):
        worn = squared_errors(network, lesson.kept_out)
    torch.testing.assert_close(worn - plain, expected[1] - expected[0], rtol=1e-3, atol=1e-4)


def test_a_task_that_would_begin_above_its_effect_counts_as_one(net):
    """A LoRA that does little in a scene's region would drown the others."""
    (strong, weak), _, _ = case_of(net)
    adapters = [strong, weak.scaled(0.05)]
    network = net.network()
    lessons = lessons_of(network, adapters, toy.own_tasks(net, adapters, samples=12), 8)
    reads = [target.reads for target in lessons[0].taught]
    roots = whitenings(network, strong, [reads])
    layers = {path: _Layer.of(strong.deltas[path], root) for path, root in roots.items()}
    with torch.no_grad(), _worn(network.modules, layers):
        teaching = _Teaching.of(network, layers, lessons, 8)
    first, second = teaching.first
    assert first < 1e-6 and second > 10
    before = [lesson.taught[0].weights[0, 0] for lesson in lessons]
    after = {target.weights[0, 0].item() for target in teaching.taught}
    assert after == {before[0].item(), (before[1] / second).item()}


def test_calls_with_gradients_are_as_large_as_one_row_lets_them_be(net, monkeypatch):
    adapters, tasks, start = case_of(net)
    network = net.network()
    sizes = []

    def forward(rows):
        if torch.is_grad_enabled():
            sizes.append(len(rows))
        return net.network().forward(rows)

    def fit(run, device, most, evictable):
        assert (device.type, most, evictable()) == ("cpu", 8, 0)
        run()
        return 3

    monkeypatch.setattr("iteris_core.diffusion.polish.calls_that_fit", fit)
    polished = polish(replace(network, forward=forward), adapters, tasks, start, 2).adapter
    assert sizes == [1, *[3, 1] * 2]
    monkeypatch.undo()
    whole = polish(net.network(), adapters, tasks, start, 2).adapter
    for path in PATHS:  # what the trial left is in no step
        torch.testing.assert_close(
            polished.deltas[path].dense(), whole.deltas[path].dense(), rtol=1e-3, atol=1e-5
        )


def test_where_memory_runs_out_it_goes_on_from_the_step_with_smaller_calls(net):
    adapters, tasks, start = case_of(net)
    whole = polish(net.network(), adapters, tasks, start, 6).adapter
    drawn, steps = [], []

    def forward(rows):
        if torch.is_grad_enabled():
            drawn.append(len(rows))
            if len(drawn) == 8:  # the second call of the fourth step
                raise torch.OutOfMemoryError("full")
        return net.network().forward(rows)

    def listen(done, total):
        steps.append(done)

    full = replace(net.network(), forward=forward)
    polished = polish(full, adapters, tasks, start, 6, 2, listen).adapter
    assert list(dict.fromkeys(steps)) == list(range(7))
    assert drawn == [*[2] * 8, *[1, 1, 1, 1] * 3]
    for path in PATHS:  # what the failed call's batch had left is in no step
        torch.testing.assert_close(
            polished.deltas[path].dense(), whole.deltas[path].dense(), rtol=1e-3, atol=1e-5
        )


def test_the_longest_row_says_how_many_fit(net, monkeypatch):
    adapters, tasks, start = case_of(net)
    longer = Sample((torch.randn(1, 7, WIDTH),))
    tasks[1] = replace(tasks[1], samples=[tasks[1].samples[0], longer])
    seen = []

    def forward(rows):
        seen.append(rows[0][0].shape[1])
        return net.network().forward(rows)

    def fit(run, *_):
        seen.clear()
        run()
        assert set(seen) == {7}
        return 8

    monkeypatch.setattr("iteris_core.diffusion.polish.calls_that_fit", fit)
    network = replace(net.network(), forward=forward, call_key=lambda row: row[0].shape)
    polish(network, adapters, tasks, start, 1)
    assert len(set(seen)) == 2


def test_weights_and_rows_made_in_inference_mode_are_polished_in_it():
    with torch.inference_mode():
        net = toy_of(Model())
        adapters, tasks, start = case_of(net)
        weights = [*net.model.parameters()]
        assert all(weight.is_inference() for weight in weights)
        polished = polish(net.network(), adapters, tasks, start, 20).adapter
        assert error(net, adapters, tasks, polished) < error(net, adapters, tasks, start)
        assert all(a is b for a, b in zip(net.model.parameters(), weights, strict=True))


def test_blocks_that_run_again_have_the_gradient_of_the_formula(net):
    """In float64 against central differences, though the blocks overwrite what they read."""
    model = net.model.double()
    x = torch.randn(2, 1, 5, WIDTH, dtype=torch.float64)
    shift = torch.zeros(WIDTH, dtype=torch.float64, requires_grad=True)
    handle = model.blocks[1].inner.register_forward_hook(lambda m, a, y: y + shift)
    with torch.no_grad():
        steps = 1e-5 * torch.eye(WIDTH, dtype=torch.float64)
        expected = []
        for step in steps:
            sides = []
            for sign in (1, -1):
                shift += sign * step
                sides.append(model(x).square().sum())
                shift -= sign * step
            expected.append((sides[0] - sides[1]) / 2e-5)
    with frozen(dict(model.named_modules())) as weights, recomputed([*model.blocks], weights):
        model(x).square().sum().backward()
    handle.remove()
    torch.testing.assert_close(shift.grad, torch.stack(expected), rtol=1e-6, atol=1e-7)


@dataclass(frozen=True)
class Modulation:
    scale: torch.Tensor


class Modulated(nn.Module):
    """Like Flux.2: one layer's output reaches all blocks, in an object of the model's own."""

    def __init__(self):
        super().__init__()
        self.vector = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(ModulatedBlock() for _ in range(2))

    def forward(self, x):
        modulation = Modulation(torch.tanh(self.vector(x[:, :1])))
        for block in self.blocks:
            x = block(x, [modulation])
        return x


class ModulatedBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, modulations):
        return x + modulations[0].scale * torch.tanh(self.layer(x))


def test_what_blocks_share_in_objects_of_their_own_has_its_gradient_too():
    torch.manual_seed(0)
    model = Modulated().requires_grad_(False)
    x = torch.randn(3, 5, WIDTH)
    shift = torch.zeros(WIDTH, requires_grad=True)
    model.vector.register_forward_hook(lambda m, a, y: y + shift)
    model(x).square().sum().backward()
    expected = shift.grad
    shift.grad = None
    with recomputed(list(model.blocks), frozenset()):
        model(x).square().sum().backward()
    torch.testing.assert_close(shift.grad, expected)


class Brought(nn.Module):
    """A layer whose host brings its weight to the device for each call, into one place for all, as
    ComfyUI 0.33 does on a GPU where not all have room.
    """

    def __init__(self, place):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH), requires_grad=False)
        self.place = place

    def forward(self, x):
        # no view of another tensor, so that each has a version of its own
        here = torch.from_numpy(self.place).view(WIDTH, WIDTH)
        here.copy_(self.weight)
        return functional.linear(x, here)


def test_weights_that_are_brought_into_one_place_have_their_gradients():
    torch.manual_seed(0)
    place = np.zeros(WIDTH * WIDTH, np.float32)
    model = nn.Sequential(Brought(place), nn.Tanh(), Brought(place))
    x = torch.randn(3, WIDTH, requires_grad=True)
    first, second = (layer.weight for layer in (model[0], model[2]))
    (torch.tanh(x @ first.T) @ second.T).square().sum().backward()
    expected, x.grad = x.grad, None
    with frozen(dict(model.named_modules())) as weights, kept_as_copies(weights):
        model(x).square().sum().backward()
    torch.testing.assert_close(x.grad, expected)


class Kept(nn.Module):
    """A layer whose host keeps a copy of its weight beside it, and a note on it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH), requires_grad=False)
        self.weight.noted = "by the host"
        self._on_device = self.weight.clone()

    def forward(self, x):
        assert self.weight.noted == "by the host"
        return functional.linear(x, self._on_device)


def test_copies_that_a_host_made_in_inference_mode_are_used_too():
    with torch.inference_mode():
        layer = Kept()
        before = layer._on_device
        assert before.is_inference()
    x = torch.randn(3, WIDTH, requires_grad=True)
    with frozen({"layer": layer}) as weights, kept_as_copies(weights):
        layer(x).sum().backward()
    torch.testing.assert_close(x.grad, before.sum(0).expand(3, -1).clone())
    assert layer._on_device is before


class Codes(torch.Tensor):
    """A quantised tensor without memory of its own, like ComfyUI's."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes, scale):
        self.codes = codes
        self.scale = scale

    def __tensor_flatten__(self):
        return ["codes"], self.scale

    @classmethod
    def __tensor_unflatten__(cls, parts, scale, size, stride):
        return cls(parts["codes"], scale)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        return func(*tree_map(lambda x: x.read() if isinstance(x, cls) else x, args))

    def read(self):
        return self.codes.float() * self.scale


def test_quantised_weights_made_in_inference_mode_have_gradients():
    with torch.inference_mode():
        codes = torch.randint(-9, 9, (WIDTH, WIDTH), dtype=torch.int8)
        layer = nn.Linear(WIDTH, WIDTH, bias=False)
        layer.weight = nn.Parameter(Codes(codes, 0.5), requires_grad=False)
        before = layer.weight
        assert isinstance(before, Codes) and before.is_inference()
    x = torch.randn(3, WIDTH, requires_grad=True)
    with frozen({"layer": layer}) as weights, kept_as_copies(weights):
        assert isinstance(layer.weight, Codes) and not layer.weight.is_inference()
        assert layer.weight.codes.data_ptr() == codes.data_ptr()
        layer(x).sum().backward()
    torch.testing.assert_close(x.grad, (codes.float() * 0.5).sum(0).expand(3, -1).clone())
    assert layer.weight is before


@pytest.mark.parametrize("size", [2.0**24, 2.0**-9])
def test_gradients_in_half_precision_neither_vanish_nor_overflow(net, size):
    """Those of an output that is large, or small, and whose layers give theirs in float16."""
    adapters, tasks, start = case_of(net)

    def polished(round_gradient):
        def forward(rows):
            answer = size * net.network().forward(rows)
            if round_gradient and answer.requires_grad:
                answer.register_hook(lambda gradient: gradient.half().to(gradient.dtype))
            return answer

        return polish(replace(net.network(), forward=forward), adapters, tasks, start, 3).adapter

    expected, found = polished(False), polished(True)
    for path in PATHS:
        assert not torch.equal(found.deltas[path].dense(), start.deltas[path].dense())
        torch.testing.assert_close(
            found.deltas[path].dense(), expected.deltas[path].dense(), rtol=0.02, atol=1e-3
        )


def test_a_layer_that_reads_few_inputs_is_polished_where_products_are_rounded():
    """As a time embedding is, with another node's autocast."""
    torch.manual_seed(0)
    width = 320  # many more than inputs
    layer = nn.Linear(width, width).requires_grad_(False)
    network = Network({"layer": layer}, lambda rows: layer(torch.stack(rows))[:, None].float())
    first, second, start = (
        Adapter(name, {"layer": LowRankDelta(torch.randn(width, 2), torch.randn(2, width))})
        for name in ("a", "b", "merged")
    )
    reads = torch.randn(3, 4, width)
    tasks = [Task(f"{k}", [Sample(read) for read in reads], {k: 1.0}) for k in (0, 1)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        merged = polish(network, [first, second], tasks, start, 2).adapter
    assert torch.isfinite(merged.deltas["layer"].dense()).all()


def test_layers_that_no_gradient_reaches_are_named(net):
    """As behind SageAttention, past which the residual goes on."""
    adapters, tasks, start = case_of(net)
    for block in net.model.blocks:
        block.outer.register_forward_hook(lambda module, read, y: y.detach())
    said = r"4 of 4 layers, such as blocks.0.inner, get no gradient.*SageAttention"
    net.model.register_forward_hook(lambda module, read, y: y + torch.zeros((), requires_grad=True))
    with pytest.raises(CalibrationError, match=said):
        polish(net.network(), adapters, tasks, start, 2)


@pytest.mark.parametrize(
    ("error", "calls", "said"),
    [
        (torch.OutOfMemoryError("full"), 2, "memory ran out"),  # with three rows, and with one
        (CalibrationError("the output has no gradient"), 1, "the output has no gradient"),
        (SolveError("a matrix is singular"), 1, "a matrix is singular"),
        (RuntimeError("derivative not implemented"), 1, "derivative not implemented"),
    ],
)
def test_a_merge_stays_where_it_cannot_be_polished(monkeypatch, error, calls, said):
    host = FakeHost()
    loras = [host.lora("a"), host.lora("b")]
    calibration = Calibration(trajectories=3, sampling_steps=2, resolution=64)
    settings = MergeSettings(MergeConfig(output_dtype=torch.float32))
    expected = merge_diffusion(Job.of(host, loras, calibration, settings, Room(3)))
    full = Mock(side_effect=error)
    monkeypatch.setattr("iteris_core.diffusion.merging.polish", full)
    job = Job.of(host, loras, replace(calibration, polish=3), settings, Room(3))
    result = merge_diffusion(job)
    assert full.call_count == calls
    for path, delta in expected.adapter.deltas.items():
        assert torch.equal(result.adapter.deltas[path].dense(), delta.dense())
    assert any(f"was not polished: {said}" in line for line in result.report.warnings)
    assert not any("polished by" in note.text for note in result.report.notes)


def test_a_whitening_is_the_root_of_the_gram_matrix():
    """Exact where all directions are probed; `back` undoes `into` for any number of them."""
    tokens = torch.randn(50, WIDTH) * torch.logspace(0, -2, WIDTH)
    gram = tokens.T @ tokens
    probes = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q
    down = torch.randn(3, WIDTH)
    root = Whitening.of(probes, gram @ probes, float(gram.trace()))
    damped = gram.double() * WIDTH / gram.double().trace() + 0.01 * torch.eye(WIDTH)
    whitened = root.into(down).double()
    torch.testing.assert_close(
        whitened @ whitened.T, down.double() @ damped @ down.double().T, rtol=1e-3, atol=1e-3
    )
    few = Whitening.of(probes[:, :2], gram @ probes[:, :2], float(gram.trace()))
    torch.testing.assert_close(few.back(few.into(down)), down, rtol=1e-4, atol=1e-4)


class Fast(torch.autograd.Function):
    """An operation of a host that only draws, as torch tells of one at its backward pass."""

    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, _gradient):
        raise RuntimeError("Trying to backward through x but no autograd formula was registered")


@pytest.mark.parametrize(
    ("answer", "said"),
    [(torch.Tensor.detach, "no gradient"), (Fast.apply, r"a layer .* no gradient")],
)
def test_a_model_or_an_operation_without_a_gradient_is_told(net, answer, said):
    adapters, tasks, start = case_of(net)
    network = net.network(lambda rows: answer(toy.run(net.model, rows)))
    with pytest.raises(CalibrationError, match=f"{said}.*Switch the polish off"):
        polish(network, adapters, tasks, start, 2)


def test_a_merge_is_polished_and_says_so():
    host = FakeHost()
    loras = [host.lora(name, prompts=(f"<{name}> cat",)) for name in "ab"]
    calibration = Calibration(trajectories=8, sampling_steps=4, resolution=64, cfg=3.0)
    settings = MergeSettings(MergeConfig(output_dtype=torch.float32))
    plain = Job.of(host, loras, calibration, settings, Room(3))
    job = Job.of(host, loras, replace(calibration, polish=3), settings, Room(3))
    assert [stage.name for stage in job.stages][-1] == "Polish"
    told = []
    result = merge_diffusion(job, lambda stage, done, total: told.append((stage.name, done, total)))
    assert ("Polish", 3, 3) in told
    notes = [note.text for note in result.report.notes]
    assert any(
        re.match(r"polished: after 3 of 3 steps, .* is \d+ % of what it was", n) for n in notes
    )
    again = merge_diffusion(job).adapter
    before = merge_diffusion(plain).adapter
    for path, delta in result.adapter.deltas.items():
        same = torch.equal(delta.dense(), before.deltas[path].dense())
        assert same is host.is_text_module(path), path
        assert torch.equal(delta.dense(), again.deltas[path].dense())
        assert delta.rank == before.deltas[path].rank
    assert host.hooks() == 0
