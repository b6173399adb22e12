"""Runs units: in this process, in a pool, under torchrun, on Slurm."""
