"""The networks of the box: trained and judged by committed commands."""
