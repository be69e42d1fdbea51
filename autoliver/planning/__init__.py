"""Dataset -> fingerprint -> plan."""
