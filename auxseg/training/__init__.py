"""The loop and the stops on its way."""
