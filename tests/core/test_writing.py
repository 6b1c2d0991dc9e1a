"""Files and folders are there whole or not at all, whatever happens while they are written."""

import errno
import os
import re
import resource
import shutil
import stat
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch
from file_steps import KILLED, Steps, disk_full, in_child, kill, together
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from small_disk import small_disk

from iteris_core import Adapter, IterisError, LowRankDelta, NameTakenError, SaveError
from iteris_core.files import drafts, peft, writing
from iteris_core.files.writing import (
    FolderKind,
    append_text,
    fault_of_name,
    free_name,
    under_free_name,
    whole_file,
    whole_folder,
    write_tensors,
    write_text,
)
from iteris_core.language.merged_model import save_merged_model

ANY = FolderKind("anything", is_one=bool, owns=bool)
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}


# --- what is written ---


def test_what_is_written_can_be_read(tmp_path):
    path = tmp_path / "new folder" / "x.safetensors"
    write_tensors(TENSORS, path, {"ss_title": "x"})
    found = load_file(path)
    assert all(torch.equal(found[key], tensor) for key, tensor in TENSORS.items())
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "ss_title": "x"}
    assert os.listdir(path.parent) == ["x.safetensors"]
    # as other programs' files, not hidden from other users as a temporary file is
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_file_that_is_there_is_not_replaced_unless_asked(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(
        FileExistsError,
        match=r"x\.safetensors exists already; choose another name, or allow overwriting",
    ):
        write_tensors(TENSORS, path, {})
    assert path.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["x.safetensors"]
    write_tensors(TENSORS, path, {}, overwrite=True)
    assert set(load_file(path)) == {"a", "b"}
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_a_link_to_nowhere_is_a_name_that_is_taken(tmp_path):
    (tmp_path / "x").symlink_to(tmp_path / "nowhere")
    with pytest.raises(NameTakenError):
        write_text("new", tmp_path / "x")
    saved = under_free_name(
        tmp_path / "x", lambda path, overwrite: write_text("new", path), overwrite=False
    )
    assert saved == tmp_path / "x_02"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_has_its_name_only_when_it_is_whole(tmp_path, overwrite):
    path = tmp_path / "x.safetensors"
    if overwrite:
        path.write_bytes(b"old")
    seen = []

    def look(draft):
        seen.append(set(load_file(draft)))
        assert draft.suffix == ".part"  # ComfyUI lists files by their suffix
        assert not path.exists() or path.read_bytes() == b"old"

    write_tensors(TENSORS, path, {}, overwrite=overwrite, check=look)
    assert seen == [{"a", "b"}]
    assert set(load_file(path)) == {"a", "b"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("error", [IterisError("bad"), KeyboardInterrupt(), MemoryError()])
def test_an_error_in_the_middle_leaves_nothing(tmp_path, overwrite, error):
    path = tmp_path / "x"
    if overwrite:
        path.write_bytes(b"precious")
    with pytest.raises(type(error)), whole_file(path, overwrite=overwrite) as file:
        file.write(b"half")
        raise error
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == (
        {"x": b"precious"} if overwrite else {}
    )


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch, code):
    def no_links(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "x.safetensors"
    write_tensors(TENSORS, path, {})
    taken = partial(write_text, "other", path, overwrite=True)
    with pytest.raises(FileExistsError, match="exists already"):
        write_tensors({"c": torch.ones(1)}, path, {})
    path.unlink()
    with pytest.raises(FileExistsError, match="exists already"):
        write_tensors(TENSORS, path, {}, check=lambda draft: taken())
    assert path.read_text() == "other"
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("code", [errno.EBADF, errno.EACCES, errno.EINVAL])
def test_a_disk_that_sends_no_names_of_folders_will_do(tmp_path, monkeypatch, code):
    """What has its name is saved, whether its folder can be sent to the disk or not."""
    sync = os.fsync

    def no_folders(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        sync(handle)

    monkeypatch.setattr(os, "fsync", no_folders)
    write_text("x", tmp_path / "new" / "x.txt")
    assert (tmp_path / "new" / "x.txt").read_text() == "x"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_cannot_be_replaced_is_an_error_and_no_endless_try(
    tmp_path, monkeypatch, overwrite
):
    """As the volume of a container, if it is not seen as one."""
    folder = tmp_path / "out"
    folder.mkdir()

    def unless_busy(plain):
        def run(*places, **options):
            if folder in map(Path, places):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            plain(*places, **options)

        return run

    monkeypatch.setattr(os, "rename", unless_busy(os.rename))
    monkeypatch.setattr(os, "rmdir", unless_busy(os.rmdir))
    monkeypatch.setattr(writing, "_exchange", lambda one, other: False)
    with pytest.raises(SaveError), whole_folder(folder, ANY, overwrite=overwrite) as draft:
        draft.add_text("x", "x")


def test_where_a_disk_begins_no_folder_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path)
    with pytest.raises(NameTakenError, match="choose a folder in it"):
        writing.check_replaceable(tmp_path, ANY, overwrite=True)


def test_a_disk_that_tells_no_two_files_apart_is_one_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "samestat", lambda one, other: False)
    write_text("x", tmp_path / "x.txt")
    assert os.listdir(tmp_path) == ["x.txt"]


def test_a_name_that_is_taken_meanwhile_gets_a_number(tmp_path):
    wanted = tmp_path / "x.txt"

    def save(path, overwrite):
        with whole_file(path, overwrite=overwrite) as file:
            if path == wanted:
                write_text("other's", wanted)
            file.write(b"mine")

    (tmp_path / "x_02.txt").touch()
    assert under_free_name(wanted, save, overwrite=False) == tmp_path / "x_03.txt"
    assert wanted.read_text() == "other's"
    assert (tmp_path / "x_03.txt").read_text() == "mine"


# --- names ---


@pytest.mark.parametrize(
    ("name", "free"),
    [
        ("a.safetensors", "a_02.safetensors"),
        ("t5-v1.1", "t5-v1.1_02"),
        ("a" * 243 + ".safetensors", "a" * 240 + "_02.safetensors"),
        ("é" * 127, "é" * 126 + "_02"),
    ],
)
def test_the_next_number_keeps_the_ending_and_fits_the_disk(tmp_path, name, free):
    found = free_name(tmp_path / name)
    assert found.name == free
    assert len(os.fsencode(found.name)) <= 255


def test_a_name_that_no_file_can_have_is_one_sentence(tmp_path):
    for name in (
        "a" * 300,
        "é" * 200,
        "a\0b",
        "a\nb",
        "\udcff",
        "CON",
        "nul.safetensors",
        "Com1.x.y",
        "a:b",
        "what?",
        "dots.",
        "a ",
    ):
        assert fault_of_name(name)
        for place in (tmp_path / name, tmp_path / name / "x"):
            with pytest.raises(SaveError) as caught:
                write_text("x", place)
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 200
            with pytest.raises(SaveError), whole_folder(place, ANY):
                pass
    assert not writing.fault_of_path(tmp_path / "new" / ".." / "x")
    for name in ("a" * 255, "console.safetensors", "com.safetensors", "nul_02", "ä b.c"):
        assert not fault_of_name(name)
    assert os.listdir(tmp_path) == []


@settings(max_examples=200)
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


def test_a_folder_that_is_there_may_have_any_name(tmp_path):
    (tmp_path / "aux").mkdir()
    write_text("x", tmp_path / "aux" / "x")
    assert (tmp_path / "aux" / "x").read_text() == "x"


def test_a_folders_name_and_a_file_among_the_folders_are_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(SaveError, match="folder is a folder; choose another name"):
        write_text("x", tmp_path / "folder", overwrite=True)
    with pytest.raises(SaveError, match="a part of its path is a file"):
        write_text("x", tmp_path / "file" / "x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


# --- writers, old and new, for the tests below ---


@pytest.fixture
def folder(tmp_path):
    """An empty folder, in memory where that can be: these tests write very often."""
    with tempfile.TemporaryDirectory(dir=MEMORY or tmp_path) as name:
        yield Path(name)


def adapter(value):
    return Adapter("x", {"q": LowRankDelta(torch.full((3, 1), value), torch.ones(1, 2))})


class Model(torch.nn.Module):
    """Saves itself in two files, as large models of transformers do."""

    def __init__(self, value):
        super().__init__()
        self.q = torch.nn.Linear(2, 3, bias=False)
        self.q.weight.data.fill_(value)

    def save_pretrained(self, folder):
        (folder / "config.json").write_text('{"model_type": "toy"}')
        for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
            (folder / name).write_bytes(str(self.q.weight.data[0, 0].item()).encode())


def save_folder(place, value, overwrite):
    peft.save(adapter(value), place, "base", None, overwrite=overwrite)


def save_model(place, value, overwrite):
    model = Model(value - 1)
    save_merged_model(model, adapter(1.0), place, kinds=["toy"], overwrite=overwrite)


def save_file(place, value, overwrite):
    write_tensors(
        {"a": torch.full((3,), value), "b": torch.full((3,), value)}, place, {}, overwrite=overwrite
    )


def content(place):
    """Return all that can be seen of a place."""
    if not place.is_dir():
        return place.read_bytes() if place.exists() else None
    return {path.name: path.read_bytes() for path in place.iterdir()}


WRITERS = {"file": save_file, "PEFT folder": save_folder, "whole model": save_model}
OLD, NEW = 1.0, 2.0


@pytest.fixture(params=WRITERS)
def writer(request):
    return WRITERS[request.param]


@pytest.fixture(params=["free", "overwrite", "overwrite without exchange"])
def way(request, monkeypatch):
    """Whether there is something to overwrite, and whether the disk can exchange two names."""
    if request.param.endswith("without exchange"):
        monkeypatch.setattr(writing, "_exchange", lambda one, other: False)
    return request.param


@pytest.fixture
def expected(writer, tmp_path):
    """What the old and the new look like."""
    found = {}
    for value in (OLD, NEW):
        writer(tmp_path / "expected", value, True)
        found[value] = content(tmp_path / "expected")
    return found


def hidden(folder):
    return [name for name in os.listdir(folder) if name.startswith(".")]


def clear(place):
    shutil.rmtree(place, ignore_errors=True)
    place.unlink(missing_ok=True)


def test_a_kill_between_any_two_steps_leaves_the_old_or_the_new(
    writer, way, expected, folder, monkeypatch
):
    """And nothing else, after the next save in that folder."""
    place = folder / "place"
    old = None if way == "free" else expected[OLD]
    replaced, status = [], KILLED
    while status == KILLED:
        clear(place)
        if old:
            writer(place, OLD, False)
        with monkeypatch.context() as patch:
            Steps(len(replaced), kill).install(patch)
            status = in_child(lambda: writer(place, NEW, bool(old)))
        assert status in (0, KILLED)
        # without an exchange there is one moment with neither, for which the next save makes up
        assert content(place) in (old, expected[NEW], *[None] * ("without" in way))
        if writer is save_folder:  # ComfyUI lists all of them, in whatever folder
            for listed in folder.rglob("*.safetensors"):
                load_file(listed)
        write_text("next", folder / "next", overwrite=True)
        assert hidden(folder) == []
        assert content(place) in (old, expected[NEW])
        replaced.append(content(place) == expected[NEW])
    assert replaced == sorted(replaced)  # the old up to some step, and then the new
    assert replaced[0] is False
    assert len(replaced) > 10


def test_an_error_at_any_step_leaves_the_old_or_the_new_and_names_the_cause(
    writer, way, expected, folder, monkeypatch
):
    place = folder / "place"
    old = None if way == "free" else expected[OLD]
    said, at, steps = [], 0, Steps(0)
    while len(steps.names) >= at:
        clear(place)
        if old:
            writer(place, OLD, False)
        steps = Steps(at, disk_full)
        at += 1
        with monkeypatch.context() as patch:
            steps.install(patch)
            try:
                writer(place, NEW, bool(old))
            except SaveError as error:
                said.append(str(error))
                assert content(place) in (old, expected[NEW])
            else:
                assert content(place) == expected[NEW]
        write_text("next", folder / "next", overwrite=True)
        assert hidden(folder) == []
    assert len(said) > 5
    assert set(said) == {
        f"{place} cannot be written: the disk is full; free some room, or save to another disk"
    }


def test_what_has_a_name_is_on_the_disk_before_and_after(writer, way, folder):
    """A power cut is as harmless as a kill: content first, then the name."""
    place = folder / "place"
    if way != "free":
        writer(place, OLD, False)
    steps = Steps()
    with pytest.MonkeyPatch.context() as patch:
        steps.install(patch)
        writer(place, NEW, way != "free")
    names = steps.names
    named = max(
        i for i, name in enumerate(names) if name in ("link", "replace", "rename", "exchange")
    )
    written = max((i for i, name in enumerate(names) if name == "write"), default=0)
    assert written < names.index("fsync") < named
    assert "fsync" in names[named:]


# --- what killed writers left ---


def leave(folder):
    """Kill a writer, which leaves a draft and its lock."""

    def work():
        with whole_file(folder / "killed") as file:
            file.write(b"half")
            kill()

    assert in_child(work) == KILLED
    assert {Path(left).suffix for left in hidden(folder)} == {".lock", ".part"}


def test_a_draft_of_a_living_process_stays(folder):
    """Of another one, and of this one."""
    ready, go = os.pipe(), os.pipe()

    def write():
        with whole_file(folder / "slow") as file:
            file.write(b"slow")
            os.write(ready[1], b"x")
            os.read(go[0], 1)

    child = os.fork()
    if not child:
        os.close(go[1])
        status = 1
        try:
            write()
            status = 0
        finally:
            os._exit(status)
    try:
        os.read(ready[0], 1)
        (lock,) = folder.glob(".*.lock")
        os.utime(lock, (lock.stat().st_mtime - 25 * 3600,) * 2)  # it has been at work for a day
        with whole_file(folder / "outer") as file:
            write_text("quick", folder / "quick")
            file.write(b"outer")
        assert len(hidden(folder)) == 2
    finally:
        os.close(go[1])  # and the child goes on
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        name: name for name in ("slow", "quick", "outer")
    }


def test_a_lock_that_was_taken_for_a_leftover_is_made_anew(folder, monkeypatch):
    """Another saver came after it was made, and before it was locked."""
    steps = Steps()
    with monkeypatch.context() as patch:
        steps.install(patch)
        write_text("x", folder / "first")
    steps = Steps(steps.names.index("flush"), lambda: write_text("x", folder / "between"))
    with monkeypatch.context() as patch:
        steps.install(patch)
        with whole_file(folder / "second") as file:
            assert {Path(name).suffix for name in hidden(folder)} == {".lock", ".part"}
            file.write(b"x")
    assert sorted(os.listdir(folder)) == ["between", "first", "second"]


@pytest.mark.parametrize("why", ["another machine's", "a disk without locks"])
def test_where_locks_tell_nothing_a_draft_is_left_for_a_day(folder, monkeypatch, why):
    leave(folder)
    if why == "another machine's":
        monkeypatch.setattr(drafts.platform, "node", lambda: "another")
    else:
        monkeypatch.setattr(drafts, "_lock", lambda file: None)
    write_text("x", folder / "x")
    assert len(hidden(folder)) == 2
    (lock,) = folder.glob(".*.lock")
    os.utime(lock, (lock.stat().st_mtime - 25 * 3600,) * 2)
    write_text("x", folder / "y")
    assert hidden(folder) == []


def test_only_our_own_leftovers_are_removed(folder):
    leave(folder)
    others = {".iteris", ".iteris-x.part", ".x-8f2.part", "a.part", ".hidden.lock"}
    for name in others:
        (folder / name).touch()
    write_text("x", folder / "x")
    assert set(os.listdir(folder)) == others | {"x"}


def test_a_strangers_lock_moves_nothing_out_of_the_folder(folder):
    start = drafts.HiddenNames.new(folder / "in")
    (folder / "in").mkdir()
    start.old.mkdir()
    start.lock.write_text("../out")
    write_text("x", folder / "in" / "x")
    assert os.listdir(folder) == ["in"]
    assert hidden(folder / "in") == []


# --- the disk says no ---


@pytest.fixture(name="small_disk")
def disk_of_64_kib(tmp_path):
    with small_disk(tmp_path / "disk", "64k") as disk:
        yield disk


LARGE = 40_000.0  # bytes; two of them are more than the disk has


def save_large_file(place, overwrite):
    write_tensors({"a": torch.zeros(int(LARGE / 4))}, place, {}, overwrite=overwrite)


def save_large_folder(place, overwrite):
    delta = LowRankDelta(torch.zeros(int(LARGE / 4), 1), torch.zeros(1, 2))
    peft.save(Adapter("x", {"q": delta}), place, "base", None, overwrite=overwrite)


def save_large_model(place, overwrite):
    """It is safetensors that writes here, and its error is no OSError."""
    from safetensors.torch import save_file

    class Large(torch.nn.Linear):
        def save_pretrained(self, folder):
            (folder / "config.json").write_text('{"model_type": "toy"}')
            save_file({"a": torch.zeros(int(LARGE / 4))}, folder / "model.safetensors")

    save_merged_model(Large(2, 2), Adapter("x", {}), place, kinds=["toy"], overwrite=overwrite)


@pytest.mark.parametrize("save", [save_large_file, save_large_folder, save_large_model])
def test_a_full_disk_is_one_sentence_and_the_old_is_whole(small_disk, save):
    place = small_disk / "place"
    save(place, False)
    before = content(place)
    with pytest.raises(SaveError, match=r"cannot be written: .*(the disk is full|No space left)"):
        save(place, True)
    assert content(place) == before
    assert os.listdir(small_disk) == ["place"]
    with pytest.raises(SaveError):
        save(small_disk / "other", False)
    assert os.listdir(small_disk) == ["place"]


def test_a_read_only_disk_is_one_sentence(small_disk):
    write_text("old", small_disk / "x")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(SaveError, match="x cannot be written: the disk is read-only"):
        write_text("new", small_disk / "x", overwrite=True)
    assert (small_disk / "x").read_text() == "old"


@pytest.mark.parametrize("save", [save_large_file, save_large_folder, save_large_model])
def test_a_file_that_is_too_large_is_one_sentence(folder, save):
    """As on a full disk, but it needs no disk of its own."""

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(LARGE / 2),) * 2)
        with pytest.raises(SaveError, match=r"cannot be written: .*(larger than|File too large)"):
            save(folder / "place", True)

    save(folder / "place", False)
    before = content(folder / "place")
    assert in_child(work) == 0
    assert content(folder / "place") == before
    assert os.listdir(folder) == ["place"]


