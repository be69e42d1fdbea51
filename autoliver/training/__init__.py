"""Trains the folds of a plan on the preprocessed cases of the store."""
