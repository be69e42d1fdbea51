"""Draws training patches from the store, caches cases, and brings batches to the device."""
