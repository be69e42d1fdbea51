"""Preprocesses the cases of a dataset into a store, and maps results back to the input grid."""
