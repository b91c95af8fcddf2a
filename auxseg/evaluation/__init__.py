"""A run judged on a split."""
