"""Builds torch networks from their specs; independent of the stages that use them."""
