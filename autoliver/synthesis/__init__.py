"""Makes synthetic datasets."""
