"""Studies: their runner, arms and comparisons."""
