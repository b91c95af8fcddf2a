"""What was trained, and how it is kept."""
