"""What the code never does, read from the source: it runs no text and no other program, opens no
connection and no pickle. The exceptions are listed with their reasons.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    [ROOT / "__init__.py", *(ROOT / "iteris_core").rglob("*.py"), *(ROOT / "nodes").rglob("*.py")]
)
BUILTINS = {"eval", "exec", "compile", "__import__"}
MODULES = {
    *("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "ctypes", "multiprocessing"),
    *("subprocess", "pty", "socket", "ssl", "socketserver", "asyncio", "http", "urllib", "ftplib"),
    *("smtplib", "xmlrpc", "requests", "httpx", "aiohttp", "websocket", "huggingface_hub", "runpy"),
}
CALLS = {
    *("os.system", "os.popen", "os.startfile", "os.fork", "os.posix_spawn", "builtins.eval"),
    *("torch.load", "torch.save", "torch.hub.load", "numpy.load", "np.load", "yaml.load"),
}
STARTS = ("os.exec", "os.spawn", "torch.jit.", "torch.package.", "torch.utils.cpp_extension.")
TRUE = {"shell", "trust_remote_code", "allow_pickle"}  # arguments that are never true

# file -> what it may, and why
ALLOWED = {
    "iteris_core/cli/demo/client.py": (
        {"urllib", "websocket"},
        "talks to the ComfyUI that the demo has started",
    ),
    "iteris_core/cli/demo/server.py": (
        {"socket", "subprocess", "urllib"},
        "fetches ComfyUI by pip, starts it on a free port, and asks whether it answers",
    ),
    "iteris_core/cli/terminal.py": (
        {"__import__"},
        "makes two libraries of fixed names quiet",
    ),
    "iteris_core/files/writing.py": (
        {"ctypes"},
        "calls the C library to exchange two names in one step, which Python cannot",
    ),
    "nodes/host/server.py": (
        {"aiohttp", "asyncio"},
        "adds a route to ComfyUI's server, and reads a file beside its loop",
    ),
}


def name_of(node: ast.AST) -> str:
    """Return a dotted name as it is written; nothing for other expressions."""
    if isinstance(node, ast.Attribute):
        before = name_of(node.value)
        return f"{before}.{node.attr}" if before else ""
    return node.id if isinstance(node, ast.Name) else ""


def found_in(source: str) -> Iterator[str]:
    """Yield what a source does of that which it should not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ({alias.name.partition(".")[0] for alias in node.names} & MODULES)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from {(node.module or "").partition(".")[0]} & MODULES
            yield from forbidden({f"{node.module}.{alias.name}" for alias in node.names})
        elif isinstance(node, ast.Name):
            yield from {node.id} & BUILTINS
        elif isinstance(node, ast.Attribute):
            yield from forbidden({name_of(node)})
        elif isinstance(node, ast.keyword) and node.arg in TRUE:
            never = isinstance(node.value, ast.Constant) and not node.value.value
            yield from set() if never else {node.arg}


def forbidden(names: set[str]) -> set[str]:
    return {name for name in names if name in CALLS or name.startswith(STARTS)}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_does_nothing_of_the_kind(path):
    allowed, _reason = ALLOWED.get(relative(path), (set(), ""))
    assert set(found_in(path.read_text(encoding="utf-8"))) == allowed


def test_every_exception_is_a_file():
    assert set(ALLOWED) <= {relative(path) for path in FILES}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("eval('1')", {"eval"}),
        ("f = exec", {"exec"}),
        ("compile(text, '', 'exec')", {"compile"}),
        ("import os\nos.system('ls')", {"os.system"}),
        ("from os import system", {"os.system"}),
        ("import os\nos.execvp('ls', [])", {"os.execvp"}),
        ("import torch\ntorch.load(path)", {"torch.load"}),
        ("from torch import load", {"torch.load"}),
        ("import pickle as p", {"pickle"}),
        ("from urllib.request import urlopen", {"urllib"}),
        ("def f():\n    import subprocess", {"subprocess"}),
        ("run(line, shell=True)", {"shell"}),
        ("load(name, trust_remote_code=asked)", {"trust_remote_code"}),
        ("model.eval(); re.compile('x'); load(name, trust_remote_code=False)", set()),
        ("from .socket import a; from .. import http", set()),
    ],
)
def test_the_reader_finds_each_kind(source, found):
    assert set(found_in(source)) == found
