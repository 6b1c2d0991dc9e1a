"""What the plain loader asks of the host, and what goes out of it."""

import types

import pytest
import torch
from fake_host import use
from iteris_pack.nodes.load import LoadLoras
from iteris_pack.nodes.merge import Merge
from iteris_pack.nodes.sockets import ChosenLora
from iteris_pack.nodes.stack import LoraStack
from safetensors.torch import save_file

from iteris_core import IterisError

WORDS = {"cat": {"modelspec.trigger_phrase": "sks cat"}, "ink": {}, "sub/dog": {}}
TAGS = '{"1_x": {"dog": 3, "outdoors": 1}}'


@pytest.fixture
def load(replace_host, tmp_path):
    (tmp_path / "sub").mkdir()
    files = {f"{name}.safetensors": words for name, words in WORDS.items()}
    files["sub/dog.safetensors"] = {"ss_tag_frequency": TAGS}
    for name, metadata in files.items():
        save_file({name: torch.ones(1)}, tmp_path / name, metadata)

    def with_lora(model, clip, use, tensors, metadata):
        if use.name == "ink" and use.strength_model < 0:
            raise IterisError("ink: it does not fit")
        put = (use.name, use.strength_model, use.strength_clip, use.blocks, *tensors)
        return [*model, put], None if clip is None else [*clip, put]

    replace_host(
        lora_names=lambda: list(files),
        find_lora=lambda name: tmp_path / name,
        lora_path=lambda name: tmp_path / name,
        heed_cancel=lambda: None,
        prompt_sent=lambda: {},
        with_lora=with_lora,
    )
    # as `checked` asks for them
    kinds = {"patches": {}, "model": None, "patcher": None, "cond_stage_model": None}
    start = type("Start", (list,), kinds)

    def run(loras, clip=True, **inputs):
        return LoadLoras.execute(
            model=start(), clip=start() if clip else None, loras=loras, **inputs
        ).args

    return run


def test_rows_stacks_and_chains_are_put_on_one_after_the_other(load):
    trained = ChosenLora(use("trained"), {"t": torch.ones(1)})
    model, clip, stack, words = load(
        "<lora:cat:0.8:0.4> style blocks=MID:0 | no words needed\n# <lora:gone>\n<lora:ink:0>",
        more_loras=(trained, ChosenLora(use("idle", strength_model=0.0, strength_clip=0.0))),
        lora_stack=[("sub/dog.safetensors", 0.5, 0.25), ("ink", 0.0, 1.0)],
    )
    assert model == [
        ("sub/dog", 0.5, 0.25, "", "sub/dog.safetensors"),
        ("ink", 0.0, 1.0, "", "ink.safetensors"),
        ("trained", 1.0, 1.0, "", "t"),
        ("cat", 0.8, 0.4, "MID:0", "cat.safetensors"),
    ]
    assert clip == model
    strengths = {"sub/dog": (0.5, 0.25), "ink": (0.0, 1.0), "cat": (0.8, 0.4)}
    assert stack == [(f"{name}.safetensors", *both) for name, both in strengths.items()]
    assert words == "dog, sks cat"


def test_no_lora_and_no_clip_are_nothing(load):
    assert load("", clip=False) == ([], None, [], "")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<lora:cat>\n<lora:dag>", r"^Row 2: 'dag' is in none of .*did you mean 'sub/dog'"),
        ("\n<lora:ink:-1>", "^Row 1: ink: it does not fit"),
        ("<lora:cat> blocks=MID", "^Row 1: LoRA 'cat': its block weights have 'MID'"),
    ],
)
def test_an_error_names_its_row(load, text, told):
    with pytest.raises(IterisError, match=told):
        load(text)


def test_what_is_wrong_with_each_row_is_told_at_once(load):
    told = r"^Row 1: ink: it does not fit\. Row 3: ink: it does not fit$"
    with pytest.raises(IterisError, match=told):
        load("<lora:ink:-1>\n<lora:cat>\n<lora:ink:-2>")


