"""Unlabelled cases get the labels that a model gives them."""
