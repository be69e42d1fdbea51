"""Predictions + labels -> scores."""
