"""Checks of a machine, a model and a run."""
