"""What was learnt elsewhere, made to fit this plan."""
