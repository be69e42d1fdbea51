"""Weights and plans of one training made to fit another."""
