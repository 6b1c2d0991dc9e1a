"""Saving a merged LoRA: it replaces nothing until it is known to be good."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_host import fake_base
from iteris_pack.nodes.merge import Merge
from iteris_pack.nodes.merge_files import read_back
from iteris_pack.nodes.save import SaveMergedLora
from iteris_pack.nodes.sockets import MergedLora
from PIL import Image

from iteris_core import Adapter, IterisError, LowRankDelta
from iteris_core.errors import NameTakenError
from iteris_core.files.tensors import read_tensors

# recipes
ANOTHER, A_THIRD = ('{"seed": 1}', '{"seed": 2}')


@pytest.fixture
def merged(keys):
    sides = {"diffusion_model.mid.q": (6, 4), "diffusion_model.mid.conv": (3, 6)}
    deltas = {
        path: LowRankDelta(torch.randn(d_out, 2), torch.randn(2, d_in))
        for path, (d_out, d_in) in sides.items()
    }
    vectors = {"clip_l.transformer.text_model.q.bias": torch.randn(3)}
    return MergedLora(Adapter("merged", deltas, vectors=vectors), fake_base(keys), "{}")


def loader_of(merged, change=lambda parameter, value: value):
    meant = {
        f"{path}.weight": delta.dense() for path, delta in merged.adapter.deltas.items()
    } | dict(merged.adapter.vectors)
    return lambda path, keys: (
        lambda parameter, shape: change(parameter, meant[parameter].reshape(shape))
    )


def test_a_whole_file_is_read_back(replace_host, merged):
    replace_host(stock_loader=loader_of(merged))
    text = read_back(Path("draft.safetensors"), merged, "x.safetensors")
    assert text == "read back: 2 of 2 modules, 1 biases and norms, largest difference 0"


@pytest.mark.parametrize(
    "change",
    [lambda value: None, lambda value: value * 1.1, lambda value: value * float("nan")],
    ids=["missing", "larger", "NaN"],
)
@pytest.mark.parametrize(
    "lost", ["diffusion_model.mid.conv.weight", "clip_l.transformer.text_model.q.bias"]
)
def test_a_file_that_lost_something_is_an_error(replace_host, merged, lost, change):
    broken = lambda parameter, value: change(value) if parameter == lost else value  # noqa: E731
    replace_host(stock_loader=loader_of(merged, broken))
    said = rf"x\.safetensors: read back .* 1 of 3 weights are missing or differ, such as '{lost}'"
    with pytest.raises(IterisError, match=said):
        read_back(Path("draft.safetensors"), merged, "x.safetensors")


@pytest.fixture
def saving(tmp_path, monkeypatch, replace_host, merged):
    shown = []
    replace_host(
        output_folder=lambda: tmp_path,
        saves_metadata=lambda: True,
        lora_name_of=lambda path: path.name,
        namesake=lambda path: save.elsewhere.get(path.name),
        stock_loader=loader_of(merged),
    )
    prompt = {"1": {"inputs": {"merged": ["7:5", 3]}}}
    hidden = SimpleNamespace(unique_id="1", prompt=prompt)
    monkeypatch.setattr(SaveMergedLora, "hidden", hidden, raising=False)

    def save(name="a", overwrite=False, recipe="{}", **more):
        output = SaveMergedLora.execute(replace(merged, recipe=recipe), name, overwrite, **more)
        shown.append(output.ui["text"])
        return Path(output.args[0])

    save.shown = shown
    save.elsewhere = {}  # name -> a file of another loras folder
    return save


def titles(folder):
    return {
        path.name: read_tensors(path)[1]["ss_output_name"]
        for path in sorted((folder / "loras").iterdir())
        if path.stat().st_size
    }


def test_a_name_that_is_taken_gets_a_number(saving, tmp_path):
    names = ["a.safetensors", "a_02.safetensors", "a_03.safetensors"]
    assert [saving(recipe=recipe).name for recipe in ("{}", ANOTHER, A_THIRD)] == names
    why = "a.safetensors exists: switch overwrite on to replace it"
    assert [why in text for text in saving.shown] == [False, True, True]
    assert titles(tmp_path) == {f"{title}.safetensors": title for title in ("a", "a_02", "a_03")}
    assert saving(overwrite=True).name == "a.safetensors"
    assert len(list((tmp_path / "loras").iterdir())) == 3


def test_a_name_that_is_another_file_in_the_lists_is_not_free(saving, tmp_path):
    """Loaders would take that file for the merge."""
    mine = saving("a")
    other = tmp_path / "models" / "a.safetensors"
    saving.elsewhere.update({"a.safetensors": other, "a_02.safetensors": other})
    assert saving("a").stem == "a_03", "not a, which is this merge"
    assert saving("a", recipe=ANOTHER).stem == "a_04"
    assert "a.safetensors is another LoRA" in "".join(saving.shown[-1])
    kept = mine.read_bytes()
    with pytest.raises(
        NameTakenError, match="Choose another name, or switch overwrite off"
    ) as told:
        saving("a", overwrite=True)
    assert f"a.safetensors is already the name of {other} in LoRA lists" in str(told.value)
    assert mine.read_bytes() == kept
    assert saving("a_03", overwrite=True).stem == "a_03"


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"file_name": "../x"}, "outside the folder loras"),
        ({"file_name": ["4", 0]}, "outside the folder loras"),
        ({"file_name": "b", "merged": ["3", 0]}, ""),
        ({"file_name": "../x", "merged": ["3", 0]}, "outside the folder loras"),
        ({"file_name": "taken", "overwrite": True}, "taken.safetensors is already the name of"),
        ({"file_name": "taken", "overwrite": False}, ""),
        ({"file_name": ["5", 0], "overwrite": ["5", 0]}, ""),
    ],
)
def test_a_name_that_cannot_be_had_is_refused_before_the_merge(
    saving, monkeypatch, replace_host, inputs, said
):
    """At the node that saves, and at the merge, without which the merge would run all the same."""
    saving.elsewhere["taken.safetensors"] = Path("/models/taken.safetensors")
    prompt = {
        "1": {"class_type": "IterISSave", "inputs": {"merged": ["2", 3], **inputs}},
        "2": {"class_type": "IterISMerge", "inputs": {}},
        "3": {"class_type": "of another pack", "inputs": {"any": ["2", 3]}},
        "4": {"class_type": "PrimitiveString", "inputs": {"value": "../x"}},
        "5": {"class_type": "of another pack", "inputs": {"value": "../x"}},
    }
    replace_host(prompt_sent=lambda: prompt)
    for node, own in ((SaveMergedLora, "1"), (Merge, "2")):
        monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id=own), raising=False)
    of_save, of_merge = (node.validate_inputs() for node in (SaveMergedLora, Merge))
    for refusal in (of_save, of_merge):
        assert said in refusal if said else refusal is True


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_bad_file_does_not_replace_a_good_one(saving, tmp_path, replace_host, merged, overwrite):
    good = saving().read_bytes()
    replace_host(stock_loader=loader_of(merged, lambda parameter, value: None))
    with pytest.raises(IterisError, match="weights are missing or differ"):
        saving(overwrite=overwrite, recipe=ANOTHER)
    assert [path.read_bytes() for path in (tmp_path / "loras").iterdir()] == [good]


def test_a_user_who_wants_no_metadata_gets_what_other_programs_need(saving, replace_host):
    """As with ComfyUI's --disable-metadata."""
    replace_host(saves_metadata=lambda: False)
    _, metadata = read_tensors(saving())
    assert "ss_network_dim" in metadata
    assert all(key.startswith(("ss_", "modelspec.")) or key == "format" for key in metadata)


def test_a_cover_is_beside_the_file(saving):
    path = saving("styles/a", cover=torch.full((2, 8, 8, 3), 0.5))
    preview = path.with_name("a.preview.png")
    assert Image.open(preview).getpixel((0, 0)) == (128, 128, 128)
    assert saving.shown[-1][-1] == "beside it: a.preview.png"
    assert {found.name for found in path.parent.iterdir()} == {path.name, preview.name}


def test_a_preview_that_is_there_is_replaced_with_its_lora_alone(saving, tmp_path):
    (tmp_path / "loras").mkdir()
    preview = tmp_path / "loras" / "a.preview.png"
    preview.write_bytes(b"mine")
    dark = torch.zeros(1, 8, 8, 3)
    saving("a", cover=dark)
    assert preview.read_bytes() == b"mine"
    assert "no a.preview.png: " in "\n".join(saving.shown[-1])
    assert saving("a", recipe=ANOTHER, cover=dark).name == "a_02.safetensors"
    assert preview.with_name("a_02.preview.png").exists()
    saving("a", overwrite=True, cover=dark)
    assert Image.open(preview).getpixel((0, 0)) == (0, 0, 0)
