"""What would make a merge silently wrong is mended, refused, or said."""

import pytest
import torch
import toy
from torch import nn
from torch.nn import functional

from iteris_core import (
    Adapter,
    CalibrationError,
    LowRankDelta,
    MergeConfig,
    Network,
    Sample,
    Task,
    merge,
)
from iteris_core.memory import Room
from iteris_core.progress import nobody

WIDTH = 12


def one_layer(inputs, downs, weights=None, **settings):
    """Merge LoRAs of one layer, each on its own inputs; return the delta, the report, and theirs."""
    chance = torch.Generator().manual_seed(1)
    layer = nn.Linear(WIDTH, WIDTH).requires_grad_(False).to(inputs[0].dtype)
    adapters = [
        Adapter(f"lora{k}", {"0": LowRankDelta(torch.randn(WIDTH, len(d), generator=chance), d)})
        for k, d in enumerate(downs)
    ]
    weights = weights or [{}] * len(inputs)
    tasks = [
        Task(f"task{k}", [Sample(row, token_weights=weights[k]) for row in rows], {k: 1.0})
        for k, rows in enumerate(inputs)
    ]
    network = Network({"0": layer}, lambda rows: layer(torch.stack(list(rows))))
    result = merge(network, adapters, tasks, MergeConfig(**settings))
    found = result.adapter.deltas["0"].dense()
    return found, result.report, [adapter.deltas["0"].dense() for adapter in adapters]


def done(found, delta, x):
    taught = x @ delta.T
    return ((x @ found.T * taught).sum() / taught.square().sum()).item()


def notes(report):
    return " ".join(note.text for note in report.notes)


