"""Whole scans with labels in a folder, in the layouts and formats that people have."""
