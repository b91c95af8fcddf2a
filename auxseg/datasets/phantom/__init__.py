"""A phantom of chest CT in LUNA16's own layout."""
