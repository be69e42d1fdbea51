"""Trained models on disk: which folds predict, the files of a model, and models as one file."""
