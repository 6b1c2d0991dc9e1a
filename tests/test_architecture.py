"""Which module may import which, and a few rules of style, read from the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from waiting import HANGS

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "iteris_core").rglob("*.py"))
NODES = sorted((ROOT / "nodes").rglob("*.py"))
HOST = {"comfy", "nodes", "folder_paths", "server", "execution", "comfy_api", "comfy_extras"}
HEAVY = {"diffusers", "transformers", "peft", "matplotlib", "typer", "rich", "websocket"}
# Each of these imports only itself and what stands before it.
CORE_ORDER = (
    "version",
    "errors",
    "svd",
    "progress",
    "settings",
    "config",
    "devices",
    "processes",
    "layers",
    "network",
    "adapters",
    "tasks",
    "files",
    "algebra",
    "rows",
    "report",
    "engines",
    "rivals",
    "merging",
    "diffusion",
    "language",
    "evaluation",
    "cli",
    "__init__",
)
# Likewise; what is not named is a node, and comes last.
NODES_ORDER = (
    "keys",
    "foreign",
    "page",
    "progress",
    "sockets",
    "words",
    "inputs",
    "host",
    "workflow",
    "pictures",
    "loras",
)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in [*CORE, *NODES]}


def imports(path: Path, *, everywhere: bool = True) -> Iterator[str]:
    """Yield what a file imports; see `imported_names`."""
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    return imported_names(path.read_text(encoding="utf-8"), package, everywhere=everywhere)


def imported_names(source: str, package: str, *, everywhere: bool = True) -> Iterator[str]:
    """Yield the dotted names that a module of a package imports, those of this project after a dot:
    ``.nodes.host`` is ours, ``nodes`` is not.

    A `from` import yields one name per imported thing.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree) if everywhere else at_import_time(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = (
                ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level])
                if node.level
                else ""
            )
            base = "." * bool(node.level) + ".".join(filter(None, [start, node.module]))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what runs when the module is imported: not into functions, and not into `if
    TYPE_CHECKING`.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from at_import_time(child)


def top(name: str) -> str:
    """Return the library of a name; nothing for ours."""
    return name.partition(".")[0]


def ours(path: Path) -> set[str]:
    """Return which modules of this project a file imports, wherever in it."""
    found = set()
    for imported in imports(path):
        name = imported[1:] if imported.startswith(".") else ""
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {"", name_of(path)}


def test_the_reader_reads_every_way_to_import():
    source = """
import a.b, c
from . import d
from ..e import f
class X:
    import g
def h():
    import i
if TYPE_CHECKING:
    import j
if x:
    import k
try:
    import l
except ImportError:
    pass
"""
    package = "iteris_core.diffusion"
    everything = {"a.b", "c", f".{package}.d", ".iteris_core.e.f", *"gijkl"}
    assert set(imported_names(source, package)) == everything
    assert set(imported_names(source, package, everywhere=False)) == everything - {"i", "j"}


def test_the_reader_finds_the_files():
    assert len(CORE) > 15
    assert len(NODES) > 4


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_knows_no_host(path):
    assert HOST.isdisjoint(map(top, imports(path)))


@pytest.mark.parametrize("path", NODES, ids=name_of)
def test_only_one_package_touches_the_insides_of_the_host(path):
    forbidden = HOST - {"comfy_api"} if path.parent.name != "host" else set()
    assert forbidden.isdisjoint(map(top, imports(path)))


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_heavy_libraries_are_imported_where_they_are_needed(path):
    if room(name_of(path)) == "cli":
        pytest.skip("a face of its own, which nothing below it imports")
    assert HEAVY.isdisjoint(map(top, imports(path, everywhere=False)))
    if room(name_of(path)) not in (
        "files",
        "diffusion",
        "language",
        "evaluation",
    ) and "plots" not in name_of(path):
        assert HEAVY.isdisjoint(map(top, imports(path)))


def room(name: str) -> str:
    """Return the package, or the module, in which a dotted name lies, below iteris_core or
    nodes.
    """
    return [*name.split("."), "__init__"][1]


def floor(name: str) -> int:
    """Return how far down a module's room stands in the order of its package."""
    if name.startswith("iteris_core"):
        return CORE_ORDER.index(room(name))
    order = (*NODES_ORDER, room(name))
    return order.index(room(name)) + (room(name) == "__init__")


@pytest.mark.parametrize("path", [*CORE, *NODES], ids=name_of)
def test_nothing_imports_upwards(path):
    package = name_of(path).split(".")[0]
    higher = {
        name
        for name in ours(path)
        if name.startswith(package) and floor(name) > floor(name_of(path))
    }
    assert higher == set()


def test_the_order_names_what_is_there():
    assert {room(name) for name in MODULES if name.startswith("iteris_core")} == set(CORE_ORDER)
    assert set(NODES_ORDER) < {room(name) for name in MODULES if name.startswith("nodes")}


def test_no_circle_of_imports():
    graph = {
        name: ours(path) - {"iteris_core"}
        for name, path in MODULES.items()
        if name != "iteris_core"
    }
    assert list(
        TopologicalSorter(graph).static_order()
    )  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", [*CORE, *NODES], ids=name_of)
def test_imports_of_this_project_are_relative(path):
    assert {"iteris_core", "nodes"}.isdisjoint(map(top, imports(path)))


@pytest.mark.parametrize("path", [*CORE, *NODES], ids=name_of)
def test_an_assignment_says_one_thing(path):
    """`a, b = x, y` is for values that change places; two things are two lines."""
    packed = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Tuple)
        and isinstance(node.value, ast.Tuple)
        and names_in(node.targets[0]).isdisjoint(names_in(node.value))
    ]
    assert packed == []


def names_in(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def test_importing_the_core_costs_torch_only():
    code = (
        "import sys, iteris_core.diffusion.merging, iteris_core.files.kohya, iteris_core.files.tensors;"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HANGS
    )
    loaded = set(done.stdout.split())
    assert {"torch", "iteris_core"} <= loaded
    assert loaded.isdisjoint(HEAVY | HOST)


def test_the_hosts_entry_point_imports_nothing_of_ours_at_import_time():
    assert set(map(top, imports(ROOT / "__init__.py", everywhere=False))) == {"logging"}


def test_the_public_names_are_the_ones_that_type_checkers_see():
    import iteris_core

    tree = ast.parse((ROOT / "iteris_core" / "__init__.py").read_text(encoding="utf-8"))
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in typed.body for alias in node.names}
    assert seen == iteris_core._MODULE_OF
    for name in iteris_core.__all__:
        assert getattr(iteris_core, name).__module__ == f"iteris_core.{seen[name]}"
    with pytest.raises(AttributeError, match="module 'iteris_core' has no attribute 'nothing'"):
        _ = iteris_core.nothing
