"""Figures and the static report, made from artifacts alone."""
