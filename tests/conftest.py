"""Shared settings: one torch thread, since small matrices on many threads wait more than they work."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
