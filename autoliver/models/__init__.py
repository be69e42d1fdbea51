"""A trained model on disk: what predicts, where its parts lie, one file of it."""
