"""Top activations of features and what they promote."""