# --- two at once ---


@pytest.mark.parametrize("round", range(3))
def test_two_savers_of_one_name_both_succeed_with_overwrite(writer, way, expected, folder, round):
    place = folder / "place"
    if way != "free":
        writer(place, OLD, False)
    assert together(*[lambda value=value: writer(place, value, True) for value in (OLD, NEW)]) == [
        0,
        0,
    ]
    assert content(place) in expected.values()
    assert os.listdir(folder) == ["place"]


@pytest.mark.parametrize("round", range(3))
def test_two_savers_of_one_name_both_have_a_file_without_overwrite(writer, expected, folder, round):
    place = folder / "place"

    def save(value):
        under_free_name(
            place, lambda path, overwrite: writer(path, value, overwrite), overwrite=False
        )

    assert together(*[lambda value=value: save(value) for value in (OLD, NEW)]) == [0, 0]
    assert sorted(os.listdir(folder)) == ["place", "place_02"]
    found = [content(folder / name) for name in ("place", "place_02")]
    assert found in (list(expected.values()), list(expected.values())[::-1])


def test_another_saver_at_any_step_loses_nothing(writer, way, expected, folder, monkeypatch):
    """The other one saves the same name between two steps of this one."""
    overwrite = way != "free"
    place = folder / "place"

    def save(value):
        under_free_name(
            place, lambda path, may_replace: writer(path, value, may_replace), overwrite=overwrite
        )

    at, steps = 0, Steps(0)
    while len(steps.names) >= at:
        for path in folder.iterdir():
            clear(path)
        if "without" in way:
            writer(place, OLD, False)
        steps = Steps(at, lambda: save(OLD))
        at += 1
        with monkeypatch.context() as patch:
            steps.install(patch)
            save(NEW)
        names = sorted(os.listdir(folder))
        found = [content(folder / name) for name in names]
        if overwrite:
            assert names == ["place"]
            assert found[0] in expected.values()
        elif len(steps.names) >= at:
            assert names == ["place", "place_02"]
            assert found in (list(expected.values()), list(expected.values())[::-1])
    assert at > 10


# --- records that grow ---


def test_lines_are_added_to_a_record(tmp_path):
    for line in ("a\n", "b\n"):
        append_text(line, tmp_path / "new" / "x")
    assert (tmp_path / "new" / "x").read_text() == "a\nb\n"
    with pytest.raises(SaveError, match="a folder has this name"):
        append_text("a", tmp_path)


# --- one room ---

OPENS_FOR_WRITING = re.compile(
    r"""open\([^)]*["'][rb+t]*[wax]|\.write_(text|bytes)\(|save_file\(|savefig\(|imsave\("""
    r"|os\.(rename|replace|link)\(|torch\.save\("
)


def test_nothing_else_writes():
    root = Path(writing.__file__).parents[2]
    sources = [*(root / "iteris_core").rglob("*.py"), *(root / "nodes").rglob("*.py")]
    assert len(sources) > 100
    writers = {
        path.relative_to(root).as_posix()
        for path in sources
        if OPENS_FOR_WRITING.search(path.read_text(encoding="utf-8"))
    }
    assert writers == {
        "iteris_core/files/writing.py",
        "iteris_core/files/drafts.py",
    }
