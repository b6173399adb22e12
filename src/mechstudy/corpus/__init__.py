"""Documents, sampled text and token rows for dictionary training."""
