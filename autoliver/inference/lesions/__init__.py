"""Lesions of a label map: one class for each, what they measure, and tables of them."""
