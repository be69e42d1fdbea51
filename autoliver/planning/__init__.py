"""Verifies a dataset, summarises it as a fingerprint, and makes a plan from the fingerprint."""
