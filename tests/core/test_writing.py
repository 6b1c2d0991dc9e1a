"""Files and folders are there whole or not at all, whatever happens while they are written."""

import errno
import io
import os
import re
import shutil
import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from iteris_core import IterisError, NameTakenError, SaveError
from iteris_core.files import writing
from iteris_core.files.writing import (
    blocks_of,
    fault_of_path,
    under_free_name,
    whole_file,
    write_tensors,
    write_text,
)

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}


@pytest.fixture
def folder(tmp_path):
    """An empty folder, in memory where that can be: these tests write very often."""
    with tempfile.TemporaryDirectory(dir=MEMORY or tmp_path) as name:
        yield Path(name)


def content(place):
    if not place.is_dir():
        return place.read_bytes() if place.exists() else None
    return {path.name: path.read_bytes() for path in place.iterdir()}


def clear(folder):
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_has_its_name_only_when_it_is_whole(folder, overwrite):
    path = folder / "new" / "x.safetensors"
    if overwrite:
        write_text("old", path)
    with whole_file(path, overwrite=overwrite) as file:
        file.writelines(blocks_of(TENSORS, {"ss_title": "x"}))
        file.flush()
        assert set(load_file(file.name)) == {"a", "b"}
        assert file.name.endswith(".part")  # ComfyUI lists files by their suffix
        assert content(path) == (b"old" if overwrite else None)
    found = load_file(path)
    assert all(torch.equal(found[key], tensor) for key, tensor in TENSORS.items())
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "ss_title": "x"}
    assert os.listdir(path.parent) == ["x.safetensors"]
    # as other programs' files, not hidden from other users as a temporary file is
    (folder / "other").touch()
    assert path.stat().st_mode == (folder / "other").stat().st_mode


@pytest.mark.parametrize("links", [None, errno.EPERM, errno.ENOTSUP])
def test_nothing_is_replaced_unless_asked(folder, monkeypatch, links):
    """Nor on a disk without hard links, nor a link to nowhere, nor what appears meanwhile."""

    def no_links(*args, **kwargs):
        raise OSError(links, os.strerror(links))

    if links:
        monkeypatch.setattr(os, "link", no_links)
    taken = re.escape("x exists already; choose another name, or allow overwriting")
    path = folder / "x"
    with pytest.raises(NameTakenError, match=taken), whole_file(path):
        write_text("other's", path)
    with pytest.raises(FileExistsError, match=taken):
        write_text("mine", path)
    assert content(folder) == {"x": b"other's"}
    write_text("mine", path, overwrite=True)
    assert content(folder) == {"x": b"mine"}
    path.unlink()
    path.symlink_to(folder / "nowhere")
    with pytest.raises(NameTakenError):
        write_text("new", path)


def test_an_error_in_the_middle_leaves_nothing(folder):
    for overwrite in (False, True):
        before = content(folder)
        for error in (IterisError("bad"), KeyboardInterrupt(), MemoryError()):
            with pytest.raises(type(error)), whole_file(folder / "x", overwrite=overwrite) as file:
                file.write(b"half")
                raise error
            assert content(folder) == before
        write_text("precious", folder / "x", overwrite=overwrite)


@pytest.mark.parametrize(
    ("name", "free"),
    [
        ("a.safetensors", "a_02.safetensors"),
        ("a_02.safetensors", "a_02_02.safetensors"),
        ("2024_11_30", "2024_11_30_02"),
        ("t5-v1.1", "t5-v1.1_02"),
    ],
)
def test_a_name_that_is_taken_meanwhile_gets_a_number_and_keeps_its_ending(folder, name, free):
    def save(path, overwrite):
        with whole_file(path, overwrite=overwrite) as file:
            if path.name == name:
                write_text("other's", path)
            file.write(b"mine")

    assert under_free_name(folder / name, save, overwrite=False) == folder / free
    assert content(folder) == {name: b"other's", free: b"mine"}
    assert under_free_name(folder / free, save, overwrite=True) == folder / free


LONG = ("a" * 300, "é" * 200)
BAD_NAMES = (*LONG, "a\0b", "a\nb", "\udcff", "a:b", "what?", "dots.", "a ")


def test_a_name_that_no_file_can_have_is_one_sentence(tmp_path):
    for name in BAD_NAMES:
        assert fault_of_path(tmp_path / name)
        for place in (tmp_path / name, tmp_path / name / "x"):
            with pytest.raises(SaveError) as caught:
                write_text("x", place)
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 250
    assert os.listdir(tmp_path) == []
    assert not fault_of_path(tmp_path / "new" / ".." / "x")
    for name in ("a" * 255, "ä b.c"):
        assert not fault_of_path(tmp_path / name)
    (tmp_path / "what?").mkdir()  # a folder that is there may have any name
    (tmp_path / "file").touch()
    write_text("x", tmp_path / "what?" / "x")
    with pytest.raises(SaveError, match=r"what\? is a folder; choose another name"):
        write_text("x", tmp_path / "what?", overwrite=True)
    with pytest.raises(SaveError, match=r"x cannot be written: (Not a directory|File exists)"):
        write_text("x", tmp_path / "file" / "x")


