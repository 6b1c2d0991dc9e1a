"""IterIS: merge several LoRAs into one by measuring what each of them does (CVPR 2025, arXiv:2411.15231).

The data flows one way: files -> adapters -> tasks -> rows -> statistics -> solve -> merged adapter -> file, report.
"""

from .adapters import Adapter, LowRankDelta
from .config import BaselineOptions, MergeConfig
from .errors import AdapterError, CalibrationError, ConfigError, IterisError, SolveError
from .merge import MergeResult, merge
from .network import Network
from .report import MergeReport
from .tasks import Sample, Task
from .version import __version__ as __version__

__all__ = [
    "Adapter",
    "AdapterError",
    "BaselineOptions",
    "CalibrationError",
    "ConfigError",
    "IterisError",
    "LowRankDelta",
    "MergeConfig",
    "MergeReport",
    "MergeResult",
    "Network",
    "Sample",
    "SolveError",
    "Task",
    "merge",
]
