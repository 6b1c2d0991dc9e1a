"""Saving a merged LoRA: it replaces nothing until it is known to be good."""

import io
import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_host import fake_base, use
from iteris_pack.nodes.merge import NOT_BEGUN, Merge
from iteris_pack.nodes.merge_files import _UNCOVERED, read_back
from iteris_pack.nodes.pictures import png_of
from iteris_pack.nodes.save import SaveMergedLora
from iteris_pack.nodes.sockets import MergedLora
from PIL import Image

from iteris_core import Adapter, IterisError, LowRankDelta
from iteris_core.diffusion.lora_use import LoadedLora
from iteris_core.errors import NameTakenError
from iteris_core.files.headers import lora_header
from iteris_core.files.tensors import read_tensors, sha256

# recipes
ANOTHER, A_THIRD = ('{"seed": 1}', '{"seed": 2}')
GREY = torch.full((1, 8, 8, 3), 0.5)


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
    shown, early = [], []
    replace_host(
        tell_saved=lambda _, files: early.append([file["name"] for file in files]),
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
    save.early = early  # names of files that the page was told of, by call
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


def test_a_merge_that_is_saved_already_is_not_saved_again(saving, tmp_path, replace_host):
    grey = {"cover": torch.full((1, 8, 8, 3), 0.5)}
    for more in ({}, {"recipe": ANOTHER}, {"recipe": ANOTHER, **grey}):
        saving(**more)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "loras").iterdir()}
    assert len(files) == 3, "two files, and a preview: another cover is no other merge"
    of_names = {"a": {}, "a_02": {"recipe": ANOTHER, **grey}}
    for name, more in of_names.items():
        assert saving(**more).stem == name
        path, told, facts = saving.shown[-1]  # and not what was told as it was saved
        assert (path, told) == (
            str(tmp_path / "loras" / f"{name}.safetensors"),
            "already saved, so no copy was written",
        )
        assert "trigger words" in facts
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert len(list((tmp_path / "loras").iterdir())) == 3
    broken = tmp_path / "loras" / "a.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1] + b"x")
    assert saving().stem == "a_03", "a file of other content is not the merge"
    replace_host(saves_metadata=lambda: False)
    assert [saving("plain").stem for _ in range(2)] == ["plain", "plain"]


def test_a_name_that_is_another_file_in_the_lists_is_not_free(saving, tmp_path):
    """Loaders would take that file for the merge."""
    mine = saving("a")
    other = tmp_path / "models" / "a.safetensors"
    saving.elsewhere.update({"a.safetensors": other, "a_02.safetensors": other})
    assert [saving("a").stem for _ in range(2)] == ["a_03", "a_03"], "not a, which is this merge"
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


def test_a_pair_gets_a_number_where_one_of_its_names_is_another_file(saving, tmp_path, merged):
    saving.elsewhere["a_low_noise.safetensors"] = tmp_path / "a_low_noise.safetensors"
    pair = replace(merged, low=merged.adapter)
    for _ in range(2):
        SaveMergedLora.execute(pair, "a", False)
    names = {path.name for path in (tmp_path / "loras").iterdir()}
    assert names == {"a_02_high_noise.safetensors", "a_02_low_noise.safetensors"}
    with pytest.raises(NameTakenError, match=r"a_low_noise\.safetensors is already the name of"):
        SaveMergedLora.execute(pair, "a", True)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"file_name": "../x"}, "outside the folder loras"),
        ({"file_name": ["4", 0]}, "outside the folder loras"),
        ({"file_name": "b", "merged": ["3", 0]}, ""),
        ({"file_name": "../x", "merged": ["3", 0]}, "outside the folder loras"),
        ({"file_name": "taken", "overwrite": True}, "taken.safetensors is already the name of"),
        ({"file_name": "taken", "overwrite": False}, ""),
        ({"file_name": "taken_low_noise", "overwrite": True}, ""),
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
    assert of_merge is True or of_merge.startswith(NOT_BEGUN)  # told once, at the node that saves
    assert (of_merge is not True) == bool(said)
    assert said in of_save if said else of_save is True


