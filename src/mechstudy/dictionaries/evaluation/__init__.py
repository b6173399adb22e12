"""Evaluation of dictionaries: reconstruction, effect on the model, stability, known features."""
