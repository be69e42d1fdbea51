"""Autoliver and nnU-Net 2.8.1 measured side by side: `python -m benchmarks`."""
