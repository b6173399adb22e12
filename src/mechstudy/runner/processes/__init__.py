"""Several processes that share one unit."""
