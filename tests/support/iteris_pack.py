"""The repository as ComfyUI loads it: one package, with `nodes` and `iteris_core` inside.

    from iteris_pack.nodes.loras import names

What follows `iteris_pack` is a path in this repository. `iteris_pack.iteris_core` is `iteris_core`
itself, so that both names give the same types. What the nodes import of ComfyUI is in `comfy_stub`,
even where a real one could be imported: that would look for a GPU, and differ by its version.
"""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path

ROOT = Path(__file__).parents[2]
__path__ = [str(ROOT)]


class SharedCore(MetaPathFinder, Loader):
    """Finds `iteris_pack.iteris_core` and its modules under the names without `iteris_pack`."""

    def find_spec(self, fullname, path=None, target=None):
        if f"{fullname}.".startswith(f"{__name__}.iteris_core."):
            return ModuleSpec(fullname, self)
        return None

    def create_module(self, spec):
        module = importlib.import_module(spec.name.removeprefix(f"{__name__}."))
        spec.loader_state = module.__spec__  # the import replaces it on the module
        return module

    def exec_module(self, module):
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.insert(0, SharedCore())
sys.path.insert(0, str(Path(__file__).parent / "comfy_stub"))