def test_a_stack_tells_all_its_wrong_loras(load):
    """Those that another pack's node adds are known only as it runs."""
    text = "<lora:ink> | in {trigger}\n<lora:cat>\n<lora:ink> | {trigger}"
    told = r"^Row 1: ink.* has \{trigger\} in a prompt.*\. Row 3: ink"
    with pytest.raises(IterisError, match=told):
        LoraStack.execute(text=text, prompts="")
    others = [("cat", 1.0), ("dag", 1.0), ("gone", 1.0)]
    with pytest.raises(IterisError, match=r"'dag' is in none of .*\. .*'gone' is in none of "):
        LoraStack.execute(text="", prompts="", lora_stack=others)


def test_rows_that_cannot_run_are_refused_before_the_model_is_loaded(load, monkeypatch):
    """By their places on the page, once for all that share a fault: a merge needs prompts, too."""
    text = (
        "<lora:cat>\n\n# <lora:gone>\n<lora::0.5>\n<lora:dag>\n<lora:ink>\n<lora:ink:0>\n"
        "<lora:ink> | a sketch\n<lora:ink> | in {trigger}\n<lora:cat> sytle\n<lora::1>\n"
        '<lora:ink:0.5>\n<lora::1>\n<lora:ink> style called="in {trigger} style" | a sketch\n'
        "<lora:cat> | a {red|blue} cat"
    )
    both = {
        "Rows 3, 10 and 12": "no file yet. Choose one, or remove the row",
        "Row 4": "'dag' is in none of ComfyUI's loras folders; did you mean 'sub/dog'? If not, put the file",
        "Row 9": "'sytle' is not a word of a row",
    }
    prompts = {
        "Rows 5 and 11": "no prompts, and no trigger words in the file. Click 'write prompts'",
        "Row 8": "ink.safetensors has {trigger} in a prompt",
        "Row 13": "no trigger words in the file. Click 'write trigger words' on the row, and write "
        "them into 'More' in place of {trigger}, such as called=\"in zwx style\"",
        "Row 14": "'a {red|blue} cat' has '{red|blue}'",
    }
    for node, expected in ((LoadLoras, both), (Merge, both | prompts), (LoraStack, both)):
        monkeypatch.setattr(node, "hidden", types.SimpleNamespace(unique_id="5"), raising=False)
        field = "text" if node is LoraStack else "loras"
        answer = node.validate_inputs(**{field: text})
        told = dict(line.split(": ", 1) for line in answer.split("\n"))
        assert told.keys() == expected.keys()
        assert all(said in told[rows] for rows, said in expected.items())
        for runs in ("<lora:cat>\n<lora:sub/dog:0.5>", None):
            assert node.validate_inputs(**{field: runs}) is True


def test_a_merge_of_nothing_is_refused_before_the_model_is_loaded(load, replace_host, monkeypatch):
    """What is connected is not known yet; a loader of nothing hands the model on."""
    told = "there is no LoRA to merge"
    for node, inputs, start in (
        (Merge, {}, told),
        (Merge, {"more_loras": ["7", 0]}, None),
        (LoadLoras, {}, None),
        (LoraStack, {}, None),
    ):
        monkeypatch.setattr(node, "hidden", types.SimpleNamespace(unique_id="5"), raising=False)
        prompt = {"5": {"class_type": node.__name__, "inputs": inputs}}
        replace_host(prompt_sent=lambda prompt=prompt: prompt)
        field = "text" if node is LoraStack else "loras"
        for text in ("", "\n# <lora:cat>"):
            answer = node.validate_inputs(**{field: text})
            assert answer is True if start is None else answer.startswith(start)
            assert start is None or "switch a row on" in answer  # which has a LoRA


