"""How long a test waits for an event before it says that something hangs."""

HANGS = 1800.0  # seconds
