"""Both engines against tensors made by the authors' own code (see data/golden/README.md)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration

from iteris_core import Adapter, LowRankDelta, MergeConfig, Network, Sample, Task, merge
from iteris_core.memory import Room

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
FOLDERS = ["two_tasks", "three_tasks_qkvo", "input_mix_manual", "with_base_weight"]


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


class Golden:
    """One folder: the model, the tasks, the settings, and the official deltas of each iteration."""

    def __init__(self, name: str):
        folder = GOLDEN / name
        self.settings = json.loads((folder / "settings.json").read_text())
        self.tensors = load_file(folder / "golden.safetensors")
        self.model = T5ForConditionalGeneration.from_pretrained(folder / "t5-tiny").eval()
        count = self.settings["ntask"]
        weights = self.settings.get("manual_ceof") or [1.0] * count
        self.adapters = [read_peft(folder / f"lora{n}") for n in range(count)]
        rows = [[Sample(row) for row in self.tensors["input_ids"][n]] for n in range(count)]
        self.tasks = [Task(f"task{n}", rows[n], {n: 1.0}, weights[n]) for n in range(count)]
        solved = [key.split(".")[0] for key in self.tensors if key.startswith("iter")]
        self.iterations = 1 + max(int(name[4:]) for name in solved)

    def merge(self, samples_per_chunk=8, **options):
        base_in_target = bool(self.settings.get("with_pretrain_matrix"))
        options |= {"alpha": self.settings["reg"], "input_mix": self.settings.get("reg_ceof", 0.0)}
        options |= (
            {"target": "full_output", "rank": "full"} if base_in_target else {"target": "delta"}
        )
        published = {"unit_gain": 1.0, "ridge": "paper", "balance": "full"}
        config = MergeConfig(**published, **options)
        network = Network(
            dict(self.model.named_modules()),
            lambda rows: self.model.encoder(torch.stack(list(rows))).last_hidden_state,
        )
        return merge(network, self.adapters, self.tasks, config, room=Room(samples_per_chunk))

    def largest_error(self, result, iteration: int) -> float:
        """Return the largest relative error of a layer; of base + delta where the target has the base."""
        errors = []
        for path in result.adapter.deltas:
            expected = self.tensors[f"iter{iteration}.{path}.delta"]
            found = result.adapter.deltas[path].dense()
            if self.settings.get("with_pretrain_matrix"):
                found = found + self.model.get_submodule(path).weight
            errors.append(((found - expected).norm() / expected.norm()).item())
        start = f"iter{iteration}.encoder."
        assert len(errors) == sum(key.startswith(start) for key in self.tensors)
        return max(errors)


@pytest.fixture(scope="module")
def golden():
    return {name: Golden(name) for name in FOLDERS}


@pytest.mark.parametrize("name", FOLDERS)
def test_sweep_reaches_the_fixed_point_of_the_published_code(golden, name):
    case = golden[name]
    for size in (100, 1):
        error = case.largest_error(case.merge(samples_per_chunk=size), case.iterations - 1)
        print(f"{name}, {size} samples a chunk: largest relative error {error:.1e}")
        assert error < 1e-5


@pytest.mark.parametrize("name", FOLDERS)
def test_iterate_reproduces_every_iteration_of_the_published_code(golden, name):
    case = golden[name]
    for iteration in (0, 1, case.iterations - 1):
        error = case.largest_error(case.merge(engine="iterate", max_iter=iteration + 1), iteration)
        print(f"{name}, iteration {iteration}: largest relative error {error:.1e}")
        assert error < 1e-5


def test_layers_in_groups_give_the_same_iterations(golden, monkeypatch):
    case = golden["three_tasks_qkvo"]
    whole = case.merge(engine="iterate", max_iter=3)
    monkeypatch.setattr("iteris_core.engines.iterate._STATISTICS_BYTES", 1)
    pieces = case.merge(engine="iterate", max_iter=3)
    for path, delta in whole.adapter.deltas.items():
        found, expected = pieces.adapter.deltas[path].dense(), delta.dense()
        assert torch.allclose(expected, found, rtol=0, atol=1e-6 * expected.norm())


def test_iterating_stops_at_the_longest_path(golden):
    """Two layers of q, k, v, o have four different inputs, so that solve number four settles all."""
    case = golden["three_tasks_qkvo"]
    assert len(case.merge(engine="iterate", max_iter=10).report.changes) == 4
