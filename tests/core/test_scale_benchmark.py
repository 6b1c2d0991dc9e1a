"""The benchmark of scaling counts what merges really do."""

import json
from pathlib import Path

import pytest
import torch
import toy
from torch import distributed, multiprocessing, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import memory, scale, scale_paper, speed_models
from iteris_core import MergeConfig, merge
from iteris_core.diffusion.cost import ALONE, cost_of

pytestmark = pytest.mark.nightly

ATEN = torch.ops.aten
FACTORISATIONS = {
    ATEN.linalg_cholesky_ex: lambda a, *_, **__: scale_paper.cholesky(a[0]),
    ATEN.linalg_solve_triangular: lambda a, b, *_, **__: scale_paper.triangular(a[0], b[1]),
    ATEN.linalg_qr: lambda a, *_, **__: scale_paper.qr(*a),
    ATEN._linalg_svd: lambda a, *_, **__: scale_paper.svd(*a),
}


@pytest.mark.parametrize("shape", [(420, 300), (60, 90)], ids=["randomised", "whole"])
@pytest.mark.parametrize("loras", [2, 4])
def test_the_flop_of_a_solve_are_those_of_the_code(shape, loras):
    layer = scale_paper.Layer("layer", *shape, tokens=500, is_first=True)
    problem = scale_paper.small_layer(layer, loras, 8)
    with FlopCounterMode(display=False, custom_mapping=FACTORISATIONS) as counter:
        scale_paper.solve(problem)
    counts = counter.get_flop_counts()["Global"]
    factorised = sum(counts.get(operation, 0) for operation in FACTORISATIONS)
    found = scale_paper.solve_flop(layer, loras, loras + 1, 8)
    assert found.factorisations == pytest.approx(factorised, rel=0.06)
    assert found.products == pytest.approx(sum(counts.values()) - factorised, rel=0.06)


def test_operations_do_not_depend_on_the_size():
    problem = scale_paper.small_layer(
        scale_paper.Layer("layer", 200, 180, 300, is_first=True), 2, 3
    )
    with scale_paper.Operations() as counted:
        scale_paper.solve(problem)
    assert counted.count == scale_paper.operations(2) < scale_paper.operations(4)


def shared_toy(number, folder):
    """Merge with another process, and write the bytes that were added up."""
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", meeting, rank=number, world_size=2)
    net, adapters, tasks = toy.three_adapters()
    with scale.tallied() as tally:
        merge(net.network(), adapters, tasks, MergeConfig(samples_per_chunk=1))
    if number == 0:
        Path(folder, "added.json").write_text(json.dumps(tally.added))
    distributed.destroy_process_group()


def test_the_bytes_on_paper_are_those_that_processes_add_up(tmp_path):
    multiprocessing.start_processes(shared_toy, (str(tmp_path),), nprocs=2, start_method="fork")
    added = json.loads((tmp_path / "added.json").read_text())
    checks = 2 * 8  # before the merge, a number of each process is added up
    net, adapters, tasks = toy.three_adapters()
    layers = scale_paper.reached(
        net.model, net.targets, lambda: net.network().forward([net.make_row()])
    )
    expected = []
    for layer in layers:
        taught = [adapter.deltas.get(layer.path) for adapter in adapters]
        mixes = [0 if delta is None else delta.rank for delta in taught]
        expected.append(scale_paper.added_bytes(layer, [*mixes, 0]))
    assert [size for size in added if size != checks] == expected
    assert len(tasks) == len(adapters) + 1 and not all(layer.is_first for layer in layers)


class Blocks(nn.Sequential):
    """A transformer that is called as the models of diffusers are."""

    def forward(self, x, return_dict=True):
        return super().forward(x)


def test_a_row_is_counted_on_the_model():
    width, tokens = 32, 10
    with torch.device("meta"):
        blocks = Blocks(*(speed_models.Block(width) for _ in range(2)))
    paths = memory.layers(blocks, "")
    inputs = lambda rows: {"x": torch.empty(rows, tokens, width, device="meta")}  # noqa: E731
    layers, flop = scale_paper.layers_of(memory.Model(blocks, inputs, paths))
    assert [layer.path for layer in layers if layer.is_first] == [
        f"{block}.{name}" for block in range(2) for name in ("q", "o", "up", "down")
    ]
    assert {layer.tokens for layer in layers} == {tokens}
    linear = sum(scale_paper.product(tokens, layer.d_in, layer.d_out) for layer in layers)
    assert flop == linear + 2 * 2 * scale_paper.product(tokens, width, tokens)


def test_rows_are_those_that_the_product_counts():
    plans, check_plans, calibration = memory.plans_of("SDXL", 768, 2)
    cost = cost_of(plans, check_plans, guided=calibration.is_guided, changes_denoiser=True)
    work = scale_paper.work_of("SDXL", 768, 2)
    assert work.drawn(1) == cost.sampling + cost.check
    assert 2 * (work.samples + ALONE) == cost.sweep
    assert work.drawn(1) > work.drawn(2) > work.drawn(64) > 0


def test_whole_calls_are_shared():
    assert [scale_paper.busiest(20, gpus) for gpus in (1, 2, 3, 64)] == [20, 16, 8, 8]
    assert scale_paper.busiest(6, 4) == 6


def test_more_cards_share_the_rows_and_repeat_the_solve():
    layer = scale_paper.Layer("layer", 640, 640, 2304, is_first=True)
    case = scale_paper.Case("", "SDXL", 768, 2, lambda resolution: None)
    case.__dict__["model"] = [layer], 3.6e12
    found = [case.seconds(scale_paper.H100, gpus) for gpus in (1, 2, 8)]
    samples = [scale_paper.busiest(case.work.samples, gpus) for gpus in (1, 2, 8)]
    assert [s.sweep / found[0].sweep for s in found] == pytest.approx(
        [n / samples[0] for n in samples]
    )
    assert found[0].solve == found[2].solve > 0
    assert found[0].adding == 0
    assert found[2].adding / found[1].adding == pytest.approx(7 / 8 / (1 / 2))
    assert scale_paper.spared_bytes(layer, 3) == 3 * 8 * 640 * 639 // 2
