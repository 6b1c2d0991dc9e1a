"""What the core's tests merge on."""

import fake_host
import pytest


@pytest.fixture
def host():
    return fake_host.FakeHost()
