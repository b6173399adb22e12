"""Sampling of resource use, its summaries, and rules that name bottlenecks."""
