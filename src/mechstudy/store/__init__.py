"""Artifacts, manifests, checkpoints, provenance and locks."""
