"""Ablation, patching, resampling and steering, with their controls and statistics."""
