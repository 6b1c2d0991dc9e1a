"""The benchmarks' command lines give work to other processes."""

import runpy
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    "given", ["worlds --world words --stage loras --cache", "language --folder"]
)
def test_work_is_found_by_processes_that_cannot_import_main(monkeypatch, tmp_path, given):
    name, *options = given.split()
    seen = []
    monkeypatch.setattr("benchmarks.common.in_parallel", lambda work, *_: seen.append(work))
    monkeypatch.setattr(sys, "argv", [name, *options, str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"benchmarks.{name}.__main__", raising=False)
    try:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    except FileNotFoundError:
        pass  # the results of the work, which was not done
    finally:
        sys.modules.pop(f"benchmarks.{name}.__main__", None)
    assert seen
    assert {work.__module__ for work in seen} == {f"benchmarks.{name}.__main__"}
