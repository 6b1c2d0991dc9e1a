"""How long a test waits before it says that something hangs. Nothing is measured by it: what a test
waits for is an event, and what ends without it is noticed at once.
"""

HANGS = 1800.0  # seconds
