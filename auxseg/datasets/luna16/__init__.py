"""LUNA16: its folder, records of its slices, their preparation."""
