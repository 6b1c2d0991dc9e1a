"""Check the types of nodes and core by mypy: ``python tools/check_types.py [options of mypy]``.

The nodes import ``..iteris_core``, as ComfyUI loads them. mypy finds it only from the folder above,
where this folder is a package; from here it would take all that is the core's for `Any`.
"""

import subprocess
import sys
from pathlib import Path

_PACK = Path(__file__).resolve().parents[1]


def main() -> int:
    packages = [f"--package={_PACK.name}.{name}" for name in ("iteris_core", "nodes")]
    options = [f"--config-file={_PACK / 'pyproject.toml'}", f"--cache-dir={_PACK / '.mypy_cache'}"]
    command = [sys.executable, "-m", "mypy", *options, *packages, *sys.argv[1:]]
    return subprocess.run(command, check=False, cwd=_PACK.parent).returncode


if __name__ == "__main__":
    sys.exit(main())
