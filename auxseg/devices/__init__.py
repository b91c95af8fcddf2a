"""The work spread over devices and processes."""