@settings(max_examples=100)
@given(name=st.text(max_size=300))
def test_any_name_is_written_or_refused_never_anything_else(name):
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        place = Path(folder) / "in" / name.replace("/", "x")
        try:
            write_text("x", place)
        except SaveError as error:
            assert "\n" not in str(error)
            str(error).encode("utf-8")  # so that a terminal can show it
        else:
            assert place.read_text() == "x"
        assert {path.name for path in Path(folder).iterdir()} <= {"in"}


KILLED = 9
CHANGES = ("fsync", "link", "replace", "rename", "unlink", "mkdir", "makedirs")


class Steps:
    """Counts a writer's operations on files, and strikes before one of them, from 0 on."""

    def __init__(self, at=None, strike=lambda: None):
        self.at, self.strike, self.names = at, strike, []

    def reached(self, name):
        self.names.append(name)
        return len(self.names) - 1 == self.at

    def install(self, patch):
        for name in CHANGES:
            patch.setattr(os, name, self.counted(name, getattr(os, name)))
        opened = self.counted("open", partial(_File, self))
        patch.setattr(writing, "open", opened, raising=False)

    def counted(self, name, function):
        def call(*args, **kwargs):
            if self.reached(name):
                self.strike()
            return function(*args, **kwargs)

        return call


class _File(io.BufferedWriter):
    def __init__(self, steps, path, mode):
        super().__init__(io.FileIO(path, mode.replace("b", "")))
        self.steps = steps

    def write(self, data):
        data = bytes(data)
        if self.steps.reached("write"):  # a kill may come in the middle
            super().write(data[: len(data) // 2])
            self.flush()
            self.steps.strike()
            data = data[len(data) // 2 :]
        return super().write(data)


def disk_full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def kill():
    """End this process as a kill does: nothing is tidied up."""
    os._exit(KILLED)


def in_child(work):
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def save_a_file(place, value, overwrite):
    tensors = {name: torch.full((3,), value) for name in "ab"}
    write_tensors(tensors, place, {}, overwrite=overwrite)


OLD, NEW = 1.0, 2.0


@pytest.fixture
def expected(tmp_path):
    found = {}
    for value in (OLD, NEW):
        save_a_file(tmp_path / "expected", value, True)
        found[value] = content(tmp_path / "expected")
    return found


def struck(writer, folder, old, strike, monkeypatch):
    """Save anew with a strike at each operation in turn; yield each error or exit status."""
    at, steps = 0, Steps(0)
    while len(steps.names) >= at or strike is kill:  # which is counted in the child
        clear(folder)
        if old:
            writer(folder / "place", OLD, False)
        steps = Steps(at, strike)
        at += 1
        with monkeypatch.context() as patch:
            steps.install(patch)
            save = partial(writer, folder / "place", NEW, old)
            outcome = in_child(save) if strike is kill else error_of(save)
        yield outcome


def error_of(work):
    try:
        work()
    except SaveError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("old", [False, True], ids=["free", "overwrite"])
def test_a_kill_between_any_two_steps_leaves_the_old_or_the_new(old, expected, folder, monkeypatch):
    before = expected[OLD] if old else None
    replaced = []
    for status in struck(save_a_file, folder, old, kill, monkeypatch):
        assert status in (0, KILLED)
        assert content(folder / "place") in (before, expected[NEW])
        for listed in folder.rglob("*.safetensors"):  # ComfyUI lists all of them
            load_file(listed)
        replaced.append(content(folder / "place") == expected[NEW])
        if status == 0:
            break
    assert replaced == sorted(replaced)  # the old up to some step, and then the new
    assert replaced[0] is False
    assert len(replaced) > 8


@pytest.mark.parametrize("old", [False, True], ids=["free", "overwrite"])
def test_an_error_at_any_step_leaves_the_old_or_the_new_and_names_the_cause(
    old, expected, folder, monkeypatch
):
    said = []
    for error in struck(save_a_file, folder, old, disk_full, monkeypatch):
        states = (expected[OLD] if old else None, expected[NEW]) if error else (expected[NEW],)
        assert content(folder / "place") in states
        said += [error] * bool(error)
    assert len(said) >= 5
    full = f"{folder / 'place'} cannot be written: No space left on device; look at the room on the"
    assert all(error.startswith(full) for error in said)


@pytest.mark.parametrize("old", [False, True], ids=["free", "overwrite"])
def test_another_saver_at_any_step_loses_nothing(old, expected, folder, monkeypatch):
    """The other one saves the same name between two steps of this one."""

    def numbered(place, value, overwrite):
        save = partial(lambda path, may: save_a_file(path, value, may))
        under_free_name(place, save, overwrite=overwrite)

    both = list(expected.values())
    other = partial(numbered, folder / "place", OLD, old)
    for error in struck(numbered, folder, old, other, monkeypatch):
        assert error == ""
        found = [content(folder / name) for name in sorted(os.listdir(folder))]
        if old:
            assert len(found) == 1 and found[0] in both
        else:
            assert found in (both, both[::-1], [expected[NEW]])
            assert sorted(os.listdir(folder)) == ["place", "place_02"][: len(found)]


def test_what_is_given_a_name_is_on_the_disk_before(folder, monkeypatch):
    for old in (False, True):
        steps = Steps()
        with monkeypatch.context() as patch:
            steps.install(patch)
            save_a_file(folder / "place", NEW, old)
        names = steps.names
        named = max(i for i, name in enumerate(names) if name in ("link", "replace", "rename"))
        written = max((i for i, name in enumerate(names) if name == "write"), default=0)
        assert written < names.index("fsync") < named
