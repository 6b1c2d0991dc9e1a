"""What a workflow tells about where something comes from."""

from iteris_pack.nodes.workflow import strings_in, texts_upstream


def test_the_base_model_is_what_the_workflow_names_before_the_merge():
    prompt = {
        "1": {"inputs": {"ckpt_name": "sd15.safetensors"}},
        "2": {"inputs": {"model": ["1", 0], "lora": "x"}},
        "3": {"inputs": {"ckpt_name": "other"}},
        "5": {"inputs": {"model": ["2", 0], "clip": ["gone", 1], "more_loras": ["3", 0]}},
    }
    assert set(texts_upstream(prompt, "5", ("model", "clip"))) == {"sd15.safetensors", "x", "gone"}
    assert list(texts_upstream({}, "5", ("model",))) == []


def test_texts_are_found_at_any_depth():
    workflow = "cat"
    for _ in range(100_000):
        workflow = [workflow]
    assert list(strings_in({"1": workflow})) == ["cat"]
