"""Commands that several processes share: `torchrun --nproc-per-node 2 --no-python iteris merge
...`; see `processes`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import distributed

from ..processes import Processes


@contextlib.contextmanager
def started_processes() -> Iterator[None]:
    """Connect this process with the others that torchrun has started, each with a GPU of its own
    where there are GPUs. What fails in one ends all. Without torchrun there is nothing to do.
    """
    if not distributed.is_torchelastic_launched():
        yield
        return
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    distributed.init_process_group("nccl" if has_gpu else "gloo")
    try:
        with Processes.current().together():
            yield
    finally:
        distributed.destroy_process_group()
