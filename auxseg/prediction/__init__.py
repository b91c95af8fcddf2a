"""Networks taken back to scans."""