@pytest.mark.parametrize("weighted", [8, 200])
def test_a_task_of_few_weighted_tokens_is_read_where_they_are(weighted):
    inputs = [torch.randn(4, 2000, WIDTH), torch.randn(4, 2000, WIDTH)]
    mask = torch.zeros(2000)
    # the places that are picked where all tokens count
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(2000))
    mask[order[-weighted:]] = 1
    downs = [torch.randn(2, WIDTH), torch.randn(2, WIDTH)]
    found, report, deltas = one_layer(inputs, downs, [{"tokens": mask}, {}])
    counted = {entry.task: entry.tokens for entry in report.layers[0].tasks}
    assert counted == {"task0": 4 * min(weighted, 16 * WIDTH // 4), "task1": 4 * (16 * WIDTH // 4)}
    x = inputs[0][:, mask.bool()].flatten(0, 1)
    assert done(found, deltas[0], x) > 0.9
    assert "no say" not in notes(report)


def test_a_task_without_a_say_is_said():
    inputs = [torch.randn(2, 9, WIDTH) for _ in range(2)]
    downs = [torch.randn(2, WIDTH), torch.randn(2, WIDTH)]
    _, report, _ = one_layer(inputs, downs, [{"tokens": torch.zeros(9)}, {}])
    assert "regions count: task0 at 1 of 1 layers" in notes(report)
    _, report, _ = one_layer(inputs, downs)
    assert not report.notes


@pytest.mark.parametrize("noise", [1e-4, 0.0])
def test_a_lora_that_is_blind_to_its_inputs_silences_no_other(noise):
    """lambda grew to 3e12 there, and the other LoRA's gain fell to 0."""
    chance = torch.Generator().manual_seed(0)
    constant = torch.randn(WIDTH, generator=chance)
    constant /= constant.norm()
    inputs = [
        WIDTH**0.5 * constant + noise * torch.randn(1, 200, WIDTH, generator=chance)
        for _ in range(2)
    ]
    downs = [torch.randn(4, WIDTH, generator=chance) for _ in range(2)]
    downs[0] -= (downs[0] @ constant)[:, None] * constant
    found, report, deltas = one_layer(inputs, downs)
    blind, other = report.layers[0].tasks
    assert blind.weight <= 50 * other.weight
    assert done(found, deltas[1], inputs[1].flatten(0, 1)) > 0.08
    assert "almost nothing on their own prompts" in notes(report)
    assert notes(report).endswith("count for less: task0 at 1 of 1 layers"), "and no layer's name"


class _Biased(nn.Module):
    """Inputs that are small beside the bias of the layer that reads them."""

    def __init__(self, size=1e-4):
        super().__init__()
        self.size = size
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)
        with torch.no_grad():
            self.second.bias.fill_(0.09)

    def forward(self, x):
        return self.second(self.size * self.first(x))


def _drifting(model, dtype):
    model = model.to(dtype).requires_grad_(False)
    torch.manual_seed(0)
    net = toy.Toy(
        model, ("first", "second"), lambda: (torch.randn(20, WIDTH).bfloat16().to(dtype),)
    )
    adapters = [net.adapter("a"), net.adapter("b")]
    return merge(net.network(), adapters, toy.own_tasks(net, adapters), MergeConfig())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_drift_in_half_precision_is_not_that_of_rounding(dtype):
    torch.manual_seed(0)
    model = _Biased().bfloat16()  # the same weights in all precisions
    exact = _drifting(model, torch.float32)
    half = _drifting(model, dtype)
    residuals = [
        {e.task: e.residual for e in result.report.layers[1].tasks} for result in (exact, half)
    ]
    for task, residual in residuals[0].items():
        assert residuals[1][task] == pytest.approx(residual, rel=0.1), residuals
    assert not half.report.notes


class _Squashed(nn.Linear):
    def forward(self, x):
        return super().forward(x).tanh()


def test_a_drift_that_must_be_taken_from_rounded_outputs_is_said():
    torch.manual_seed(0)
    model = _Biased(1.0)
    model.second = _Squashed(WIDTH, WIDTH)
    report = _drifting(model, torch.bfloat16).report
    assert "1 of 2 layers have no weight that can be read, such as 'second'" in notes(report)
    assert not _drifting(model, torch.float32).report.notes


class _Three(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.third = nn.Linear(WIDTH, WIDTH)
        self.kept = None
        self.buffer = torch.zeros(4, 5, WIDTH)

    def forward(self, x):
        return self.third(self.second(self.first(x).tanh()).tanh())


class _KeepsASkip(_Three):
    def forward(self, x):
        self.kept = x
        y = self.second(self.first(x).tanh())
        return self.third(y.tanh() + self.kept)


class _ReadsABuffer(_Three):
    def forward(self, x):
        y = self.first(x).tanh()
        if len(y) == len(self.buffer):
            y = self.buffer.copy_(y)
        return self.third(self.second(y).tanh())


class _Drops(_Three):
    def forward(self, x):
        return self.third(functional.dropout(self.second(self.first(x)), 0.5))


class _Normalises(_Three):
    def forward(self, x):
        y = self.first(x)
        return self.third(self.second((y - y.mean(0)) / (y.std(0) + 0.1)))


class _FailsAlone(_Three):
    def forward(self, x):
        y = self.first(x)
        return self.third(self.second(y if len(y) > 2 else y * torch.nan))


def _merged(model, progress=nobody, tokens=5, **settings):
    torch.manual_seed(3)
    model = model.requires_grad_(False).eval()
    net = toy.Toy(model, ("first", "second", "third"), lambda: (torch.randn(tokens, WIDTH),))
    adapters = [net.adapter("a"), net.adapter("b")]
    config = MergeConfig(**settings)
    tasks = toy.own_tasks(net, adapters, 4)
    return merge(net.network(), adapters, tasks, config, room=Room(2), progress=progress)


FIRST = {
    _KeepsASkip: "third",
    _ReadsABuffer: "second",
    _Drops: "third",
    _Normalises: "second",
    _FailsAlone: "second",
}


@pytest.mark.parametrize("model", FIRST)
def test_a_model_that_answers_a_sample_otherwise_alone_is_refused_at_the_layer(model):
    said = f"runs alone: layer '{FIRST[model]}' is the first that differs"
    if model is _ReadsABuffer:
        said = f"the input of layer '{FIRST[model]}' is overwritten"
    solved = []
    with pytest.raises(CalibrationError, match=said):
        _merged(model(), lambda *step: solved.append(step))
    assert len(solved) == ("first", "second", "third").index(FIRST[model]) + 1


class _LeavesALayerOut(_Three):
    calls = 0

    def forward(self, x):
        self.calls = call = self.calls + 1
        y = self.second(x)
        return self.first(y if call == 5 else y + self.third(x))


def test_a_chunk_that_leaves_out_a_layer_where_none_waits_is_refused_at_the_next():
    solved = []
    with pytest.raises(CalibrationError, match="chunk 3 did not reach 'third', which others did"):
        _merged(_LeavesALayerOut(), lambda *step: solved.append(step), tokens=24)
    assert len(solved) == 2


def test_what_is_kept_between_layers_may_be_iterated():
    _merged(_KeepsASkip(), engine="iterate", max_iter=2)


def test_a_hook_of_another_that_scales_an_output_scales_what_a_lora_adds():
    """A LoRA in the weights would be scaled, too."""

    class Scaled(_Three):
        def forward(self, x):
            return self.third(self.second((0.5 * self.first(x)).tanh()).tanh())

    torch.manual_seed(0)
    hooked, plain = _Three(), Scaled()
    plain.load_state_dict(hooked.state_dict())
    hooked.first.register_forward_hook(lambda module, args, y: 0.5 * y)
    found, expected = (toy.dense(_merged(model).adapter) for model in (hooked, plain))
    assert toy.largest_error(found, expected) < 1e-5
