"""Measurements, side by side with peers. Not part of the package."""
