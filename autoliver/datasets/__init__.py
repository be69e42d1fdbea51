"""Datasets as they lie on disk: their cases, labels and splits."""
