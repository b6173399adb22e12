"""What a unit uses while it runs: the sampler beside it, `--profile`, and snapshots of its memory."""
