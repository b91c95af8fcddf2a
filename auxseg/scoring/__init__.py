"""Masks compared with their reference."""
