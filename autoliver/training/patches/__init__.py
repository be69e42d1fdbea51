"""Training patches: drawn from the store, held, brought to the device."""
