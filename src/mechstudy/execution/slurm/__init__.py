"""Slurm as seen from the tool: scripts, submission, the queue, what a job does about its time limit. No torch."""
