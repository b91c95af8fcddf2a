"""Checks of parts against others, and of the phantom."""
