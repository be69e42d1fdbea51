"""Reads and writes image files; the only package that knows their formats."""
