"""Adapts the weights and the plan of one training to another dataset."""
