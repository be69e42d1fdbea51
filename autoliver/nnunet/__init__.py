"""Imports models of nnU-Net v2 and v1, and exports models for nnU-Net v2."""
