"""The commands as functions: they run missing stages, keep what exists and refuse what is stale."""
