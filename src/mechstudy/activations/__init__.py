"""Corpora, capture, the on-disk activation store and its shuffled reader."""
