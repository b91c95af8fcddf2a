"""Scans: reading, checking and writing them, with their geometry."""
