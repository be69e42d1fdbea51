"""Corrected predictions become a dataset."""
