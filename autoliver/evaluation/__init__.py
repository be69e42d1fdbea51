"""Scores predictions against reference labels, and chooses models and cleaning rules by scores."""
