"""Scans of a folder become cases, by one process or many: records, or the NPZ form."""