def test_of_a_pair_each_name_is_looked_for_before_the_merge(saving, replace_host):
    saving.elsewhere["a_low_noise.safetensors"] = Path("/models/a_low_noise.safetensors")
    inputs = {"merged": ["2", 3], "file_name": "a", "overwrite": True}
    prompt = {
        "1": {"class_type": "IterISSave", "inputs": inputs},
        "2": {"class_type": "IterISMergeVideo", "inputs": {"model_low_noise": ["9", 0]}},
    }
    replace_host(prompt_sent=lambda: prompt)
    assert "a_low_noise.safetensors is already the name of" in SaveMergedLora.validate_inputs()
    del prompt["2"]["inputs"]["model_low_noise"]
    assert SaveMergedLora.validate_inputs() is True


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_bad_file_does_not_replace_a_good_one(saving, tmp_path, replace_host, merged, overwrite):
    good = saving().read_bytes()
    replace_host(stock_loader=loader_of(merged, lambda parameter, value: None))
    with pytest.raises(IterisError, match="weights are missing or differ"):
        saving(overwrite=overwrite, recipe=ANOTHER)
    assert [path.read_bytes() for path in (tmp_path / "loras").iterdir()] == [good]


@pytest.mark.parametrize("overwrite", [True, False])
def test_of_a_pair_both_files_are_saved_or_none(saving, tmp_path, replace_host, merged, overwrite):
    """Each is read back before either has its name."""
    pair = replace(merged, low=merged.adapter)
    names = ("a_high_noise.safetensors", "a_low_noise.safetensors")

    def files():
        return {path.name: path.read_bytes() for path in (tmp_path / "loras").iterdir()}

    def save(**more):
        return SaveMergedLora.execute(replace(pair, **more), "a", overwrite)

    save()
    good = files()
    assert set(good) == set(names)
    loaders = iter([loader_of(merged), loader_of(merged, lambda parameter, value: None)])

    def next_loader(path, keys):
        return next(loaders)(path, keys)

    replace_host(stock_loader=next_loader)
    with pytest.raises(IterisError, match=r"a(_02)?_low_noise.*weights are missing or differ"):
        save(recipe=ANOTHER)
    assert files() == good
    replace_host(stock_loader=loader_of(merged))
    save(recipe=ANOTHER)
    found = files()
    more = {} if overwrite else {name.replace("a_", "a_02_", 1) for name in names}
    assert set(found) == {*names, *more}
    assert all((found[name] == good[name]) is not overwrite for name in names)


def test_a_user_who_wants_no_metadata_gets_what_other_programs_need(saving, replace_host):
    """As with ComfyUI's --disable-metadata."""
    replace_host(saves_metadata=lambda: False)
    _, metadata = read_tensors(saving())
    assert "ss_network_dim" in metadata
    assert all(key.startswith(("ss_", "modelspec.")) or key == "format" for key in metadata)


