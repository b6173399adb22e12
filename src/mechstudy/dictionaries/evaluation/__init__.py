"""How good a dictionary is: reconstruction, effect on the model, stability, known features."""
