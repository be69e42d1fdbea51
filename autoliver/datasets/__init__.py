"""Reads datasets from disk: their cases, labels and splits."""
