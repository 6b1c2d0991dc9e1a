"""The solver against tensors made by the authors' own code (see data/golden/README.md)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration

from iteris_core import Adapter, LowRankDelta, MergeConfig, Network, Sample, Task, merge

GOLDEN = Path(__file__).parent.parent / "data" / "golden"


def read_peft(folder: Path) -> Adapter:
    settings = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    suffix = ".lora_A.weight"
    deltas = {}
    for key, down in tensors.items():
        path = key.removeprefix("base_model.model.").removesuffix(suffix)
        if key.endswith(suffix) and path.startswith("encoder."):
            up = tensors[key.replace("lora_A", "lora_B")] * (settings["lora_alpha"] / settings["r"])
            deltas[path] = LowRankDelta(up, down)
    return Adapter(folder.name, deltas)


def merge_golden(name: str, samples_per_chunk: int):
    folder = GOLDEN / name
    settings = json.loads((folder / "settings.json").read_text())
    golden = load_file(folder / "golden.safetensors")
    model = T5ForConditionalGeneration.from_pretrained(folder / "t5-tiny").eval()
    adapters = [read_peft(folder / f"lora{n}") for n in range(settings["ntask"])]
    weights = settings["manual_ceof"] or [1.0] * settings["ntask"]
    tasks = [
        Task(f"task{n}", [Sample(row) for row in golden["input_ids"][n]], {n: 1.0}, weights[n])
        for n in range(settings["ntask"])
    ]
    network = Network(
        {path: module for path, module in model.named_modules()},
        lambda rows: model.encoder(torch.stack(list(rows))).last_hidden_state,
    )
    config = MergeConfig(
        alpha=settings["reg"],
        ridge="paper",
        balance="full",
        input_mix=settings.get("reg_ceof", 0.0),
        samples_per_chunk=samples_per_chunk,
    )
    last = max(int(key.split(".")[0][4:]) for key in golden if key.startswith("iter"))
    prefix, suffix = f"iter{last}.", ".delta"
    expected = {key[len(prefix) : -len(suffix)]: golden[key] for key in golden if key.startswith(prefix)}
    return merge(network, adapters, tasks, config), {k: v for k, v in expected.items() if k.startswith("encoder.")}


@pytest.mark.parametrize("samples_per_chunk", [100, 1, 5])
@pytest.mark.parametrize("name", ["two_tasks", "three_tasks_qkvo", "input_mix_manual"])
def test_sweep_reaches_the_fixed_point_of_the_published_code(name, samples_per_chunk, record_property):
    result, expected = merge_golden(name, samples_per_chunk)
    assert set(result.adapter.deltas) == set(expected)
    errors = [
        ((result.adapter.deltas[path].dense() - delta).norm() / delta.norm()).item() for path, delta in expected.items()
    ]
    record_property("largest_relative_error", max(errors))
    print(f"{name}, {samples_per_chunk} samples a chunk: largest relative error {max(errors):.1e}")
    assert max(errors) < 1e-5
