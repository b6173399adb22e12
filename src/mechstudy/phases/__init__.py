"""One file per phase: its spec and its run(); glue, no mathematics."""
