"""A page of HTML that shows what was done with a dataset, or what is in a folder of predictions."""
