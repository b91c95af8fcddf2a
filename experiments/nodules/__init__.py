"""The study of nodules."""
