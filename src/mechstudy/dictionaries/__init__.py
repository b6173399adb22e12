"""Sparse autoencoders and transcoders: architectures, training, evaluation, files."""
