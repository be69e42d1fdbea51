"""Evidence for transfer from abdominal CT to MR on real data, one script a question."""
