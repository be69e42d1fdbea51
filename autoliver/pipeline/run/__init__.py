"""Training of a run: from a request to folds that are trained and scored."""
