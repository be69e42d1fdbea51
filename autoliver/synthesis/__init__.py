"""Datasets made from nothing or from others."""
