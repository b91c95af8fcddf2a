"""What every shelf needs: files, errors, class names, progress, the command line."""
