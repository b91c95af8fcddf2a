"""Studies that are run by hand, one script each; not part of the installed package."""
