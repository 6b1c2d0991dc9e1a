"""A merge that looks at nothing but the deltas, and runs no model.

Its figures are those of inputs that are alike in all directions that a LoRA reads. With V_k the
right singular vectors of dW_k:

    residual = ||(W - dW_k) V_k|| / ||dW_k||,   interference of LoRA j = ||dW_j V_k|| / ||dW_k||

They say how much the LoRAs act on the same inputs, and nothing of what a model feeds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ..adapters import Adapter, LowRankDelta, target_layers
from ..config import MergeConfig
from ..errors import AdapterError
from ..progress import Progress
from ..report.layers import Interference, LayerReport, TaskAtLayerReport
from .layer import Layer, singular_triplets
from .registry import METHODS, rule_options


def merge_deltas(
    adapters: Sequence[Adapter], config: MergeConfig, progress: Progress
) -> tuple[dict[str, LowRankDelta], tuple[LayerReport, ...]]:
    """Return the merged deltas in the precision to save, and what the deltas tell of each layer.

    Raises:
        AdapterError: Adapters whose changes of a layer have several shapes.
    """
    rule = partial(METHODS[config.method].rule, **rule_options(config))
    given = config.baseline.scale
    scale = 1.0 if given is None else float(given)  # MergeConfig refuses a search
    names = [adapter.name for adapter in adapters]
    paths = target_layers(adapters)
    merged = {}
    reports = []
    for number, path in enumerate(paths):
        progress(number, len(paths))
        deltas = {
            k: adapter.deltas[path].to(dtype=torch.float32)
            for k, adapter in enumerate(adapters)
            if path in adapter.deltas
        }
        shapes = {delta.shape for delta in deltas.values()}
        if len(shapes) > 1:
            raise AdapterError(
                f"the LoRAs change {path!r} in {len(shapes)} shapes, {sorted(shapes)}: they were "
                "made for different models. Leave one of them out"
            )
        answer = rule(Layer(deltas, (), path, False, len(adapters)))
        assert isinstance(answer, LowRankDelta)  # by DATA_FREE
        answer = answer.scaled(scale)
        merged[path] = answer.balanced().to(dtype=config.output_dtype)
        tasks = [_figures(k, deltas, answer, names) for k in deltas]
        reports.append(LayerReport(path, answer.rank, tuple(tasks)))
    progress(len(paths), len(paths))
    return merged, tuple(reports)


def _figures(
    k: int, deltas: Mapping[int, LowRankDelta], merged: LowRankDelta, names: Sequence[str]
) -> TaskAtLayerReport:
    size = deltas[k].squared_norm().sqrt().item()
    reads = singular_triplets(deltas[k]).left

    def on_inputs(delta: LowRankDelta) -> Tensor:
        return delta.up @ (delta.down @ reads)

    error = on_inputs(merged) - on_inputs(deltas[k])
    interference = []
    for j, other in deltas.items():
        added = on_inputs(other)
        energy = added.square().sum().item()
        if j != k and size and energy:
            stacked = energy**0.5 / size
            left = (error * added).sum().item() / energy
            interference.append(Interference(names[j], stacked, stacked * left))
    residual = error.norm().item() / size if size else 0.0
    return TaskAtLayerReport(
        names[k], residual, 1.0, 0, interference=tuple(interference), energy=size**2
    )
