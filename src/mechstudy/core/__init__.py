"""Configs, artifacts, checkpoints, provenance, progress and errors: what every other room stands on."""
