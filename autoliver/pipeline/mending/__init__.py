"""verify --fix: repaired copies of the files of a dataset in which there are errors."""
