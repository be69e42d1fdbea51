"""convert: published data in a layout of its own becomes a dataset, by reference."""
