"""Spec -> torch module; knows no stage."""
