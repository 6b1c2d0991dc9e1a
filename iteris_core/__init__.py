"""IterIS: merge several LoRAs into one by measuring what each of them does (CVPR 2025,
arXiv:2411.15231).

The data flows one way: files -> adapters -> tasks -> rows -> statistics -> solve -> merged adapter
-> file, report. A package imports only what comes before it:

    settings, layers, network, adapters, tasks, ...: the nouns that all others use
    files: from a file to an adapter, and back
    algebra: from statistics to the answer of one layer
    rows: rows of a batch that wear adapters; rows that wait for each other
    report: what a merge says about itself
    engines: the sweep over the layers, and the paper's iteration
    rivals: other merge methods
    merging: `merge`, which chooses an engine or a rival
    diffusion: diffusion models: captions, samples, scenes, the recipe
    language: T5, FLAN-T5, BART and BLIP
    cli: the command line
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters import Adapter as Adapter
    from .adapters import LowRankDelta as LowRankDelta
    from .config import BaselineOptions as BaselineOptions
    from .config import MergeConfig as MergeConfig
    from .errors import AdapterError as AdapterError
    from .errors import CalibrationError as CalibrationError
    from .errors import ConfigError as ConfigError
    from .errors import IterisError as IterisError
    from .errors import MissingLibraryError as MissingLibraryError
    from .errors import NameTakenError as NameTakenError
    from .errors import OutOfMemoryError as OutOfMemoryError
    from .errors import PeerError as PeerError
    from .errors import SaveError as SaveError
    from .errors import SolveError as SolveError
    from .memory import Room as Room
    from .merging import MergeResult as MergeResult
    from .merging import merge as merge
    from .network import Network as Network
    from .report.records import MergeReport as MergeReport
    from .report.records import Note as Note
    from .tasks import Sample as Sample
    from .tasks import Task as Task
    from .version import __version__ as __version__

# Where each public name lives; it is imported when it is first asked for, so that a host starts
# quickly.
_MODULE_OF = {
    "Adapter": "adapters",
    "AdapterError": "errors",
    "BaselineOptions": "config",
    "CalibrationError": "errors",
    "ConfigError": "errors",
    "IterisError": "errors",
    "LowRankDelta": "adapters",
    "MergeConfig": "config",
    "MergeReport": "report.records",
    "MergeResult": "merging",
    "MissingLibraryError": "errors",
    "NameTakenError": "errors",
    "Network": "network",
    "Note": "report.records",
    "OutOfMemoryError": "errors",
    "PeerError": "errors",
    "Room": "memory",
    "Sample": "tasks",
    "SaveError": "errors",
    "SolveError": "errors",
    "Task": "tasks",
    "__version__": "version",
    "merge": "merging",
}
__all__ = [*_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
