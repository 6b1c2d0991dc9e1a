"""What is kept from one merge to the next."""

import types

import torch
from iteris_pack.nodes.host import reused_runs


class Model:
    """Anything that can be referred to weakly."""


def patcher_of(model):
    return types.SimpleNamespace(
        model=model, model_options={}, object_patches={}, patches_uuid="as loaded"
    )


def test_results_are_kept_up_to_a_size_of_all_models_together(monkeypatch):
    monkeypatch.setattr(reused_runs, "MOST_BYTES", 100)
    run = [(torch.zeros(5), torch.zeros(5))]  # 40 bytes
    models = (Model(), Model())
    first, second = (reused_runs.memory_of(patcher_of(model)) for model in models)
    first |= {"x": run, "y": run}
    first["x"] = run  # again: the size stays
    assert (list(first), first.size) == (["y", "x"], 80)
    second["z"] = run
    assert (list(first), list(second)) == (["x"], ["z"])
    second["w"] = run
    assert (list(first), list(second), first.size, second.size) == ([], ["z", "w"], 0, 80)
    second["big"] = [torch.zeros(100)]
    assert (list(second), second.size) == ([], 0)


def test_results_are_of_one_state_of_a_model_that_no_functions_change():
    model = Model()
    memory = reused_runs.memory_of(patcher_of(model))
    memory["x"] = 1
    assert reused_runs.memory_of(patcher_of(model)) is memory
    patcher = vars(patcher_of(model))
    for changed in (
        {"model_options": {"transformer_options": {"patches": {"attn2_patch": [print]}}}},
        {"object_patches": {"model_sampling": print}},
        {"wrappers": {"apply_model": {"x": [print]}}},
        {"hook_patches": {"x": {}}},
    ):
        found = reused_runs.memory_of(types.SimpleNamespace(**patcher | changed))
        assert found is None, changed  # what they do cannot be compared
    other = types.SimpleNamespace(**patcher | {"patches_uuid": "with a LoRA"})
    assert not reused_runs.memory_of(other)
