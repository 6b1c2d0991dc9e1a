"""Adapter files: read, written, inspected and named."""
