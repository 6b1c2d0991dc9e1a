"""From a file to an adapter, and back."""
