"""A merge that looks at nothing but the deltas, and runs no model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from ..adapters import Adapter, LowRankDelta, target_layers
from ..config import MergeConfig
from ..errors import AdapterError
from ..progress import Progress
from ..report.records import LayerReport
from .layer import Layer
from .registry import METHODS, rule_options


def merge_deltas(
    adapters: Sequence[Adapter], config: MergeConfig, progress: Progress
) -> tuple[dict[str, LowRankDelta], tuple[LayerReport, ...]]:
    """Return the merged deltas in the precision to save, and each layer's rank.

    Raises:
        AdapterError: Adapters whose changes of a layer have several shapes.
    """
    rule = partial(METHODS[config.method].rule, **rule_options(config))
    given = config.baseline.scale
    scale = 1.0 if given is None else float(given)  # MergeConfig refuses a search
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
        reports.append(LayerReport(path, answer.rank, ()))
    progress(len(paths), len(paths))
    return merged, tuple(reports)
