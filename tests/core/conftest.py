"""What the core's tests merge on."""

import fake_host
import pytest


@pytest.fixture
def host():
    """A Stable Diffusion of two tiny networks."""
    return fake_host.FakeHost()