def test_a_preview_needs_no_prompts_but_words_that_a_row_asks_for(load, replace_host, monkeypatch):
    """A preset or a recipe that nobody knows before a run may be of one, too."""
    monkeypatch.setattr(Merge, "hidden", types.SimpleNamespace(unique_id="5"), raising=False)

    def told(loras="<lora:ink>", **inputs):
        merge = {"class_type": "IterISMerge", "inputs": inputs}
        others = {name: {"class_type": name, "inputs": {}} for name in ("IterISRecipe", "Other")}
        replace_host(prompt_sent=lambda: {"5": merge, **others})
        return Merge.validate_inputs(loras=loras)

    unknown = ({"preset": ["Other", 0]}, {"preset": "Fast", "settings": ["IterISRecipe", 1]})
    for inputs in ({"preset": "Preview"}, *unknown):
        assert told(**inputs) is True
        assert told("<lora:ink> called={trigger}", **inputs) is True
        assert "has {trigger} in a prompt" in told("<lora:ink> | {trigger}", **inputs)
    for inputs in ({}, {"preset": "Fast"}, {"preset": "Fast", "settings": ["Other", 0]}):
        assert told(**inputs).startswith("Row 1: no prompts")


CLUES = {  # what a file holds -> a module that shows its family, d_out, d_in
    "SD1.5": ("input_blocks.1.1.transformer_blocks.0.attn2.to_k", 320, 768),
    "SDXL": ("input_blocks.4.1.transformer_blocks.0.attn2.to_k", 640, 2048),
    "Flux.1": ("double_blocks.0.img_attn.qkv", 9216, 3072),
    "Flux.2": ("single_blocks.0.linear1", 27648, 3072),
}


def test_a_lora_for_another_model_is_refused_before_it_is_loaded(
    replace_host, tmp_path, monkeypatch
):
    """Not one of which the metadata alone say so, nor one whose layers the model has, too."""
    for family, (module, d_out, d_in) in CLUES.items():
        base = f"lora_unet_{module.replace('.', '_')}"
        factors = {"lora_down": torch.ones(1, d_in), "lora_up": torch.ones(d_out, 1)}
        lora = {f"{base}.{factor}.weight": matrix for factor, matrix in factors.items()}
        save_file(lora, tmp_path / f"lora {family}.safetensors")
        model = {f"{module}.weight": torch.ones(d_out, d_in, dtype=torch.int8)}
        save_file(model, tmp_path / f"{family}.safetensors")
    says = {"ss_base_model_version": "sdxl_base_v1-0"}
    save_file({"a": torch.ones(1)}, tmp_path / "lora says.safetensors", says)
    names = [path.name for path in tmp_path.glob("lora*")]
    replace_host(
        lora_names=lambda: names,
        lora_path=lambda name: tmp_path / name,
        find_model=lambda name: tmp_path / name if (tmp_path / name).is_file() else None,
        prompt_sent=lambda: prompt,
    )

    def told(node, model, *loras):
        nonlocal prompt
        loader = {"class_type": "UNETLoader", "inputs": {"unet_name": f"{model}.safetensors"}}
        prompt = {"1": loader, "5": {"class_type": "x", "inputs": {"model": ["1", 0]}}}
        monkeypatch.setattr(node, "hidden", types.SimpleNamespace(unique_id="5"), raising=False)
        return node.validate_inputs(loras="\n".join(loras))

    prompt = {}
    for node in (LoadLoras, Merge):
        other = "lora SDXL: this file is for SDXL, the model is SD1.5; choose a LoRA for SD1.5"
        rows = ("<lora:lora SD1.5> | x", "<lora:lora SDXL> | x", "<lora:lora SDXL:0> | x")
        assert told(node, "SD1.5", *rows) == f"Row 2: {other}"
        assert "for SDXL, the model is Flux.2" in told(node, "Flux.2", "<lora:lora SDXL> | x")
        for model, lora in (("Flux.2", "Flux.1"), ("SD1.5", "says"), ("gone", "SDXL")):
            assert told(node, model, f"<lora:lora {lora}> | x") is True, model
