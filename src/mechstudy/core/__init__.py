"""Configs, errors, JSON and atomic files, seeds, progress and stop requests: the base of every other room."""
