"""Store + plan -> trained folds."""