def test_a_cover_is_in_the_file_and_beside_it(saving):
    path = saving("styles/a", cover=torch.full((2, 8, 8, 3), 0.5))
    preview = path.with_name("a.preview.png")
    assert Image.open(preview).getpixel((0, 0)) == (128, 128, 128)
    assert read_tensors(path)[1]["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert saving.shown[-1][-1] == "beside it: a.preview.png"
    assert {found.name for found in path.parent.iterdir()} == {path.name, preview.name}


def test_a_card_for_lora_manager_lies_beside_the_file_where_it_keeps_such(
    saving, merged, tmp_path, replace_host
):
    replace_host(find_lora=lambda name: tmp_path / name)
    lora = use("cat", (), file="cat.safetensors", trigger_words=("a cat",))
    of_files = replace(merged, loras=(LoadedLora(lora, Adapter("cat", {})),))

    def save(name, overwrite=False):
        path = Path(SaveMergedLora.execute(of_files, name, overwrite).args[0])
        return path, path.with_suffix(".metadata.json")

    assert not save("a")[1].exists()
    card = {"base_model": "half \ud800", "civitai": {"trainedWords": ["x"]}}
    (tmp_path / "cat.metadata.json").write_text(json.dumps(card))
    path, beside = save("b")
    card = json.loads(beside.read_text(encoding="utf-8"))
    assert (card["base_model"], card["from_civitai"]) == ("half ?", False)
    assert (card["file_name"], card["sha256"]) == ("b", sha256(path))
    found = lora_header(path).triggers
    assert (found.source, found.triggers) == ("b.metadata.json", ("a cat",))
    beside.write_text("{}")
    save("b", overwrite=True)
    assert json.loads(beside.read_text(encoding="utf-8"))["file_name"] == "b"
    replace_host(saves_metadata=lambda: False)
    assert not save("c")[1].exists()


def test_a_preview_that_is_there_is_replaced_with_its_lora_alone(saving, tmp_path):
    (tmp_path / "loras").mkdir()
    preview = tmp_path / "loras" / "a.preview.png"
    preview.write_bytes(b"mine")
    dark = torch.zeros(1, 8, 8, 3)
    saving("a", cover=dark)
    assert preview.read_bytes() == b"mine"
    assert "a.preview.png was there and was kept" in "\n".join(saving.shown[-1])
    assert saving("a", recipe=ANOTHER, cover=dark).name == "a_02.safetensors"
    assert preview.with_name("a_02.preview.png").exists()
    saving("a", overwrite=True, cover=dark)
    assert Image.open(preview).getpixel((0, 0)) == (0, 0, 0)


def test_an_earlier_cover_is_replaced_unless_somebody_has_changed_it(saving, replace_host):
    """Of a merge that is saved already, as after another run of Compare."""
    dark, light = torch.zeros(1, 8, 8, 3), torch.ones(1, 8, 8, 3)
    preview = saving("a", cover=dark).with_name("a.preview.png")
    first = preview.read_bytes()
    saving("a", cover=light)
    assert Image.open(preview).getpixel((0, 0)) == (255, 255, 255)
    assert saving.shown[-1][-1] == "beside it: a.preview.png"
    saving("a", cover=light)
    assert "preview" not in "".join(saving.shown[-1]), "it is there"
    Image.open(io.BytesIO(first)).transpose(Image.Transpose.ROTATE_90).save(preview, "PNG")
    edited = preview.read_bytes()
    saving("a", cover=light)
    assert preview.read_bytes() == edited
    assert "a.preview.png was there and was kept" in saving.shown[-1][-1]
    preview.write_bytes(png_of(light[0]))  # of an older version
    saving("a", cover=light)
    assert "preview" not in "".join(saving.shown[-1])
    replace_host(saves_metadata=lambda: False)
    preview = saving("b", cover=dark).with_name("b.preview.png")
    assert preview.read_bytes() == png_of(dark[0]), "nor a text in a picture"


@pytest.fixture
def early(saving, merged, tmp_path, monkeypatch):
    """Saves a merge before its cover is there, and then with it, at another second each."""
    seconds = itertools.count()
    clock = SimpleNamespace(localtime=lambda: time.gmtime(next(seconds)))
    monkeypatch.setattr("iteris_pack.nodes.loras.names.time", clock)

    def inputs(more):
        return {"merged": merged, "file_name": "a", "overwrite": False, "cover": None} | more

    def files():
        return {
            path.name: bool(read_tensors(path)[1].get("modelspec.thumbnail"))
            for path in (tmp_path / "loras").glob("*.safetensors")
        }

    return SimpleNamespace(
        save=lambda **more: SaveMergedLora.check_lazy_status(**inputs(more)),
        finish=lambda **more: SaveMergedLora.execute(**inputs({"cover": GREY} | more)).ui["text"],
        files=files,  # name -> whether it has a cover
        folder=tmp_path / "loras",
        told=saving.early,
    )


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("runs", [1, 2], ids=["one run", "stopped and run again"])
def test_a_file_is_there_before_its_cover_which_is_added(early, overwrite, runs):
    how = {"file_name": "a_%second%", "overwrite": overwrite}
    for _ in range(runs):
        assert early.save(**how) == ["cover"]
        assert early.files() == {"a_00.safetensors": False}
        assert len(list(early.folder.iterdir())) == 1
    assert early.told == runs * [["a_00.safetensors"]]
    assert early.save(**how, cover=GREY) == []  # the host asks once more
    path, read, _, beside = early.finish(**how)
    assert path == str(early.folder / "a_00.safetensors")
    assert read.startswith("read back: ") and beside == "beside it: a_00.preview.png"
    assert early.files() == {"a_00.safetensors": True}


def test_nothing_is_saved_early_where_no_cover_is_linked(early, merged):
    inputs = {"merged": merged, "file_name": "a", "overwrite": False}
    assert SaveMergedLora.check_lazy_status(**inputs) == []
    assert not early.folder.exists()


def test_a_merge_is_not_made_again_for_its_cover(replace_host):
    """ComfyUI with --cache-none would have dropped it by then."""
    for keeps in (True, False):
        replace_host(keeps_results=lambda keeps=keeps: keeps)
        [cover] = [item for item in SaveMergedLora.define_schema().inputs if item.id == "cover"]
        assert cover.lazy is keeps


def test_a_cover_that_turns_out_to_be_none_leaves_the_file_as_it_is(early):
    early.save()
    early.save()
    assert early.finish(cover=None)[1].startswith("read back: ")
    assert early.files() == {"a.safetensors": False}


def test_why_a_file_has_a_number_is_told_once_it_has_its_cover(early, saving):
    saving(recipe=ANOTHER)
    early.save()
    assert "a.safetensors exists: switch overwrite on to replace it" in early.finish()
    assert early.files() == {"a.safetensors": False, "a_02.safetensors": True}


def test_of_a_pair_both_files_wait_for_the_cover(early, merged):
    pair = replace(merged, low=merged.adapter)
    early.save(merged=pair)
    names = ("a_high_noise.safetensors", "a_low_noise.safetensors")
    assert early.files() == dict.fromkeys(names, False)
    early.finish(merged=pair)
    assert early.files() == dict.fromkeys(names, True)


def test_what_was_put_in_place_of_a_file_that_waits_is_not_replaced(early):
    early.save()
    mine = early.folder / "a.safetensors"
    mine.write_bytes(b"mine")
    early.finish()
    assert mine.read_bytes() == b"mine"
    mine.unlink()
    assert early.files() == {"a_02.safetensors": True}


def test_a_cover_that_cannot_be_added_leaves_the_file_and_is_added_later(
    early, merged, replace_host
):
    early.save()
    replace_host(stock_loader=loader_of(merged, lambda parameter, value: None))
    with pytest.raises(IterisError, match="weights are missing or differ"):
        early.finish()
    assert early.files() == {"a.safetensors": False}
    replace_host(stock_loader=loader_of(merged))
    early.save()
    early.finish()
    assert early.files() == {"a.safetensors": True}


def test_a_cover_is_not_lost_while_another_is_made(early):
    early.save(overwrite=True)
    early.finish(overwrite=True)
    early.save(overwrite=True)
    assert early.files() == {"a.safetensors": True}


def test_a_merge_that_is_gone_is_forgotten(early, merged):
    before = len(_UNCOVERED)
    another = replace(merged)
    early.save(merged=another)
    assert len(_UNCOVERED) == before + 1
    del another
    assert len(_UNCOVERED) == before
    early.save()
    early.finish()
    assert not _UNCOVERED.get(merged)
