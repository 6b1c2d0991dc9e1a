"""The entry point of `python -m iteris_core.cli`."""

from .main import main

main()
