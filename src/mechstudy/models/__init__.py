"""Sources, architecture table, and the language model with its sites and partial forward."""
