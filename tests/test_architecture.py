"""Who may import whom, and what no file does, read from the source."""

import ast
import importlib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOST = {"comfy", "nodes", "folder_paths", "server", "execution", "comfy_api", "comfy_extras"}
# Each of these imports only itself and what comes before it.
_CORE = """version errors progress settings config memory devices svd processes layers
    network adapters tasks base_models files algebra rows report engines rivals merging diffusion
    language cli __init__"""
CORE_ORDER = _CORE.split()
# Likewise; what is not named is a node, and comes last.
_NODES = "words keys foreign progress workflow host sockets validation pictures loras"
NODES_ORDER = _NODES.split()
RUNS_TEXT = {"eval", "exec", "compile", "__import__"}
_LIGHT = """__future__ abc collections contextlib contextvars copy dataclasses difflib errno fnmatch
    functools hashlib importlib inspect io itertools json logging math numbers operator os pathlib
    random re secrets stat statistics string struct sys tempfile threading time types typing
    unicodedata uuid warnings weakref zlib greenlet psutil pydantic safetensors torch
    typing_extensions"""
LIGHT = {*_LIGHT.split()}
HEAVY = {"PIL", "diffusers", "rich", "scipy", "transformers", "typer"}
ALSO = {"nodes.host.server": {"aiohttp", "asyncio"}, "nodes.host.folders": {"comfyui_version"}}
# Of what is allowed: pickles, code that is fetched or compiled, and programs that are started.
NEVER = {
    *("torch.load", "torch.save", "torch.hub", "torch.jit", "torch.package"),
    *("torch.utils.cpp_extension", "os.fork", "os.posix_spawn", "os.startfile"),
}
MAY_RUN_TEXT = {"iteris_core.cli.terminal"}  # imports two libraries of fixed names, made quiet


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


PATHS = {
    name_of(path): path for top in ("iteris_core", "nodes") for path in (ROOT / top).rglob("*.py")
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in PATHS.items()}


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Yield what a module imports, wherever in it; ``.nodes.host`` is ours, ``nodes`` is not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")
            start = above[: len(above) + 1 - node.level] if node.level else []
            base = "." * bool(node.level) + ".".join([*start, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def package_of(name: str) -> str:
    return name if PATHS[name].name == "__init__.py" else name.rpartition(".")[0]


IMPORTS = {name: set(imported(tree, package_of(name))) for name, tree in TREES.items()}
LIBRARIES = {name: {found.partition(".")[0] for found in all_} for name, all_ in IMPORTS.items()}


def ours(name: str) -> set[str]:
    found = set()
    for reached in IMPORTS[name]:
        module = reached[1:] if reached.startswith(".") else ""
        while module and module not in TREES:
            module = module.rpartition(".")[0]
        found.add(module)
    return found - {"", name}


def room(name: str) -> str:
    """Return the package, or the module, of a dotted name below iteris_core or nodes."""
    return [*name.split("."), "__init__"][1]


def floor(name: str) -> int:
    """Return the place of a module's room in the order of its package."""
    if name.startswith("iteris_core"):
        return CORE_ORDER.index(room(name))
    order = [*NODES_ORDER, room(name)]
    return order.index(room(name)) + (room(name) == "__init__")


def test_the_core_knows_no_host_and_only_one_package_of_the_nodes_touches_its_insides():
    for name, found in LIBRARIES.items():
        allowed = {"comfy_api"} if name.startswith("nodes") else set()
        if not name.startswith("nodes.host"):
            assert found & HOST <= allowed, name


def test_nothing_imports_upwards():
    for name in TREES:
        package = name.split(".")[0]
        higher = {
            module
            for module in ours(name)
            if module.startswith(package) and floor(module) > floor(name)
        }
        assert higher == set(), name


def test_the_order_names_what_is_there():
    assert {room(name) for name in TREES if name.startswith("iteris_core")} == set(CORE_ORDER)
    assert set(NODES_ORDER) < {room(name) for name in TREES if name.startswith("nodes")}


def test_no_circle_of_imports():
    graph = {name: ours(name) - {"iteris_core"} for name in TREES if name != "iteris_core"}
    assert list(TopologicalSorter(graph).static_order())  # CycleError names the circle


def test_imports_of_this_project_are_relative():
    """The folder is also a checkout in `custom_nodes`, under any name."""
    for name, found in LIBRARIES.items():
        assert not found & {"iteris_core", "nodes"}, name


def test_no_file_runs_a_text():
    for name in TREES.keys() - MAY_RUN_TEXT:
        for node in ast.walk(TREES[name]):
            assert not (isinstance(node, ast.Name) and node.id in RUNS_TEXT), (name, node.lineno)
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant) and not node.value.value, name


def top_level(tree: ast.Module) -> ast.Module:
    """Return what runs when a module is imported, without what type checkers alone read."""
    kept = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If)
    return ast.Module([node for node in tree.body if not isinstance(node, kept)], [])


def test_only_libraries_on_the_list_are_imported_and_heavy_ones_where_they_are_used():
    """None of them opens a connection, starts a program or reads a pickle."""
    for name, found in LIBRARIES.items():
        allowed = LIGHT | HEAVY | HOST | ALSO.get(name, set())
        assert found - {""} <= allowed, name
        if not name.startswith(("iteris_core.cli", "nodes.host")):
            first = {library.partition(".")[0] for library in imported(top_level(TREES[name]), "")}
            assert first - {""} <= LIGHT | {"comfy_api"}, name


def test_of_these_libraries_nothing_is_used_that_runs_what_it_is_given():
    for name, tree in TREES.items():
        used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        reached = {".".join(found.split(".")[:3]) for found in used | IMPORTS[name]}
        assert not NEVER & (reached | {".".join(found.split(".")[:2]) for found in reached}), name


def test_the_public_names_are_the_ones_that_type_checkers_see():
    import iteris_core

    (typed,) = (node for node in TREES["iteris_core"].body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in typed.body for alias in node.names}
    assert seen == iteris_core._MODULE_OF
    for name in iteris_core.__all__:
        module = importlib.import_module(f"iteris_core.{seen[name]}")
        assert getattr(iteris_core, name) is getattr(module, name)
    with pytest.raises(AttributeError, match="module 'iteris_core' has no attribute 'nothing'"):
        _ = iteris_core.nothing
