"""Trains runs: from a request to trained and scored folds."""
