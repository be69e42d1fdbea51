"""Dataset + plan -> store, and back onto the input grid."""
