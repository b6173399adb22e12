"""Training of sparse dictionaries."""
