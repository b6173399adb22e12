"""Archives, verification, clean-up, restoring and reproducing."""
